"""Where the time of a training step goes: its parts measured by programs of their own, one beside the other.

Three programs are compiled, each a loop over the same batches on the device: the loss alone, the loss with its
gradient, and the whole step as it trains. What one takes more than the one before is what the part between them
costs. They run in turn, so that a machine that slows down slows all of them, and medians over the rounds count.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling import config, counting, devices
from scaling.data import batches
from scaling.data import corpus as corpora
from scaling.training import loop, mesh, programs, states, steps


@dataclasses.dataclass(frozen=True)
class Part:
    """Seconds of a part of one step, and its exact FLOPs (see `counting`); None where it multiplies nothing counted."""

    name: str
    seconds: float
    flops: float | None


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """The parts of a step, which add up to `step`; and the host's work on a batch, which it does meanwhile.

    `peak` is in FLOP/s, of the devices' data sheets or else of a matrix product here.
    """

    parts: tuple[Part, ...]
    step: Part
    data: Part
    peak: float
    steps: int
    rounds: int


def measure(run: config.Run, execution: config.Execution, corpus: corpora.Corpus, rounds: int = 7) -> Breakdown:
    """Compile the programs, then time each `rounds` times over one dispatch of steps.

    The backward pass counts what remat computes again, the optimizer also clipping, norms and reading the batch.
    """
    program = loop.program_of(run, execution, 1, corpus)
    count = min(program.steps_per_dispatch, run.steps)
    examples = corpus.train_examples(run.context)
    data = batches.Batches(examples, run.batch_size, run.seed)
    mine = mesh.rows(program.mesh, run.batch_size)
    resident = program.put_resident(examples)
    still = np.zeros(count, np.float32)  # rates: the parameters stay, and every round does the same work

    def sent() -> steps.Dispatch:
        rows = (data.places if program.resident else data.chunk)(0, count, mine)
        return program.put(steps.together([steps.dispatch(run, rows, still, still, program.steps_per_dispatch)]))

    work = sent()
    read = {
        name: mesh.put(program.mesh, x, (None, "batch", *(None,) * (x.ndim - 2)))
        for name, x in data.chunk(0, count, mine).items()
    }
    held = {"state": program.stack([program.init(np.uint32(run.seed), np.float32(run.parametrization.init_scale))])}
    params = program.member(held["state"], 0).params

    def whole() -> Any:
        held["state"], metrics = program.train(held["state"], resident, work)
        return metrics

    loss, gradient = _looped(program, run)
    timed: dict[str, Callable[[], Any]] = {
        "forward": lambda: loss(params, read),
        "gradient": lambda: gradient(params, read),
        "step": whole,
        "data": sent,
    }
    seconds = {name: value / count for name, value in _medians(timed, rounds).items()}
    counted = counting.passes(run.model, run.vocabulary_size, run.context)
    peak = devices.peak_flops(jax.local_devices()[0].device_kind)
    return Breakdown(
        parts=(
            Part("forward", seconds["forward"], run.batch_tokens * counted.forward),
            Part("backward", seconds["gradient"] - seconds["forward"], run.batch_tokens * counted.backward),
            Part("optimizer", seconds["step"] - seconds["gradient"], None),
        ),
        step=Part("step", seconds["step"], run.batch_tokens * counted.total),
        data=Part("data", seconds["data"], None),
        peak=devices.measured_cpu_flops() if peak is None else peak * jax.device_count(),
        steps=count,
        rounds=rounds,
    )


def _looped(program: programs.Program, run: config.Run) -> tuple[Any, Any]:
    """Compiled loops over batches (steps, batch, …): of the loss, and of the loss with its gradient."""
    size, parts = program.microbatch, program.parts
    z_loss = jnp.float32(run.z_loss)

    def forward(params: states.Params, batches: Any) -> jax.Array:
        pieces = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[2:]), batches)
        count = len(jax.tree.leaves(pieces)[0])

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + parts.objective(params, jax.tree.map(lambda x: x[i], pieces), z_loss)[0]

        return jax.lax.fori_loop(0, count, add, jnp.zeros(()))

    def backward(params: states.Params, batches: Any) -> Any:
        def at(i: Any) -> Any:
            return jax.tree.map(lambda x: x[i], batches)

        shapes = jax.eval_shape(parts.gradient, params, at(0), z_loss)
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        count = len(jax.tree.leaves(batches)[0])
        return jax.lax.fori_loop(0, count, lambda i, _: parts.gradient(params, at(i), z_loss), empty)

    return jax.jit(forward), jax.jit(backward)


def _medians(timed: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn after a first round that compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, function in timed.items():
            begun = time.perf_counter()
            jax.block_until_ready(function())
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}
