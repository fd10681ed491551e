"""The compiled work of training: init, many optimizer steps a dispatch, and validation, as pure functions of arrays.

One program serves every run that shares the shapes: seeds, learning rates, weight decay, clipping and the number of
steps are arguments, so that a sweep compiles once a size. A program trains a pack of `members` such runs at once, by
`vmap`: every array has a leading axis of members, of size 1 for a run alone.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from scaling import config, counting, memory, models
from scaling.config import families
from scaling.models import checks
from scaling.models.ops import kernels, lean
from scaling.tasks import loss
from scaling.training import compiling, mesh, noise, processes

Params = dict[str, Array]


class State(NamedTuple):
    """What a step changes: parameters and optimizer state, keyed by weight name."""

    params: Params
    optimizer: Any


class Metrics(NamedTuple):
    """One value a step: nats, and norms over all parameters; `update_ratio` is the update's over the parameters'.

    With `execution.noise_scale` also unbiased estimates of |G|² and tr Σ of the gradient of a sequence, see `noise`.
    """

    loss: Float[Array, "members steps"]
    gradient_norm: Float[Array, "members steps"]
    param_norm: Float[Array, "members steps"]
    update_ratio: Float[Array, "members steps"]
    gradient_squared: Float[Array, "members steps"] | None = None
    gradient_variance: Float[Array, "members steps"] | None = None


class Dispatch(NamedTuple):
    """What each member does in a dispatch: the first `steps` of the steps given, each with a batch of its own.

    `data` are the batches, or where each window of a batch begins in tokens that are on the device. `clip` bounds the
    norm of the gradient (infinity: no bound), `z_loss` weighs log²Z.
    """

    data: Any  # members × steps × batch, or that × (context + 1)
    rates: Any  # members × steps
    decays: Any  # members × steps
    clip: Any  # members
    z_loss: Any  # members
    steps: Any  # members


class Parts(NamedTuple):
    """The pure functions of one run that a step is made of, not compiled: to measure each by itself (`breakdown`)."""

    objective: Callable[..., Any]  # (params, batch, z_loss) → (objective, mean loss), of one microbatch
    gradient: Callable[..., Any]  # (params, batch, z_loss) → (mean loss, gradient, …), of the batch
    step: Callable[..., Any]  # (state, batch, rate, decay, clip, z_loss) → (state, metrics)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of all runs that share shapes, and the mesh that they run on.

    `init` makes the state of one run from its seed and the scale of its initial values; `stack` makes the state of a
    pack of those of its members, and `member` takes one out again (both leave what they are given as it is). `train`
    takes the state of the pack, which it consumes, the tokens on the device (of length 0 where batches are given), and
    a `Dispatch`. `evaluate` gives nats of every token of a batch of windows, by member. `shapes` is one run's state.
    A trace names the ops of a step by phase: data, forward, loss (with the head), optimizer; backward: transpose(…).
    """

    mesh: jax.sharding.Mesh
    members: int
    resident: int | None
    microbatch: int
    steps_per_dispatch: int
    validation_batch: int
    init: Callable[[ArrayLike, ArrayLike], State]
    stack: Callable[[Sequence[State]], State]
    member: Callable[[State, ArrayLike], State]
    train: Callable[[State, ArrayLike, Dispatch], tuple[State, Metrics]]
    evaluate: Callable[[Params, ArrayLike], Array]
    shapes: State
    parts: Parts

    def put(self, dispatch: Dispatch) -> Dispatch:
        """A dispatch of host arrays, with this process's part of each batch, on the devices of the mesh."""
        return Dispatch(*(mesh.put(self.mesh, np.asarray(x), _AXES[: np.ndim(x)]) for x in dispatch))


_AXES = (None, None, "batch", None)  # of every array of a dispatch


def dispatch(run: config.Run, data: np.ndarray, rates: np.ndarray, decays: np.ndarray, length: int) -> Dispatch:
    """One run's share of a dispatch, without the axis of members: as many steps as `rates`, padded to `length`."""

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])

    clip = np.float32(np.inf if run.clip is None else run.clip)
    return Dispatch(
        data=pad(data.astype(np.int32)),
        rates=pad(np.asarray(rates, np.float32)),
        decays=pad(np.asarray(decays, np.float32)),
        clip=clip,
        z_loss=np.float32(run.z_loss),
        steps=np.int32(len(rates)),
    )


def together(members: Sequence[Dispatch]) -> Dispatch:
    """The dispatch of a pack."""
    return Dispatch(*(np.stack(parts) for parts in zip(*members, strict=True)))


def program(
    run: config.Run,
    execution: config.Execution,
    members: int = 1,
    resident: tuple[int, np.dtype[Any]] | None = None,
) -> Program:
    """The program of a pack of runs like `run`, compiled at most once a process for all runs that share it.

    `resident` is the number and type of the corpus' tokens where they are kept on the device. Another thread may have
    begun to compile it: then this waits for it. Raises ValueError where no microbatch fits the device.
    """
    key = (run.shared, execution, members, resident)
    with _COMPILING.setdefault(key, threading.Lock()):
        return _fitting(*key) if execution.microbatch == "auto" else _program(*key)


_COMPILING: dict[Any, threading.Lock] = {}


@functools.lru_cache(maxsize=64)
def _fitting(
    run: config.Run, execution: config.Execution, members: int, resident: tuple[int, np.dtype[Any]] | None
) -> Program:
    """The program of the largest microbatch that fits the device; of processes that compute together, every device."""
    count, cpu = jax.device_count(), jax.default_backend() == "cpu"

    def need(size: int) -> float:
        return memory.needed(run, execution, size, members=members, cpu=cpu, devices=count)

    def build(size: int) -> Program:
        return _program(run, execution.edit({"microbatch": size}), members, resident)

    sizes, limit = memory.microbatches(run, execution, count), processes.least(memory.limit())
    if limit is None:
        return build(sizes[0])
    return memory.largest_fitting(sizes, need, build, _measured, limit)


def _measured(program: Program) -> float:
    """Bytes that a pack takes: in a step, or where its state is copied to be stacked or saved. The most of any process,
    since the next size to be compiled, together, follows from it."""
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes))
    found = max(memory.compiled(program.train), (program.members + 1) * state / program.mesh.shape["fsdp"])
    return max(processes.gather(found))


@functools.lru_cache(maxsize=64)
def _program(
    run: config.Run, execution: config.Execution, members: int, resident: tuple[int, np.dtype[Any]] | None
) -> Program:
    devices = mesh.make(execution.mesh)
    _check_batch(run, execution, devices)
    mesh.check(devices, run.weights)
    if run.model.causal:
        checks.check_causal(run.model, run.context, compiling.once(0))
    weights = {weight.name: weight for weight in run.weights}
    depth = run.model.depth
    scanned = execution.scans(depth, jax.default_backend() == "cpu")
    create = functools.partial(
        models.create,
        run.model,
        vocabulary_size=run.vocabulary_size,
        context=run.context,
        parametrization=run.parametrization,
        compute_dtype=run.precision.compute,
        parameter_dtype=run.precision.parameters,
        layers="scan" if scanned else "unroll",
        attend=kernels.Attend(
            execution.attention,
            kernels.Chip.of(devices.devices.flat[0]),
            functools.partial(mesh.sharding, devices),
        ),
        remat="gathers" if execution.remat == "none" and devices.shape["fsdp"] > 1 else execution.remat,
        place=functools.partial(mesh.place, devices) if devices.size > 1 else None,
    )
    graph = nnx.graphdef(nnx.eval_shape(lambda: create(seed=jax.random.key(0))))
    direction = run.optimizer.direction(weights)
    multipliers = {
        name: run.parametrization.learning_rate_multiplier(weight, run.model) for name, weight in weights.items()
    }
    decayed = {name: weight.role not in ("vector", "position") for name, weight in weights.items()}

    def init(seed: Array, scale: Array) -> State:
        params = flat(nnx.state(create(seed=jax.random.key(seed)), nnx.Param))
        for name, weight in weights.items():
            if weight.role != "vector":
                params[name] = (params[name] * scale).astype(params[name].dtype)
        return State(params, direction.init(params))

    def objective(params: Params, batch: Int[Array, "batch length"], z_loss: Array) -> tuple[Array, Array]:
        model, inputs, targets = nnx.merge(graph, unflat(params)), batch[:, :-1], batch[:, 1:]
        chunk = _loss_chunk(run, execution, devices, members, inputs.size)
        with jax.named_scope("forward"):
            features = model.features(inputs)
        with jax.named_scope("loss"):
            return loss.mean_loss(model.logits, model.head, features, targets, z_loss, chunk)

    def gradient(
        params: Params, batch: Int[Array, "batch length"], z_loss: Array
    ) -> tuple[Array, Params, Array | None]:
        """Mean loss and gradient over the batch, a microbatch at a time; mean square of the microbatches' gradients."""
        size = execution.sequences(run.batch_size)
        if size == run.batch_size:
            (_, mean), gradients = jax.value_and_grad(objective, has_aux=True)(params, batch, z_loss)
            return mean, gradients, None
        # Parts take turns at the sequences, so that a device's share of the batch has its share of every part.
        parts = batch.reshape(size, run.batch_size // size, batch.shape[1]).swapaxes(0, 1)

        def add(total: tuple[Any, ...], part: Array) -> tuple[tuple[Any, ...], None]:
            (_, mean), gradients = jax.value_and_grad(objective, has_aux=True)(params, part, z_loss)
            square = _squared_norm(gradients) if execution.noise_scale else None
            return jax.tree.map(jnp.add, total, (mean, gradients, square)), None

        zero = jnp.zeros(())
        sums = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)  # also where parameters are bfloat16
        start = (zero, sums, zero if execution.noise_scale else None)
        total, _ = jax.lax.scan(add, start, parts)
        return jax.tree.map(lambda x: x / len(parts), total)

    def one_step(
        state: State, batch: Array, rate: Array, decay: Array, clip: Array, z_loss: Array
    ) -> tuple[State, Metrics]:
        return update(state, gradient(state.params, batch, z_loss), rate, decay, clip)

    @jax.named_scope("optimizer")
    def update(
        state: State, found: tuple[Array, Params, Array | None], rate: Array, decay: Array, clip: Array
    ) -> tuple[State, Metrics]:
        mean, gradients, square = found
        norm = _norm(gradients)
        squared, variance = None, None
        if square is not None:
            sizes = execution.sequences(run.batch_size), run.batch_size
            squared, variance = noise.moments(square, _squared_norm(gradients), *sizes)
        scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), gradients, state.params)
        directions, optimizer = direction.update(gradients, state.optimizer, state.params)
        updates = {
            name: -(rate * multipliers[name]) * step - (decay * state.params[name] if decayed[name] else 0.0)
            for name, step in directions.items()
        }
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
        size = _norm(state.params)
        ratio = _norm(updates) / size
        return State(params, optimizer), Metrics(mean, norm, size, ratio, squared, variance)

    @jax.named_scope("data")
    def windows(tokens: Int[Array, " tokens"], data: Int[Array, "batch ..."]) -> Int[Array, "batch length"]:
        """A batch: as given, or read from the ring of tokens on the device."""
        if resident is None:
            return data
        return tokens[(data[:, None] + jnp.arange(run.context + 1)) % resident[0]].astype(jnp.int32)

    def train(state: State, tokens: Array, dispatch: Dispatch) -> tuple[State, Metrics]:
        """One member's steps; rows of the metrics beyond them are zero. Under vmap who has done its steps waits."""

        def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, metrics = carry
            batch = windows(tokens, dispatch.data[index])
            numbers = (dispatch.rates[index], dispatch.decays[index], dispatch.clip, dispatch.z_loss)
            state, values = one_step(state, batch, *numbers)
            return state, jax.tree.map(lambda column, value: column.at[index].set(value), metrics, values)

        measured = [name for name in Metrics._fields if execution.noise_scale or name not in Metrics._field_defaults]
        empty = Metrics(**{name: jnp.zeros(len(dispatch.rates)) for name in measured})
        return jax.lax.fori_loop(0, dispatch.steps, body, (state, empty))

    def evaluate(params: Params, batch: Int[Array, "batch length"]) -> Float[Array, "batch context"]:
        """Nats of every token of a batch of windows."""
        model, inputs, targets = nnx.merge(graph, unflat(params)), batch[:, :-1], batch[:, 1:]
        chunk = _loss_chunk(run, execution, devices, members, inputs.size)
        return loss.token_losses(model.logits, model.head, model.features(inputs), targets, chunk)

    one = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32))
    shard = _state_sharding(one, weights, devices)
    one = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), one, shard)
    shards = jax.tree.map(mesh.stacked, shard)
    pack = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=s), one, shards)
    whole = mesh.replicated(devices)
    chunk, length = execution.steps_per_dispatch, run.context + 1

    def given(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return mesh.shape_of(devices, (members, *shape), _AXES[: 1 + len(shape)], dtype)

    data = given(chunk, run.batch_size, *([] if resident else [length]), dtype=jnp.int32)
    dispatch = Dispatch(data, given(chunk), given(chunk), given(), given(), given(dtype=jnp.int32))
    size, kind = resident or (0, np.dtype(np.int32))
    tokens = jax.ShapeDtypeStruct((size,), kind, sharding=whole)
    sequences = _validation_batch(run, execution, devices)
    validation = mesh.shape_of(devices, (sequences, length), ("batch", None), jnp.int32)
    seed, scale = (jax.ShapeDtypeStruct((), kind, sharding=whole) for kind in (jnp.uint32, jnp.float32))
    quick = compiling.once(sum(weight.size for weight in weights.values()))
    trained = jax.jit(compiling.pack(train, members, (0, None, 0)), donate_argnums=0, out_shardings=(shards, whole))
    lowered = trained.lower(pack, tokens, dispatch)  # first of all, since it refuses what cannot be computed
    evaluated = jax.jit(compiling.pack(evaluate, members, (0, None)), out_shardings=whole)
    begin = jax.jit(init, out_shardings=shard).lower(seed, scale).compile(compiler_options=quick)
    pick = jax.jit(lambda state, index: jax.tree.map(lambda x: x[index], state), out_shardings=shard)
    number = functools.partial(mesh.number, devices)
    return Program(
        mesh=devices,
        members=members,
        resident=size if resident else None,
        microbatch=execution.sequences(run.batch_size),
        steps_per_dispatch=chunk,
        validation_batch=sequences,
        init=lambda seed, scale: begin(number(seed, np.uint32), number(scale, np.float32)),
        stack=compiling.stack(pack, shards, lambda index: number(index, np.int32)),
        member=lambda state, index: pick(state, number(index, np.int32)),
        train=lowered.compile(compiling.options(large=members > 1 or run.model.width >= lean.WIDE)),
        evaluate=evaluated.lower(pack.params, validation).compile(),
        shapes=one,
        parts=Parts(objective, gradient, one_step),
    )


def _loss_chunk(
    run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh, members: int, tokens: int
) -> int | None:
    """Tokens whose logits exist at once in one member's forward pass of `tokens`; None for all."""
    split = devices.shape["tensor"] if run.vocabulary_size % devices.shape["tensor"] == 0 else 1
    return counting.loss_chunk(
        execution.loss_chunk,
        tokens=tokens,
        vocabulary_size=run.vocabulary_size,
        width=run.model.width,
        shards=mesh.batch_shards(devices) * split,
        members=members,
    )


def _validation_batch(run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh) -> int:
    """Sequences of one forward pass of validation: as in training, or more where those would not split evenly."""
    shards = mesh.batch_shards(devices)
    size = execution.microbatch if isinstance(execution.microbatch, int) else run.batch_size
    return math.ceil(size / shards) * shards


def flat(state: nnx.State) -> Params:
    """An NNX state as a dictionary keyed by dotted weight name."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def unflat(params: Mapping[str, Array]) -> nnx.State:
    """The inverse of `flat`."""
    return nnx.from_flat_state({tuple(name.split(".")): value for name, value in params.items()})


def _state_sharding(shapes: State, weights: Mapping[str, families.Weight], devices: jax.sharding.Mesh) -> Any:
    """Shards of a state: a parameter and what the optimizer keeps in its shape go by the table, the rest is whole."""

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in weights]
        if names and leaf.shape == weights[names[-1]].full_shape:
            return mesh.weight_sharding(devices, weights[names[-1]])
        return mesh.replicated(devices)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(_squared_norm(tree))


def _squared_norm(tree: Any) -> Array:
    """The sum of squares of all arrays, in float32."""
    return sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def _check_batch(run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh) -> None:
    micro = execution.sequences(run.batch_size)
    shards = mesh.batch_shards(devices)
    if micro % shards:
        raise ValueError(
            f"{micro} sequences do not split over {shards} shards (mesh data × fsdp); "
            "choose a multiple for batch_size and execution.microbatch, or fewer data shards"
        )
