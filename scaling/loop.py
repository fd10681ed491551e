"""Train one run from its config to its outcome: the only clock and the only side effects of training.

Read top to bottom: restore or initialise, then chunks of steps; the metrics of a chunk are read after the next one
is dispatched, so that the device never waits for the host.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from scaling import checkpoint, config, counting, devices, mesh, step
from scaling.data import batches
from scaling.data import corpus as corpora


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, at which step, with its validation loss (nats a token) and its standard error."""

    status: Literal["finished", "diverged", "stopped"]
    reason: str
    step: int
    seconds: float
    loss: float | None = None
    loss_se: float | None = None
    bits_per_byte: float | None = None


@dataclasses.dataclass(frozen=True)
class Validation:
    """Mean loss over the fixed validation tokens in nats a token, its standard error, and bits per byte of text."""

    loss: float
    loss_se: float
    bits_per_byte: float


def train(
    run: config.Run,
    execution: config.Execution,
    corpus: corpora.Corpus,
    *,
    checkpoints: Sequence[Path],
    record: Callable[[list[dict[str, Any]]], None],
    stop: Callable[[], bool],
) -> Outcome:
    """Train `run` until it finishes, diverges, or `stop()` is true; then everything to go on from is saved.

    `checkpoints` are the folders of the run's attempts, oldest first, the last one this attempt's own. `record` takes
    rows of metrics: `kind` "train" (one a step) and "validation". `seconds` leaves out compiling.
    """
    program = step.program(run, execution)
    rates = run.schedule.values(run.optimizer.learning_rate, run.steps, run.batch_tokens)
    decays = run.optimizer.decay(rates).astype(np.float32)
    data = batches.Batches(corpus.train, run.context, run.batch_size, run.seed)
    saved = checkpoint.Checkpoints(checkpoints, run.run_id(corpus.data_sha256))
    checkpoint.check_space(_existing(checkpoints[-1]), program.shapes)

    restored = saved.restore(program.shapes)
    state, notes = restored or (program.init(np.uint32(run.seed)), {"step": 0, "seconds": 0.0})
    at = notes["step"]
    meter = Meter(run, notes["seconds"])
    ends = _evaluation_steps(run.steps, execution.evaluations)
    chunk = program.steps_per_dispatch
    pending: tuple[int, int, step.Metrics] | None = None
    last_save = time.monotonic()
    outcome = None

    while outcome is None and at < run.steps:
        count = min(chunk, min(end for end in ends if end > at) - at)
        tokens = _pad(_local(data, program.mesh, at, count), chunk)
        arguments = (mesh.put(program.mesh, tokens, (None, "batch", None)), _pad(rates[at : at + count], chunk))
        state, metrics = program.train(state, *arguments, _pad(decays[at : at + count], chunk), np.int32(count))
        bad, pending = _read(pending, meter, rates, record), (at, count, metrics)
        at += count

        if bad is None and at in ends:
            bad, pending = _read(pending, meter, rates, record), None
            if bad is None:
                result = validate(program, state.params, run, corpus)
                seconds = meter.seconds()
                record([{"kind": "validation", **meter.cost(at), "seconds": seconds, **dataclasses.asdict(result)}])
                if not math.isfinite(result.loss):
                    bad = f"validation loss is {result.loss} at step {at}"
                elif at == run.steps:
                    outcome = Outcome("finished", "", at, seconds, **dataclasses.asdict(result))
        if bad is not None:
            outcome = Outcome("diverged", bad, at, meter.seconds())
        elif outcome is None:
            stopping = stop()
            if stopping or time.monotonic() - last_save >= execution.checkpoint_seconds:
                bad, pending = _read(pending, meter, rates, record), None
                if bad is not None:
                    outcome = Outcome("diverged", bad, at, meter.seconds())
                    continue
                saved.save(at, state, {"seconds": meter.seconds()})
                last_save = time.monotonic()
            if stopping:
                outcome = Outcome("stopped", "asked to stop", at, meter.seconds())

    if outcome is None:  # restored at the last step: an earlier attempt ended between its checkpoint and its result
        result = validate(program, state.params, run, corpus)
        outcome = Outcome("finished", "", at, meter.seconds(), **dataclasses.asdict(result))
    if outcome.status != "stopped":
        keep = execution.keep_last_checkpoint and outcome.status == "finished"  # a diverged state is of no use
        if keep:
            saved.save(at, state, {"seconds": outcome.seconds})
        if not stop():  # else the run may be another's by now, who may be restoring from what would be removed
            saved.remove_older_attempts() if keep else saved.remove()
    saved.close()
    return outcome


class Meter:
    """Turns chunks of device metrics into rows with their cost: tokens, FLOPs, rates, and the share of the peak."""

    def __init__(self, run: config.Run, seconds_before: float):
        self.run = run
        self.before = seconds_before
        self.start = self.last = time.perf_counter()
        self.flops_per_token = counting.flops_per_token(run.model, run.vocabulary_size, run.context)
        peak = devices.peak_flops(jax.local_devices()[0].device_kind)
        self.peak = None if peak is None else peak * jax.device_count()

    def seconds(self) -> float:
        """Seconds of training so far, all attempts that led here together."""
        return self.before + time.perf_counter() - self.start

    def cost(self, steps: int) -> dict[str, Any]:
        """What `steps` steps have cost."""
        tokens = steps * self.run.batch_tokens
        return {"step": steps, "tokens": tokens, "flops": tokens * self.flops_per_token}

    def rows(self, start: int, values: Mapping[str, np.ndarray], rates: np.ndarray) -> list[dict[str, Any]]:
        """One row for each step of a chunk that began at `start`; rates of work are means over the chunk."""
        now = time.perf_counter()
        count = len(values["loss"])
        speed = count * self.run.batch_tokens / (now - self.last)
        self.last = now
        work = {"tokens_per_second": speed, "flops_per_second": speed * self.flops_per_token}
        if self.peak is not None:
            work["mfu"] = work["flops_per_second"] / self.peak
        return [
            {
                "kind": "train",
                **self.cost(start + i + 1),
                **{name: float(column[i]) for name, column in values.items()},
                "learning_rate": float(rates[start + i]),
                **work,
            }
            for i in range(count)
        ]


def validate(program: step.Program, params: step.Params, run: config.Run, corpus: corpora.Corpus) -> Validation:
    """Loss on every validation token. The standard error is that of the mean over sequences: tokens in one are kin."""
    windows = batches.validation_windows(corpus, run.context)
    size = program.validation_batch
    share = size // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    losses = []
    for first in range(0, len(windows), size):
        block = _pad(windows[first : first + size], size)
        nats = program.evaluate(params, mesh.put(program.mesh, block[mine], ("batch", None)))
        losses.append(np.asarray(nats, np.float64)[: len(windows) - first].mean(axis=1))
    means = np.concatenate(losses)
    error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    bytes_seen = corpus.token_bytes[windows[:, 1:]].sum()
    bits = means.sum() * run.context / math.log(2) / bytes_seen
    return Validation(float(means.mean()), float(error), float(bits))


def _read(
    pending: tuple[int, int, step.Metrics] | None, meter: Meter, rates: np.ndarray, record: Callable[..., None]
) -> str | None:
    """Wait for a chunk's metrics, record them, and say why the run diverged if it did."""
    if pending is None:
        return None
    start, count, metrics = pending
    values = {name: np.asarray(column)[:count] for name, column in metrics._asdict().items()}
    record(meter.rows(start, values, rates))
    bad = np.flatnonzero(~np.isfinite(values["loss"]) | ~np.isfinite(values["gradient_norm"]))
    if len(bad) == 0:
        return None
    first = int(bad[0])
    loss, norm = values["loss"][first], values["gradient_norm"][first]
    return f"training loss is {loss} and gradient norm {norm} at step {start + first + 1}"


def _local(data: batches.Batches, devices: jax.sharding.Mesh, start: int, count: int) -> np.ndarray:
    """This process's rows of `count` batches from step `start` on."""
    share = data.batch_size // jax.process_count()
    first = share * jax.process_index()
    return data.chunk(start, count, slice(first, first + share))


def _evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """Steps after which to validate: equally spaced, the last one at the end."""
    return sorted({max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)})


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """The array with rows of zeros up to `length`: shapes stay those that were compiled."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def _existing(folder: Path) -> Path:
    """The nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
