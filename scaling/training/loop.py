"""Train a pack of runs from their configs to their outcomes: the only clock and the only side effects of training.

Read top to bottom: restore or initialise every member, then chunks of steps for all of them at once; the metrics of a
chunk are read after the next one is dispatched, so that the device never waits for the host. A run alone is a pack of
one. A member that has finished or diverged is frozen while the others go on.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from scaling import config, counting, devices
from scaling.data import batches
from scaling.data import corpus as corpora
from scaling.training import checkpoint, mesh, processes, step
from scaling.training.members import Chunk, Job, Member, Outcome, Trunk, Validation, chunks

__all__ = ["Member", "Outcome", "Trunk", "Validation", "program_of", "train", "validate"]


def train(members: Sequence[Member], execution: config.Execution, corpus: corpora.Corpus) -> list[Outcome]:
    """Train runs that share a program until each finishes, diverges, or is stopped, saved so that it can go on."""
    program = program_of(members[0].run, execution, len(members), corpus)
    processes.gather(None)  # some compile longer than others wait for them at their first computation together
    tokens = np.empty(0, np.int32) if program.resident is None else corpus.train
    checkpoint.check_space(members[0].checkpoints[-1], [program.shapes] * len(members), len(members[0].branches))
    jobs = [Job(index, member, execution, corpus) for index, member in enumerate(members)]
    state = program.stack([job.begin(program) for job in jobs])
    on_device = mesh.put(program.mesh, np.asarray(tokens), (None,))
    clock = Clock(jobs)
    pending: Chunk | None = None
    last_save = time.monotonic()
    anyone = mesh.Anyone(program.mesh)

    most = processes.by_one(lambda: at_once(members[0].run, len(members), program.steps_per_dispatch))
    for chunk, data in _feed(chunks(jobs, most), program):
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
        late, *asked = anyone.says(
            [
                time.monotonic() - last_save >= execution.checkpoint_seconds,
                *(job.going and job.member.stop() for job in jobs),
            ]
        )
        stopping = [job for job, stop in zip(jobs, asked, strict=True) if job.going and stop]
        saving = [job for job in jobs if job.going and (late or job in stopping or job.at in job.member.branches)]
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
            anyone.forget()
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


DISPATCH_SECONDS = 10.0  # a request to stop is heeded after a dispatch or two: well within what clusters grant
SHARE = 0.3  # of a device's peak that a step of a large model reaches at least
CPU_FLOPS = 2e10  # a second and core, likewise


def at_once(run: config.Run, members: int, most: int) -> int:
    """How many steps of a pack to dispatch at once: `most`, or as many as take about `DISPATCH_SECONDS` here."""
    work = members * run.batch_tokens * counting.flops_per_token(run.model, run.vocabulary_size, run.context)
    peak = devices.peak_flops(jax.local_devices()[0].device_kind)
    rate = CPU_FLOPS * len(devices.cores()) if peak is None else SHARE * peak * jax.device_count()
    return max(1, min(most, int(DISPATCH_SECONDS * rate / work)))


class Clock:
    """Shares the seconds that pass among the jobs that were going, as they did on the devices."""

    def __init__(self, jobs: Sequence[Job]):
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


def _feed(planned: list[Chunk], program: step.Program) -> Iterator[tuple[Chunk, list[np.ndarray]]]:
    """Every chunk with its data. Windows of a corpus that is not on the device are read ahead, by Grain."""
    if program.resident is not None or not planned:
        yield from ((chunk, chunk.data(program)) for chunk in planned)
        return
    import grain

    windows = grain.MapDataset.range(len(planned)).map(lambda index: planned[index].data(program))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    yield from zip(planned, windows.to_iter_dataset(ahead), strict=True)


AHEAD = 2  # chunks whose windows are read while the device works


def _dispatch(chunk: Chunk, data: Sequence[np.ndarray], program: step.Program) -> step.Dispatch:
    """The arrays of a chunk."""
    members = []
    for job, at, count, batch in zip(chunk.jobs, chunk.starts, chunk.counts, data, strict=True):
        here = slice(at, at + count)
        members.append(
            step.dispatch(job.member.run, batch[:count], job.rates[here], job.decays[here], program.steps_per_dispatch)
        )
    return step.together(members)


def _read(chunk: Chunk | None, clock: Clock) -> None:
    """Wait for a chunk's metrics, and give each job its own."""
    if chunk is None or chunk.metrics is None:
        return
    metrics = {name: values for name, values in jax.device_get(chunk.metrics)._asdict().items() if values is not None}
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
    mine = mesh.rows(program.mesh, size)
    blocks = []
    for first in range(0, len(windows), size):
        block = _pad(windows[first : first + size], size)
        nats = program.evaluate(params, mesh.put(program.mesh, block[mine], ("batch", None)))
        blocks.append(np.asarray(jax.device_get(nats), np.float64)[:, : len(windows) - first].mean(axis=2))
    bytes_seen = corpus.token_bytes[windows[:, 1:]].sum()
    results = []
    for means in np.concatenate(blocks, axis=1):
        error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        bits = means.sum() * run.context / math.log(2) / bytes_seen
        results.append(Validation(float(means.mean()), float(error), float(bits)))
    return results


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """The array with rows of zeros up to `length`: shapes stay those that were compiled."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])
