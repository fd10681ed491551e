"""Trains a pack of claimed runs, here and in the processes that compute with this one, and ends each of them."""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from scaling.storage import retry
from scaling.store import lease as leases
from scaling.store import record
from scaling.training import processes, trackers
from scaling.worker import context, endings, faults, followers, pack, precompile, queue

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import loop


class PackTrainer:
    """Trains packs of runs and has `endings` store how each ended."""

    def __init__(self, work: context.WorkerContext, precompiler: precompile.Precompiler, ends: endings.Endings):
        self.work = work
        self.precompiler = precompiler
        self.endings = ends
        self.trackers = trackers.Trackers(work.sweep.trackers, work.log)
        self._sequences = 0  # of one forward pass; at most, until the program is compiled

    def train(self, claims: Sequence[queue.Claim]) -> list[endings.Ended]:
        """Train a pack and store how each run ended; returns that of each."""
        started = [self._start(claim, index) for index, claim in enumerate(claims)]
        known = [(claim, self._diverged_with_trunk(claim.run)) for claim in started]
        ended = [self.endings.end(claim, outcome) for claim, outcome in known if outcome is not None]
        training = [claim for claim, outcome in known if outcome is None]
        try:
            outcomes = self._outcomes(training) if training else []
        except Exception as error:  # of the runs themselves, whatever it is: stored with them, and the others go on
            trace = traceback.format_exc()
            return ended + [
                self.endings.fail(claim, error, trace, pack=len(training), sequences=self._sequences)
                for claim in training
            ]
        self.endings.infrastructure_works()
        return ended + [self.endings.end(claim, outcome) for claim, outcome in zip(training, outcomes, strict=True)]

    def _start(self, claim: queue.Claim, index: int) -> queue.Claim:
        """The claim with its tracker, which has started the run."""
        queued, work = claim.run, self.work
        work.log(f"{queued.run_id} attempt {claim.lease.attempt}: {record.describe(queued.counted)}")
        name, resolved = record.name_of(queued.counted, queued.run_id), dict(queued.counted)
        resolved["run"] = queued.run.model_dump(mode="json")
        tracker = self.trackers.recorder(index)
        tracker.start(queued.run_id, name, work.sweep_name, resolved, work.results.folder(queued.run_id))
        return dataclasses.replace(claim, tracker=tracker)

    def _diverged_with_trunk(self, queued: queue.QueuedRun) -> "loop.Outcome | None":
        """The end of a branch whose trunk diverged before the branch leaves it: the branch takes the same steps."""
        if queued.trunk is None or self.work.runs.has_trunk(queued):
            return None
        result = self.work.runs.trunk_result(queued.trunk)
        if result is None or result[1]["status"] != "diverged":
            return None
        trunk, row = result
        reached, step = round(row["flops_spent"] / row["flops"] * trunk.run.steps), queued.branch_step
        if step < reached:  # it leaves before the divergence, at a step without a checkpoint: trained from its start
            return None
        from scaling.training import loop

        return loop.Outcome("diverged", f"its trunk {queued.trunk} diverged: {row['reason']}", step, 0.0, start=step)

    def _outcomes(self, claims: Sequence[queue.Claim]) -> "list[loop.Outcome]":
        """Train the runs, here and in the processes that compute with this one."""
        microbatch = claims[0].lease.microbatch
        execution = self.work.execution if microbatch is None else self.work.execution.edit({"microbatch": microbatch})
        runs = [pack.PackedRun(claim.run.run_id, self._training_run(claim), claim.run.stored) for claim in claims]
        together = pack.Pack(runs, execution)
        self._sequences = execution.sequences(claims[0].run.run.batch_size)
        followers.broadcast(together)
        train = functools.partial(together.train, self.work.trainer, self.work.log, self._before)
        outcomes = processes.together(train, faults.kind)
        self.work.stop.anywhere()  # takes the number of the signal that stopped them, where another process got it
        return outcomes

    def _before(self, together: pack.Pack, corpus: "corpora.Corpus") -> None:
        """Have the program of a pack compiled, and note how many sequences it computes at once."""
        run, members = together.runs[0].training.run, len(together.runs)
        if together.execution == self.work.execution:
            self.precompiler.programs.compile(run, members)
        self._sequences = self.work.trainer.program_of(run, together.execution, members, corpus).microbatch

    def _training_run(self, claim: queue.Claim) -> "loop.TrainingRun":
        """The run for the loop. A branch whose trunk has no checkpoint for it is trained from its own start."""
        from scaling.training import loop

        queued, lease, trunk = claim.run, claim.lease, None
        if queued.trunk is not None and self.work.runs.has_trunk(queued):
            trunk = loop.Trunk(self.work.results.checkpoints(queued.trunk), queued.trunk, queued.branch_step)
        return loop.TrainingRun(
            queued.run,
            lease.checkpoints,
            claim.keep,
            lambda: self.work.stop() or lease.lost,
            trunk,
            queued.branches,
            functools.partial(self._save, lease),
        )

    def _save(self, lease: leases.Lease, write: Callable[[], None]) -> None:
        """Write a checkpoint, after the metrics of the steps before it; retried while the disk is full.

        A superseded attempt writes none: its successor may have ended the run, and no process would remove it.
        """
        lease.flush()
        if processes.several():  # they write one checkpoint together, and no process may repeat its part alone
            write()
        elif not lease.lost:
            retry.call(write, self.work.waiter)
