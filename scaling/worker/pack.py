"""Runs that train together as one program, checked against the corpus that they were planned on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from scaling import config
from scaling.store import record
from scaling.training import processes
from scaling.worker import context

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import loop

Before = Callable[["Pack", "corpora.Corpus"], object]


@dataclasses.dataclass(frozen=True)
class PackedRun:
    """A run of a pack: its id, what the loop is given, and the identity of the corpus that it was planned on."""

    run_id: str
    training: "loop.TrainingRun"
    stored: record.Stored


@dataclasses.dataclass(frozen=True)
class Pack:
    """Runs to be trained together."""

    runs: Sequence[PackedRun]
    execution: config.Execution

    def train(self, trainer: context.Trainer, log: Callable[[str], None], before: Before) -> "list[loop.Outcome]":
        """Prepare the corpus, call `before` with it, and train.

        Raises ValueError where the data has changed since the plan.
        """
        corpus = trainer.prepare(self.runs[0].training.run.data, log)
        for packed in self.runs:
            for name, planned in dataclasses.asdict(packed.stored).items():
                if getattr(corpus, name) != planned:
                    raise ValueError(
                        f"the corpus of run {packed.run_id} has {name} {getattr(corpus, name)} and was planned with "
                        f"{planned}; restore the data, or start the sweep again to plan runs on the new data"
                    )
        processes.gather(None)  # a barrier: other hosts may still prepare their corpus
        before(self, corpus)
        return trainer.train([packed.training for packed in self.runs], self.execution, corpus)
