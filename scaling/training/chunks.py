"""The steps of a pack in chunks, one a dispatch, with the data that each needs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from scaling.training import mesh, programs, steps, updates
from scaling.training.runs import TrainingRun

AHEAD = 2  # chunks whose batches are read while the device works


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Steps to be dispatched: from where and how many, by run; and their metrics, once they were."""

    runs: Sequence[TrainingRun]
    starts: Sequence[int]
    counts: Sequence[int]
    metrics: updates.Metrics | None = None

    def of_those_going(self) -> "Chunk":
        """The chunk without steps for runs that have ended meanwhile."""
        return dataclasses.replace(
            self, counts=[n if run.going else 0 for run, n in zip(self.runs, self.counts, strict=True)]
        )

    def data(self, program: programs.Program) -> list[Any]:
        """This process's rows of the batches of each run, or the places of their examples on the device."""
        batches = []
        for run, at, count in zip(self.runs, self.starts, self.counts, strict=True):
            mine = mesh.rows(program.mesh, run.run.batch_size)
            batches.append((run.batches.places if program.resident else run.batches.chunk)(at, count, mine))
        return batches

    def dispatch(self, data: Sequence[Any], program: programs.Program) -> steps.Dispatch:
        """The arrays of the dispatch; `data` may be of more steps than are left of a chunk."""
        members = []
        for run, at, count, batch in zip(self.runs, self.starts, self.counts, data, strict=True):
            here = slice(at, at + count)
            kept = {name: x[:count] for name, x in batch.items()} if isinstance(batch, dict) else batch[:count]
            length = program.steps_per_dispatch
            members.append(steps.dispatch(run.run, kept, run.rates[here], run.decays[here], length, at))
        return steps.together(members)


def planned(runs: Sequence[TrainingRun], most: int) -> list[Chunk]:
    """Chunks of up to `most` steps, each run's to its next stop at most, until all have done their steps."""
    at = [run.at for run in runs]
    chunks: list[Chunk] = []
    while True:
        nexts = [min((s for s in run.stops if s > here), default=here) for run, here in zip(runs, at, strict=True)]
        counts = [min(most, stop - here) for stop, here in zip(nexts, at, strict=True)]
        if not any(counts):
            return chunks
        chunks.append(Chunk(runs, at, counts))
        at = [here + count for here, count in zip(at, counts, strict=True)]


def feed(chunks: list[Chunk], program: programs.Program) -> Iterator[tuple[Chunk, list[Any]]]:
    """Every chunk with its data. Batches of examples that are not on the device are read ahead, by Grain."""
    if program.resident or not chunks:
        yield from ((chunk, chunk.data(program)) for chunk in chunks)
        return
    import grain

    batches = grain.MapDataset.range(len(chunks)).map(lambda index: chunks[index].data(program))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    yield from zip(chunks, batches.to_iter_dataset(ahead), strict=True)
