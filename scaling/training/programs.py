"""The compiled functions of training: initial state, many steps a dispatch, and validation.

One program serves every run that shares the shapes: seeds, learning rates, weight decay, clipping and the number of
steps are arguments, so that a sweep compiles once a size. A program trains a pack of `members` such runs at once, by
`vmap`: every array has a leading axis of members, of size 1 for a run alone.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from scaling import config, memory
from scaling.data import examples
from scaling.models.ops import lean
from scaling.training import compiling, evaluation, gradients, mesh, processes, setups, states, steps, updates


class Parts(NamedTuple):
    """The pure functions of one run that a step is made of, not compiled: to measure each by itself (`breakdown`)."""

    objective: Callable[..., Any]  # (params, batch, z_loss) → (objective, loss), of one microbatch
    gradient: Callable[..., Any]  # (params, batch, z_loss) → (mean loss, gradient, …), of the batch
    step: Callable[..., Any]  # (state, batch, rate, decay, clip, z_loss) → (state, metrics)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of all runs that share shapes, and the mesh that they run on.

    `init` makes the state of one run from its seed and the scale of its initial values; `stack` makes the state of a
    pack of those of its members, and `member` takes one out again (both leave what they are given as it is). `train`
    takes the state of the pack, which it consumes, the arrays on the device (none where batches are given), and a
    `Dispatch`. `evaluate` gives what the task measures of each example of a batch, by member. `shapes` is one run's
    state. A trace names the ops of a step by phase: data, forward, loss (with the head), optimizer; backward:
    transpose(…).
    """

    mesh: jax.sharding.Mesh
    members: int
    layout: examples.Layout
    microbatch: int
    steps_per_dispatch: int
    validation_batch: int
    init: Callable[[ArrayLike, ArrayLike], states.State]
    stack: Callable[[Sequence[states.State]], states.State]
    member: Callable[[states.State, ArrayLike], states.State]
    train: Callable[[states.State, gradients.Batch, steps.Dispatch], tuple[states.State, updates.Metrics]]
    evaluate: Callable[..., dict[str, tuple[Array, Array | None]]]
    shapes: states.State
    parts: Parts

    @property
    def resident(self) -> bool:
        """Whether the examples are kept on the device."""
        return bool(self.layout.resident)

    def put(self, dispatch: steps.Dispatch) -> steps.Dispatch:
        """A dispatch of host arrays, with this process's part of each batch, on the devices of the mesh."""
        return jax.tree.map(lambda x: mesh.put(self.mesh, np.asarray(x), steps.axes(np.ndim(x))), dispatch)

    def put_batch(self, batch: examples.Batch) -> gradients.Batch:
        """A batch of validation, this process's part of it, on the devices of the mesh."""
        return {name: mesh.put(self.mesh, x, ("batch", *(None,) * (x.ndim - 1))) for name, x in batch.items()}

    def put_resident(self, data: examples.Examples) -> gradients.Batch:
        """The arrays on the device that examples are read from, whole on each; none where batches are sent."""
        arrays = data.arrays if self.resident else {}
        return {name: mesh.put(self.mesh, x, (None,) * x.ndim) for name, x in arrays.items()}


def program(
    run: config.Run, execution: config.Execution, members: int = 1, layout: examples.Layout | None = None
) -> Program:
    """The program of a pack of runs like `run`, compiled at most once a process for all runs that share it.

    `layout` is that of the examples; without it, of windows of tokens that are sent. Another thread may have begun to
    compile it: then this waits for it. Raises ValueError where no microbatch fits the device.
    """
    key = (run.shared, execution.shared, members, layout or examples.text_layout(run.context))
    with _COMPILING.setdefault(key, threading.Lock()):
        return _fitting(*key) if execution.microbatch == "auto" else _program(*key)


_COMPILING: dict[Any, threading.Lock] = {}


@functools.lru_cache(maxsize=64)
def _fitting(run: config.Run, execution: config.Execution, members: int, layout: examples.Layout) -> Program:
    """The program of the largest microbatch that fits the device; of processes that compute together, every device."""
    count, cpu = jax.device_count(), jax.default_backend() == "cpu"

    def need(size: int) -> float:
        return memory.needed(run, execution, size, members=members, cpu=cpu, devices=count)

    def build(size: int) -> Program:
        return _program(run, execution.edit({"microbatch": size}), members, layout)

    sizes, limit = memory.microbatches(run, execution, count), processes.least(memory.limit())
    if limit is None:
        return build(sizes[0])
    return memory.largest_fitting(sizes, need, build, _measured, limit)


def _measured(program: Program) -> float:
    """Bytes that a pack takes: in a step, or where its state is copied to be stacked or saved. The most of any process,
    since the next size to be compiled, together, follows from it."""
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes))
    taken = max(memory.compiled(program.train), (program.members + 1) * state / program.mesh.shape["fsdp"])
    return max(processes.gather(taken))


@functools.lru_cache(maxsize=64)
def _program(run: config.Run, execution: config.Execution, members: int, layout: examples.Layout) -> Program:
    setup = setups.of(run, execution, members, layout)
    devices, whole = setup.devices, mesh.replicated(setup.devices)
    shapes, shard = _shapes(setup)
    shards = jax.tree.map(mesh.stacked, shard)
    pack = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=s), shapes, shards)
    number = functools.partial(mesh.number, devices)

    train = compiling.pack(_given(steps.train, setup), members, (0, None, 0))
    trained = jax.jit(train, donate_argnums=0, out_shardings=(shards, whole))
    lowered = trained.lower(pack, *_of_train(setup))  # first of all, since it refuses what cannot be computed
    evaluate = compiling.pack(_given(evaluation.evaluate, setup), members, (0, None, None))
    evaluated = jax.jit(evaluate, out_shardings=whole).lower(pack.params, *_of_evaluate(setup)).compile()
    begin = _initial(setup, shard)
    pick = jax.jit(lambda state, index: jax.tree.map(lambda x: x[index], state), out_shardings=shard)
    return Program(
        mesh=devices,
        members=members,
        layout=layout,
        microbatch=execution.sequences(run.batch_size),
        steps_per_dispatch=execution.steps_per_dispatch,
        validation_batch=_validation_batch(setup),
        init=lambda seed, scale: begin(number(seed, np.uint32), number(scale, np.float32)),
        stack=compiling.stack(pack, shards, lambda index: number(index, np.int32)),
        member=lambda state, index: pick(state, number(index, np.int32)),
        train=lowered.compile(compiling.options(large=members > 1 or run.model.width >= lean.WIDE)),
        evaluate=evaluated,
        shapes=shapes,
        parts=Parts(*(_given(function, setup) for function in (gradients.objective, gradients.gradient, steps.step))),
    )


def _given(function: Callable[..., Any], setup: setups.Setup) -> Callable[..., Any]:
    """A function with its setup, by its own name, which traces and compiled programs show."""
    return functools.update_wrapper(functools.partial(function, setup), function)


def init(setup: setups.Setup, seed: Array, scale: Array) -> states.State:
    """The state at the start of a run; `scale` multiplies the initial values of all but vectors."""
    params = states.initial(setup.create(seed=jax.random.key(seed)))
    for name, weight in setup.weights.items():
        if weight.role != "vector":
            params[name] = (params[name] * scale).astype(params[name].dtype)
    return states.State(params, setup.direction.init(params))


def _initial(setup: setups.Setup, shard: Any) -> Any:
    """`init`, compiled for one call a run."""
    whole = mesh.replicated(setup.devices)
    seed, scale = (jax.ShapeDtypeStruct((), kind, sharding=whole) for kind in (jnp.uint32, jnp.float32))
    quick = compiling.once(sum(weight.size for weight in setup.weights.values()))
    lowered = jax.jit(_given(init, setup), out_shardings=shard).lower(seed, scale)
    return lowered.compile(compiler_options=quick)


def _shapes(setup: setups.Setup) -> tuple[states.State, Any]:
    """The state of one run as shapes, and its shards."""
    seed, scale = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
    one = jax.eval_shape(_given(init, setup), seed, scale)
    shard = states.sharding(one, setup.weights, setup.devices)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), one, shard), shard


def _of_train(setup: setups.Setup) -> tuple[dict[str, jax.ShapeDtypeStruct], steps.Dispatch]:
    """The shapes of what `train` takes beside the state."""
    run, layout, count = setup.run, setup.layout, setup.execution.steps_per_dispatch

    def given(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return mesh.shape_of(setup.devices, (setup.members, *shape), steps.axes(1 + len(shape)), dtype)

    if layout.resident:
        data: Any = given(count, run.batch_size, dtype=jnp.int32)
    else:
        data = {x.name: given(count, run.batch_size, *x.shape, dtype=x.dtype) for x in layout.example}
    draws = run.task.draws
    dispatch = steps.Dispatch(
        data,
        rates=given(count),
        decays=given(count),
        clip=given(),
        z_loss=given(),
        steps=given(dtype=jnp.int32),
        seed=given(dtype=jnp.uint32) if draws else None,
        first=given(dtype=jnp.int32) if draws else None,
    )
    whole = mesh.replicated(setup.devices)
    resident = {x.name: jax.ShapeDtypeStruct(x.shape, np.dtype(x.dtype), sharding=whole) for x in layout.resident}
    return resident, dispatch


def _of_evaluate(setup: setups.Setup) -> tuple[dict[str, jax.ShapeDtypeStruct], evaluation.Draw | None]:
    """The shapes of what `evaluate` takes beside the parameters."""
    count = _validation_batch(setup)

    def given(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        axes = ("batch", *(None,) * (len(shape) - 1))[: len(shape)]
        return mesh.shape_of(setup.devices, shape, axes, dtype)

    batch = {x.name: given(count, *x.shape, dtype=x.dtype) for x in setup.layout.example}
    if not setup.run.task.draws:
        return batch, None
    return batch, evaluation.Draw(given(dtype=jnp.uint32), given(count, dtype=jnp.int32))


def _validation_batch(setup: setups.Setup) -> int:
    """Examples of one forward pass of validation: as in training, or more where those would not split evenly."""
    shards, micro = mesh.batch_shards(setup.devices), setup.execution.microbatch
    size = micro if isinstance(micro, int) else setup.run.batch_size
    return math.ceil(size / shards) * shards
