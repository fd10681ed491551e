"""Train a pack of runs from their configs to their outcomes: the only clock and the only side effects of training.

Read top to bottom: restore or initialise every run, then chunks of steps for all of them at once; the metrics of a
chunk are read after the next one is dispatched, so that the device never waits for the host. A run alone is a pack of
one. A run that has finished or diverged is frozen while the others go on.
"""

import dataclasses
import time
from collections.abc import Sequence

import jax

from scaling import config, counting, devices
from scaling.data import corpus as corpora
from scaling.training import checkpoint, chunks, evaluation, mesh, processes, programs
from scaling.training.chunks import Chunk
from scaling.training.runs import Outcome, TrainingRun, Trunk

__all__ = ["Outcome", "TrainingRun", "Trunk", "program_of", "train"]


def train(runs: Sequence[TrainingRun], execution: config.Execution, corpus: corpora.Corpus) -> list[Outcome]:
    """Train runs that share a program until each finishes, diverges, or is stopped, saved so that it can go on."""
    program = program_of(runs[0].run, execution, len(runs), corpus)
    processes.gather(None)  # some compile longer than others wait for them at their first computation together
    kept = max(len(run.branches) for run in runs)
    checkpoint.check_space(runs[0].checkpoints[-1], [program.shapes] * len(runs), kept)
    pack = TrainingPack(program, runs, execution, corpus)
    most = processes.by_leader(lambda: at_once(runs[0].run, len(runs), program.steps_per_dispatch))
    for chunk, data in chunks.feed(chunks.planned(runs, most), program):
        chunk = chunk.of_those_going()
        if not any(chunk.counts):
            break
        pack.dispatch(chunk, data)
        pack.after_dispatch()
    return pack.close()


RESIDENT_BYTES = 2**28  # of examples that are kept on the device; of larger data batches are sent


def program_of(run: config.Run, execution: config.Execution, members: int, corpus: corpora.Corpus) -> programs.Program:
    """The program by which `train` trains a pack of runs like this one; compiled here if nowhere before."""
    examples = corpus.train_examples(run.context)
    resident = sum(array.nbytes for array in examples.arrays.values()) <= RESIDENT_BYTES
    return programs.program(run, execution, members, examples.layout(resident))


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
    """Shares the seconds that pass among the runs that were going, as they did on the devices."""

    def __init__(self, runs: Sequence[TrainingRun]):
        self.runs = runs
        self.last = time.perf_counter()
        peak = devices.peak_flops(jax.local_devices()[0].device_kind)
        self.peak = None if peak is None else peak * jax.device_count()

    def charge(self) -> None:
        """Give every run that has not ended its share of the time since the last call."""
        now = time.perf_counter()
        going = [run for run in self.runs if run.going]
        for run in going:
            run.seconds += (now - self.last) / len(going)
        self.last = now


class TrainingPack:
    """Runs that train together: their state on the devices, the chunk whose metrics are not read yet, and the clock."""

    def __init__(
        self,
        program: programs.Program,
        runs: Sequence[TrainingRun],
        execution: config.Execution,
        corpus: corpora.Corpus,
    ):
        self.program, self.runs, self.corpus = program, runs, corpus
        self.checkpoint_seconds = execution.checkpoint_seconds
        for index, run in enumerate(runs):
            run.prepare(index, execution, corpus)
        self.state = program.stack([run.begin(program) for run in runs])
        self.resident = program.put_resident(corpus.train_examples(runs[0].run.context))
        self.clock = Clock(runs)
        self.pending: Chunk | None = None
        self.last_save = time.monotonic()
        self.any_process = mesh.AnyReduce(program.mesh)

    def dispatch(self, chunk: Chunk, data: list[object]) -> None:
        """Dispatch a chunk, then read the metrics of the one before it while the devices work."""
        with jax.profiler.StepTraceAnnotation("dispatch", step_num=max(chunk.starts)):
            sent = self.program.put(chunk.dispatch(data, self.program))
            self.state, metrics = self.program.train(self.state, self.resident, sent)
        self.read()
        self.pending = dataclasses.replace(chunk, metrics=metrics)
        for run, count in zip(self.runs, chunk.counts, strict=True):
            run.at += count

    def after_dispatch(self) -> None:
        """After a dispatch: validate, save and stop the runs for which it is time."""
        going = [run for run in self.runs if run.going]
        due = [run for run in going if run.at in run.ends]
        late, stopping = self._asked()
        saving = going if late else [run for run in going if run in stopping or run.at in run.branches]
        if due or saving:
            self.read()
        if any(run.going for run in due):
            self.validate(due)
        for run in saving:
            run.save_checkpoint(self.program, self.state)
        if late:
            self.last_save = time.monotonic()
            self.any_process.reset()
        for run in stopping:
            run.end("stopped", "asked to stop")

    def _asked(self) -> tuple[bool, list[TrainingRun]]:
        """Whether it is time to save all runs, and which are to stop; the same in all processes."""
        late, *stops = self.any_process.poll(
            [
                time.monotonic() - self.last_save >= self.checkpoint_seconds,
                *(run.going and run.stop() for run in self.runs),
            ]
        )
        return late, [run for run, stop in zip(self.runs, stops, strict=True) if run.going and stop]

    def read(self) -> None:
        """Wait for the metrics of the pending chunk, if any, and give each run its own."""
        chunk, self.pending = self.pending, None
        if chunk is None or chunk.metrics is None:
            return
        fetched = jax.device_get(chunk.metrics)._asdict()
        metrics = {name: values for name, values in fetched.items() if values is not None}
        self.clock.charge()
        for index, (run, start, count) in enumerate(zip(chunk.runs, chunk.starts, chunk.counts, strict=True)):
            if count and run.going:
                run.read(start, {name: values[index, :count] for name, values in metrics.items()}, self.clock.peak)

    def validate(self, due: Sequence[TrainingRun]) -> None:
        """Validate the pack, for the runs that are due."""
        results = evaluation.validate(self.program, self.state.params, self.runs[0].run, self.corpus)
        self.clock.charge()
        for run in due:
            run.validated(results[run.index])

    def close(self) -> list[Outcome]:
        """The outcomes. A run that was restored at its last step is validated: an earlier attempt ended between its
        checkpoint and its result."""
        restored = [run for run in self.runs if run.going]
        if restored:
            self.validate(restored)
        for run in self.runs:
            run.close(self.program, self.state)
        return [run.outcome for run in self.runs if run.outcome is not None]
