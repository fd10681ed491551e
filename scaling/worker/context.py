"""What the parts of one worker share: the sweep and its queue, the store, the trainer, and the devices here."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scaling import config, memory, store
from scaling.planning import packing
from scaling.storage import retry
from scaling.worker import protocol, queue, signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaling.data import corpus as corpora
    from scaling.training import loop, programs


class Trainer:
    """Trains packs of runs by `scaling.training.loop`. JAX and Flax are imported by the first call."""

    def prepare(self, data: config.Data, log: Callable[[str], None]) -> "corpora.Corpus":
        """The corpus of a config, built unless it is in the cache."""
        from scaling.data import corpus

        return corpus.prepare(data, log)

    def program_of(
        self, run: config.Run, execution: config.Execution, members: int, corpus: "corpora.Corpus"
    ) -> "programs.Program":
        """The program that trains a pack of `members` such runs, compiled or loaded."""
        from scaling.training import loop

        return loop.program_of(run, execution, members, corpus)

    def train(
        self, members: "Sequence[loop.TrainingRun]", execution: config.Execution, corpus: "corpora.Corpus"
    ) -> "list[loop.Outcome]":
        """Train runs that share a program until each finishes, diverges or is stopped."""
        from scaling.training import loop

        return loop.train(members, execution, corpus)


TRAINER = Trainer()


@dataclasses.dataclass(frozen=True)
class WorkerContext:
    """A worker's sweep and means, which its parts (`packs`, `endings`, `precompile`) share. `runs` are those left."""

    results: store.Store
    sweep_name: str
    sweep: config.Sweep
    runs: queue.Queue
    trainer: Trainer
    about: Mapping[str, Any]  # `provenance.environment`
    stop: signals.Stop
    waiter: retry.Waiter
    log: Callable[[str], None]

    @property
    def execution(self) -> config.Execution:
        """How the sweep is computed."""
        return self.sweep.execution

    def check_memory(self) -> None:
        """Refuse the sweep where a run that is left cannot fit the devices. Raises ValueError."""
        import jax

        limit, cpu, where = memory.limit(), jax.default_backend() == "cpu", f"a device here ({self.about['device']})"
        if limit is None:
            return
        for queued in self.runs.left():
            name, devices = f"run {queued.run_id}", jax.device_count()
            memory.check(name, queued.run, self.execution, limit, where, cpu=cpu, devices=devices)

    def most(self, queued: queue.QueuedRun) -> int:
        """How many runs like this to train together here, leaving their share to the other workers."""
        import jax

        device = jax.local_devices()[0]
        need = memory.needed(queued.run, self.execution, devices=jax.device_count())
        most = packing.most(queued.run, self.execution, device.device_kind, need, memory.limit())
        alike = sum(packing.key(other.run) == packing.key(queued.run) for other in self.runs.left())
        return min(most, math.ceil(alike / int(os.environ.get(protocol.WORKERS, "1"))))
