"""Train a pack of runs from their configs to their outcomes: the only clock and the only side effects of training.

Read top to bottom: restore or initialise every member, then chunks of steps for all of them at once; the metrics of a
chunk are read after the next one is dispatched, so that the device never waits for the host. A run alone is a pack of
one. A member that has finished or diverged is frozen while the others go on.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from scaling import checkpoint, config, counting, devices, mesh, noise, step
from scaling.data import batches
from scaling.data import corpus as corpora


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, at which step, with its validation loss (nats a token) and its standard error.

    `start` is the step of the trunk at which the run began, 0 where it has none. `seconds` are those of the devices: a
    member of a pack counts its share.
    """

    status: Literal["finished", "diverged", "stopped"]
    reason: str
    step: int
    seconds: float
    loss: float | None = None
    loss_se: float | None = None
    bits_per_byte: float | None = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Validation:
    """Mean loss over the fixed validation tokens in nats a token, its standard error, and bits per byte of text."""

    loss: float
    loss_se: float
    bits_per_byte: float


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Where a branch starts: the trunk's checkpoints, its run id, and the step at which the branch leaves it."""

    checkpoints: Sequence[Path]
    run_id: str
    step: int


@dataclasses.dataclass(frozen=True)
class Member:
    """A run to be trained and where its traces go.

    `checkpoints` are the folders of the run's attempts, oldest first, the last one this attempt's own. `record` takes
    rows of metrics: `kind` "train" (one a step) and "validation". The run is saved and left when `stop()` is true.
    After the steps of `branches` a checkpoint is saved and kept, for the branches that start there.
    """

    run: config.Run
    checkpoints: Sequence[Path]
    record: Callable[[list[dict[str, Any]]], None]
    stop: Callable[[], bool]
    trunk: Trunk | None = None
    branches: Sequence[int] = ()


def train(members: Sequence[Member], execution: config.Execution, corpus: corpora.Corpus) -> list[Outcome]:
    """Train runs that share a program until each finishes, diverges, or is stopped, saved so that it can go on."""
    program = program_of(members[0].run, execution, len(members), corpus)
    tokens = np.empty(0, np.int32) if program.resident is None else corpus.train
    checkpoint.check_space(_existing(members[0].checkpoints[-1]), [program.shapes] * len(members))
    jobs = [_Job(index, member, execution, corpus) for index, member in enumerate(members)]
    state = program.stack([job.begin(program) for job in jobs])
    on_device = mesh.put(program.mesh, np.asarray(tokens), (None,))
    clock = Clock(jobs)
    pending: _Chunk | None = None
    last_save = time.monotonic()

    for chunk, data in _feed(_chunks(jobs, program.steps_per_dispatch), program):
        chunk = chunk.of_those_going()
        if not any(chunk.counts):
            break
        with jax.profiler.StepTraceAnnotation("dispatch", step_num=max(chunk.starts)):
            state, metrics = program.train(state, on_device, program.put(_dispatch(chunk, data, program)))
        _read(pending, clock)
        pending = dataclasses.replace(chunk, metrics=metrics)
        for job, count in zip(jobs, chunk.counts, strict=True):
            job.at += count
        due = [job for job in jobs if job.going and job.at in job.ends]
        stopping = [job for job in jobs if job.going and job.member.stop()]
        late = time.monotonic() - last_save >= execution.checkpoint_seconds
        saving = [job for job in jobs if late or job in stopping or job.at in job.member.branches]
        if due or saving:
            _read(pending, clock)
            pending = None
        if any(job.going for job in due):
            results = validate(program, state.params, members[0].run, corpus)
            clock.charge()
            for job in due:
                job.validated(results[job.index])
        for job in saving:
            job.save(program, state)
        if late:
            last_save = time.monotonic()
        for job in stopping:
            job.end("stopped", "asked to stop")

    for job in jobs:
        if job.going:  # restored at its last step: an earlier attempt ended between its checkpoint and its result
            job.validated(validate(program, state.params, members[0].run, corpus)[job.index])
        job.close(program, state)
    return [job.outcome for job in jobs if job.outcome is not None]


RESIDENT_BYTES = 2**28  # of tokens that are kept on the device; of larger corpora batches are sent


def program_of(run: config.Run, execution: config.Execution, members: int, corpus: corpora.Corpus) -> step.Program:
    """The program by which `train` trains a pack of runs like this one; compiled here if nowhere before."""
    tokens = (len(corpus.train), corpus.train.dtype) if corpus.train.nbytes <= RESIDENT_BYTES else None
    return step.program(run, execution, members, tokens)


class _Job:
    """A member while it trains: how far it is, what it needs for its next steps, and how it ended."""

    def __init__(self, index: int, member: Member, execution: config.Execution, corpus: corpora.Corpus):
        run = member.run
        self.index = index
        self.member = member
        self.rates = run.schedule.values(run.optimizer.learning_rate, run.steps, run.batch_tokens)
        self.decays = run.optimizer.decay(self.rates).astype(np.float32)
        self.data = batches.Batches(corpus.train, run.context, run.batch_size, run.seed)
        self.saved = checkpoint.Checkpoints(member.checkpoints, run.run_id(corpus.data_sha256), member.branches)
        self.ends = _evaluation_steps(run.steps, execution.evaluations)
        self.stops = sorted({*self.ends, *member.branches})
        self.keep_last = execution.keep_last_checkpoint
        self.flops_per_token = counting.flops_per_token(run.model, run.vocabulary_size, run.context)
        self.at = self.start = 0
        self.seconds = self.told = 0.0
        self.moments: list[tuple[np.ndarray, np.ndarray]] = []  # of the gradient, since the last validation
        self.saved_at: int | None = None
        self.outcome: Outcome | None = None

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None

    def begin(self, program: step.Program) -> step.State:
        """The state to go on from: of its own newest checkpoint, of its trunk, or of its seed."""
        run, trunk = self.member.run, self.member.trunk
        self.start = trunk.step if trunk is not None else 0
        restored = self.saved.restore(program.shapes)
        if restored is None and trunk is not None:
            restored = checkpoint.Checkpoints(trunk.checkpoints, trunk.run_id).restore(program.shapes, trunk.step)
            if restored is None:
                raise ValueError(f"trunk {trunk.run_id} has no checkpoint of step {trunk.step}; train the trunk again")
            restored[1]["seconds"] = 0.0
        if restored is None:
            return program.init(np.uint32(run.seed), np.float32(run.parametrization.init_scale))
        state, notes = restored
        self.at, self.seconds = notes["step"], notes["seconds"]
        return state

    def cost(self, steps: int) -> dict[str, Any]:
        """What `steps` steps have cost, those of the trunk too."""
        tokens = steps * self.member.run.batch_tokens
        return {"step": steps, "tokens": tokens, "flops": tokens * self.flops_per_token}

    def read(self, start: int, values: Mapping[str, np.ndarray], peak: float | None) -> None:
        """Record the metrics of steps from `start` on, and note a divergence. Rates of work are means over them."""
        bad = np.flatnonzero(~np.isfinite(values["loss"]) | ~np.isfinite(values["gradient_norm"]))
        count = len(values["loss"])
        speed = count * self.member.run.batch_tokens / max(self.seconds - self.told, 1e-9)
        self.told = self.seconds
        if "gradient_squared" in values:
            self.moments.append((values["gradient_squared"], values["gradient_variance"]))
        work = {"tokens_per_second": speed, "flops_per_second": speed * self.flops_per_token}
        if peak is not None:
            work["mfu"] = work["flops_per_second"] / peak
        self.member.record(
            [
                {
                    "kind": "train",
                    **self.cost(start + i + 1),
                    **{name: float(column[i]) for name, column in values.items()},
                    "learning_rate": float(self.rates[start + i]),
                    **work,
                }
                for i in range(count)
            ]
        )
        if len(bad):
            first = int(bad[0])
            loss, norm = values["loss"][first], values["gradient_norm"][first]
            self.end("diverged", f"training loss is {loss} and gradient norm {norm} at step {start + first + 1}")

    def validated(self, result: Validation) -> None:
        """Record a validation, unless the run has ended; the last one is its result."""
        if not self.going:
            return
        measured = dataclasses.asdict(result)
        row = {"kind": "validation", **self.cost(self.at), "seconds": self.seconds, **measured}
        if self.moments:
            squared, variance = map(np.concatenate, zip(*self.moments, strict=True))
            row |= dataclasses.asdict(noise.scale(squared, variance, self.member.run.context))
            self.moments.clear()
        self.member.record([row])
        if not math.isfinite(result.loss):
            self.end("diverged", f"validation loss is {result.loss} at step {self.at}")
        elif self.at == self.member.run.steps:
            self.outcome = Outcome("finished", "", self.at, self.seconds, **measured, start=self.start)

    def save(self, program: step.Program, pack: step.State) -> None:
        """Save a checkpoint in the background, unless there is one of this step or the run has not ended well."""
        if self.saved_at != self.at and (self.outcome is None or self.outcome.status == "finished"):
            self.saved.save(self.at, program.member(pack, self.index), {"seconds": self.seconds})
            self.saved_at = self.at

    def end(self, status: Literal["diverged", "stopped"], reason: str) -> None:
        """Note an end without a result, unless the run has ended."""
        if self.going:
            self.outcome = Outcome(status, reason, self.at, self.seconds, start=self.start)

    def close(self, program: step.Program, pack: step.State) -> None:
        """Leave the checkpoints as they are to stay: a run that has ended keeps its last one, if any."""
        assert self.outcome is not None
        if self.outcome.status != "stopped":
            keep = bool(self.keep_last and self.outcome.status == "finished")  # a diverged state is of no use
            if keep:
                self.save(program, pack)
            if not self.member.stop():  # else another may have the run by now, restoring what would be removed
                if keep or self.member.branches:
                    self.saved.remove_older_attempts()
                else:
                    self.saved.remove()
        self.saved.close()


class Clock:
    """Shares the seconds that pass among the jobs that were going, as they did on the devices."""

    def __init__(self, jobs: Sequence[_Job]):
        self.jobs = jobs
        self.last = time.perf_counter()
        peak = devices.peak_flops(jax.local_devices()[0].device_kind)
        self.peak = None if peak is None else peak * jax.device_count()

    def charge(self) -> None:
        """Give every job that has not ended its share of the time since the last call."""
        now = time.perf_counter()
        going = [job for job in self.jobs if job.going]
        for job in going:
            job.seconds += (now - self.last) / len(going)
        self.last = now


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Steps to be dispatched: from where and how many, by job; and their metrics, once they were."""

    jobs: Sequence[_Job]
    starts: Sequence[int]
    counts: Sequence[int]
    metrics: step.Metrics | None = None

    def of_those_going(self) -> "_Chunk":
        """The chunk without steps for jobs that have ended meanwhile."""
        return dataclasses.replace(
            self, counts=[n if job.going else 0 for job, n in zip(self.jobs, self.counts, strict=True)]
        )

    def data(self, program: step.Program) -> list[np.ndarray]:
        """This process's rows of the batches of each job, or where they begin in the tokens on the device."""
        found = []
        for job, at, count in zip(self.jobs, self.starts, self.counts, strict=True):
            share = job.data.batch_size // jax.process_count()
            mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
            found.append((job.data.chunk if program.resident is None else job.data.starts)(at, count, mine))
        return found


def _chunks(jobs: Sequence[_Job], most: int) -> list[_Chunk]:
    """Chunks of up to `most` steps, each job's to its next stop at most, until all have done their steps."""
    at = [job.at for job in jobs]
    chunks: list[_Chunk] = []
    while True:
        nexts = [min((s for s in job.stops if s > here), default=here) for job, here in zip(jobs, at, strict=True)]
        counts = [min(most, stop - here) for stop, here in zip(nexts, at, strict=True)]
        if not any(counts):
            return chunks
        chunks.append(_Chunk(jobs, at, counts))
        at = [here + count for here, count in zip(at, counts, strict=True)]


def _feed(chunks: list[_Chunk], program: step.Program) -> Iterator[tuple[_Chunk, list[np.ndarray]]]:
    """Every chunk with its data. Windows of a corpus that is not on the device are read ahead, by Grain."""
    if program.resident is not None or not chunks:
        yield from ((chunk, chunk.data(program)) for chunk in chunks)
        return
    import grain

    places = grain.MapDataset.range(len(chunks)).map(lambda index: chunks[index].data(program))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    yield from zip(chunks, places.to_iter_dataset(ahead), strict=True)


AHEAD = 2  # chunks whose windows are read while the device works


def _dispatch(chunk: _Chunk, data: Sequence[np.ndarray], program: step.Program) -> step.Dispatch:
    """The arrays of a chunk."""
    members = []
    for job, at, count, batch in zip(chunk.jobs, chunk.starts, chunk.counts, data, strict=True):
        here = slice(at, at + count)
        members.append(
            step.dispatch(job.member.run, batch[:count], job.rates[here], job.decays[here], program.steps_per_dispatch)
        )
    return step.together(members)


def _read(chunk: _Chunk | None, clock: Clock) -> None:
    """Wait for a chunk's metrics, and give each job its own."""
    if chunk is None or chunk.metrics is None:
        return
    metrics = {name: np.asarray(values) for name, values in chunk.metrics._asdict().items() if values is not None}
    clock.charge()
    for index, (job, start, count) in enumerate(zip(chunk.jobs, chunk.starts, chunk.counts, strict=True)):
        if count and job.going:
            job.read(start, {name: values[index, :count] for name, values in metrics.items()}, clock.peak)


def validate(program: step.Program, params: step.Params, run: config.Run, corpus: corpora.Corpus) -> list[Validation]:
    """Loss of every member on every validation token.

    The standard error is that of the mean over sequences: tokens in one are kin.
    """
    windows = batches.validation_windows(corpus, run.context)
    size = program.validation_batch
    share = size // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    blocks = []
    for first in range(0, len(windows), size):
        block = _pad(windows[first : first + size], size)
        nats = program.evaluate(params, mesh.put(program.mesh, block[mine], ("batch", None)))
        blocks.append(np.asarray(nats, np.float64)[:, : len(windows) - first].mean(axis=2))
    bytes_seen = corpus.token_bytes[windows[:, 1:]].sum()
    results = []
    for means in np.concatenate(blocks, axis=1):
        error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        bits = means.sum() * run.context / math.log(2) / bytes_seen
        results.append(Validation(float(means.mean()), float(error), float(bits)))
    return results


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
