"""The compiled work of training: init, many optimizer steps a dispatch, and validation, as pure functions of arrays.

One program serves every run that shares the shapes: seeds, learning rates, weight decay and the number of steps are
arguments, so that a sweep compiles once a size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from scaling import config, families, loss, mesh, models

Params = dict[str, Array]


class State(NamedTuple):
    """What a step changes: parameters and optimizer state, keyed by weight name."""

    params: Params
    optimizer: Any


class Metrics(NamedTuple):
    """One value a step: nats, and norms over all parameters; `update_ratio` is the update's over the parameters'."""

    loss: Float[Array, " steps"]
    gradient_norm: Float[Array, " steps"]
    param_norm: Float[Array, " steps"]
    update_ratio: Float[Array, " steps"]


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of all runs that share shapes, and the mesh that they run on."""

    mesh: jax.sharding.Mesh
    steps_per_dispatch: int
    validation_batch: int
    init: Callable[[ArrayLike], State]
    train: Callable[[State, ArrayLike, ArrayLike, ArrayLike, ArrayLike], tuple[State, Metrics]]
    evaluate: Callable[[Params, ArrayLike], Array]
    shapes: State


def program(run: config.Run, execution: config.Execution) -> Program:
    """The program of a run, compiled at most once a process for all runs that share it."""
    neutral = {
        "optimizer.learning_rate": 1.0, "optimizer.weight_decay": 0.0, "optimizer.independent": True,
        "tokens": run.batch_tokens, "seed": 0, "schedule": _NO_SCHEDULE,
    }  # fmt: skip
    return _program(run.edit(neutral), execution)


_NO_SCHEDULE = {"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.0}}


@functools.lru_cache(maxsize=64)
def _program(run: config.Run, execution: config.Execution) -> Program:
    devices = mesh.make(execution.mesh)
    _check_batch(run, execution, devices)
    weights = {weight.name: weight for weight in run.weights}
    depth = run.model.depth
    scanned = execution.layers == "scan" or (execution.layers == "auto" and _scan_pays(depth))
    create = functools.partial(
        models.create,
        run.model,
        vocabulary_size=run.vocabulary_size,
        context=run.context,
        parametrization=run.parametrization,
        compute_dtype=run.precision.compute,
        parameter_dtype=run.precision.parameters,
        layers="scan" if scanned else "unroll",
        remat=execution.remat,
    )
    graph = nnx.graphdef(nnx.eval_shape(lambda: create(seed=jax.random.key(0))))
    direction = run.optimizer.direction(weights)
    multipliers = {
        name: run.parametrization.learning_rate_multiplier(weight, run.model) for name, weight in weights.items()
    }
    decayed = {name: weight.role not in ("vector", "position") for name, weight in weights.items()}

    def init(seed: Array) -> State:
        params = flat(nnx.state(create(seed=jax.random.key(seed)), nnx.Param))
        return State(params, direction.init(params))

    def forward(params: Params, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context vocabulary"]:
        return nnx.merge(graph, unflat(params))(tokens)

    def objective(params: Params, batch: Int[Array, "batch length"]) -> tuple[Array, Array]:
        nats, log_z = loss.cross_entropy(forward(params, batch[:, :-1]), batch[:, 1:])
        mean = nats.mean()
        return (mean + run.z_loss * jnp.square(log_z).mean() if run.z_loss else mean), mean

    def gradient(params: Params, batch: Int[Array, "batch length"]) -> tuple[Array, Params]:
        """Mean loss and gradient over the batch, a microbatch at a time."""
        size = execution.microbatch or run.batch_size
        if size == run.batch_size:
            (_, mean), gradients = jax.value_and_grad(objective, has_aux=True)(params, batch)
            return mean, gradients
        parts = batch.reshape(run.batch_size // size, size, batch.shape[1])

        def add(total: tuple[Array, Params], part: Array) -> tuple[tuple[Array, Params], None]:
            (_, mean), gradients = jax.value_and_grad(objective, has_aux=True)(params, part)
            return jax.tree.map(jnp.add, total, (mean, gradients)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / len(parts), total)

    def one_step(state: State, batch: Array, rate: Array, decay: Array) -> tuple[State, tuple[Array, ...]]:
        mean, gradients = gradient(state.params, batch)
        norm = optax.global_norm(gradients)
        if run.clip is not None:
            scale = jnp.minimum(1.0, run.clip / jnp.maximum(norm, 1e-12))
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        directions, optimizer = direction.update(gradients, state.optimizer, state.params)
        updates = {
            name: -(rate * multipliers[name]) * step - (decay * state.params[name] if decayed[name] else 0.0)
            for name, step in directions.items()
        }
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
        size = optax.global_norm(state.params)
        return State(params, optimizer), (mean, norm, size, optax.global_norm(updates) / size)

    def train(state: State, batches: Array, rates: Array, decays: Array, steps: Array) -> tuple[State, Metrics]:
        """`steps` optimizer steps on the first of `batches`; rows of the metrics beyond are zero."""

        def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, metrics = carry
            state, values = one_step(state, batches[index], rates[index], decays[index])
            return state, Metrics(*(m.at[index].set(v) for m, v in zip(metrics, values, strict=True)))

        empty = Metrics(*(jnp.zeros(len(batches)) for _ in Metrics._fields))
        return jax.lax.fori_loop(0, steps, body, (state, empty))

    def evaluate(params: Params, batch: Int[Array, "batch length"]) -> Float[Array, "batch context"]:
        """Nats of every token of a batch of windows."""
        return loss.cross_entropy(forward(params, batch[:, :-1]), batch[:, 1:])[0]

    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
    shards = _state_sharding(shapes, weights, devices)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shards)
    whole = mesh.replicated(devices)
    chunk, length = execution.steps_per_dispatch, run.context + 1
    batches = mesh.shape_of(devices, (chunk, run.batch_size, length), (None, "batch", None), jnp.int32)
    sequences = _validation_batch(run, execution, devices)
    windows = mesh.shape_of(devices, (sequences, length), ("batch", None), jnp.int32)
    rates = jax.ShapeDtypeStruct((chunk,), jnp.float32)
    count, seed = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    trained = jax.jit(train, donate_argnums=0, out_shardings=(shards, whole))
    return Program(
        mesh=devices,
        steps_per_dispatch=chunk,
        validation_batch=sequences,
        init=jax.jit(init, out_shardings=shards).lower(seed).compile(),
        train=trained.lower(shapes, batches, rates, rates, count).compile(),
        evaluate=jax.jit(evaluate, out_shardings=whole).lower(shapes.params, windows).compile(),
        shapes=shapes,
    )


def _validation_batch(run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh) -> int:
    """Sequences of one forward pass of validation: as in training, or more where those would not split evenly."""
    shards = mesh.batch_shards(devices)
    return math.ceil((execution.microbatch or run.batch_size) / shards) * shards


def flat(state: nnx.State) -> Params:
    """An NNX state as a dictionary keyed by dotted weight name."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def unflat(params: Mapping[str, Array]) -> nnx.State:
    """The inverse of `flat`."""
    return nnx.from_flat_state({tuple(name.split(".")): nnx.Param(value) for name, value in params.items()})


def _state_sharding(shapes: State, weights: Mapping[str, families.Weight], devices: jax.sharding.Mesh) -> Any:
    """Shards of a state: a parameter and what the optimizer keeps in its shape go by the table, the rest is whole."""

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in weights]
        if names and leaf.shape == weights[names[-1]].full_shape:
            return mesh.weight_sharding(devices, weights[names[-1]])
        return mesh.replicated(devices)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _scan_pays(depth: int) -> bool:
    """Scanned layers compile in constant time but run slower on CPU (0.53–0.63 of the speed), where depth is small."""
    return depth > (16 if jax.default_backend() == "cpu" else 8)


def _check_batch(run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh) -> None:
    micro = execution.microbatch or run.batch_size
    if run.batch_size % micro:
        raise ValueError(
            f"microbatch {micro} does not divide batch_size {run.batch_size}; choose a divisor for execution.microbatch"
        )
    shards = mesh.batch_shards(devices)
    if micro % shards:
        raise ValueError(
            f"{micro} sequences do not split over {shards} shards (mesh data × fsdp); "
            "choose a multiple for batch_size and execution.microbatch, or fewer data shards"
        )
