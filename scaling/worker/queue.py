"""What of a sweep a worker may train now: runs in the order that packs a pool best, trunks before their branches.

A branch is claimed once its trunk has the checkpoint that it starts from, or has ended without it. A worker waits for a
trunk only while another worker holds its lease. A run with an unreadable config or lease is skipped and logged once.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scaling import config, store
from scaling.config import trunks
from scaling.planning import packing
from scaling.storage import errors
from scaling.store import lease as leases
from scaling.store import record
from scaling.training import trackers

WAIT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class QueuedRun:
    """A run of a sweep. `trunk` is the run id of its trunk; `branches` are the steps at which others leave this one."""

    run_id: str
    run: config.Run
    stored: record.Stored
    counted: Mapping[str, Any]
    labels: Mapping[str, Any]
    trunk: str | None
    branches: tuple[int, ...]

    @property
    def branch_step(self) -> int:
        """The step at which it leaves its trunk."""
        return trunks.branch_step(self.run)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run whose lease this worker holds, with the tracker of its metrics."""

    run: QueuedRun
    lease: leases.Lease
    tracker: trackers.Recorders = dataclasses.field(default_factory=trackers.nothing)

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Store rows of metrics."""
        self.lease.metrics(rows)
        self.tracker.log(rows)


class Queue:
    """The runs of a sweep that have no result; the configs of those that have one are not read.

    Raises ValueError where no run that is left is readable.
    """

    def __init__(self, results: store.Store, sweep_name: str, log: Callable[[str], None]):
        self.results = results
        self.log = log
        members = results.sweep(sweep_name)["members"]
        self._labels = {member["run_id"]: member["labels"] for member in members}
        self._open = set(self._labels) - results.ended(self._labels)
        self._read: dict[str, tuple[config.Run, record.Stored]] = {}
        damage = [error for run_id in self._labels if run_id in self._open and (error := self._unreadable(run_id))]
        if damage and not self._read:
            raise damage[0]
        self._branches: dict[str, set[int]] = {}
        for run_id, (run, _) in self._read.items():
            parent = self._labels[run_id].get("parent_run_id")
            if parent is not None:
                self._branches.setdefault(parent, set()).add(trunks.branch_step(run))
        self.runs = {run_id: self.run(run_id) for run_id in self._read}

    def run(self, run_id: str) -> QueuedRun:
        """A run of the sweep, of those with a result too. Raises ValueError where its config is unreadable."""
        if run_id not in self._read:
            self._read[run_id] = record.read(self.results.config(run_id))
        run, stored = self._read[run_id]
        return QueuedRun(
            run_id=run_id,
            run=run,
            stored=stored,
            counted=record.columns(run, stored),
            labels=self._labels[run_id],
            trunk=self._labels[run_id].get("parent_run_id"),
            branches=tuple(sorted(self._branches.get(run_id, ()))),
        )

    def known(self) -> set[str]:
        """The runs that had no result when this queue was made, and their trunks."""
        return self.runs.keys() | {run.trunk for run in self.runs.values() if run.trunk is not None}

    def claims(
        self, owner: str, about: Mapping[str, Any], limit: Callable[[QueuedRun], int], stop: Callable[[], bool]
    ) -> Iterator[list[Claim]]:
        """Packs of one run or up to `limit(run)`, until no run can be claimed or `stop()` is true."""
        logged = False
        while not stop():
            left = self.left()
            waiting = any(self._waits(run) for run in left)
            pack = self._claim(left, owner, about, limit)
            if pack:
                logged = False
                yield pack
            elif waiting or any(self._waits(run) for run in left):  # a trunk may end, or be claimed, in between
                if not logged:
                    self.log("waiting for trunks that other workers train")
                logged = True
                time.sleep(WAIT_SECONDS)
            else:
                return

    def left(self) -> list[QueuedRun]:
        """Readable runs without a result: trunks first, and the longest first, which packs a pool best.

        By the seconds that were predicted when the sweep was planned, where they were: FLOPs alone put off small models
        that take long, and one core idled at the end of a sweep.
        """

        def order(run: QueuedRun) -> tuple[bool, float, float]:
            return bool(run.branches), run.labels.get("predicted_seconds", 0.0), run.counted["flops"]

        self._open -= self.results.ended(self._open)
        return sorted((run for run in self.runs.values() if run.run_id in self._open), key=order, reverse=True)

    def status(self, run_id: str) -> str:
        """The status of a run, or that of a damaged one where a file of it is unreadable."""
        try:
            return self.results.status(run_id)["status"]
        except errors.UnreadableError:
            return store.DAMAGED

    def ready(self, run: QueuedRun) -> bool:
        """Whether a run can start: it has no trunk, or its trunk has the checkpoint, or will have no other."""
        if run.trunk is None or self.results.has_checkpoint(run.run_id) or self.has_trunk(run):
            return True
        return self.status(run.trunk) in ("finished", "diverged", "failed", store.DAMAGED)

    def has_trunk(self, run: QueuedRun) -> bool:
        """Whether the trunk has a checkpoint at the step where the run leaves it."""
        return run.trunk is not None and self.results.has_checkpoint(run.trunk, run.branch_step)

    def trunk_result(self, trunk: str) -> tuple[QueuedRun, dict[str, Any]] | None:
        """A trunk and its result; None where it has none or is damaged."""
        try:
            row = self.results.result(trunk)
            return None if row is None else (self.run(trunk), row)
        except ValueError:
            return None

    def _claim(
        self, left: list[QueuedRun], owner: str, about: Mapping[str, Any], limit: Callable[[QueuedRun], int]
    ) -> list[Claim]:
        """The next pack. Suspects, which may crash workers, only where no other run can be claimed, each alone."""
        for suspects in (False, True):
            pack: list[Claim] = []
            most = 1
            for run in left:
                if (pack and packing.key(run.run) != packing.key(pack[0].run.run)) or not self.ready(run):
                    continue
                try:
                    lease = self.results.claim(run.run_id, owner, about, joining=bool(pack), suspects=suspects)
                except errors.UnreadableError as error:
                    self._skip(run.run_id, error)
                    continue
                if lease is None:
                    continue
                if not pack:
                    most = 1 if lease.alone or suspects else limit(run)
                pack.append(Claim(run, lease))
                if len(pack) == most:
                    break
            if pack:
                return pack
        return []

    def _unreadable(self, run_id: str) -> Exception | None:
        """Read the config of a run; where that fails, skip the run and return the error."""
        try:
            self._read[run_id] = record.read(self.results.config(run_id))
        except (ValueError, KeyError, TypeError) as error:  # whatever damage to a JSON object makes it raise
            self._skip(run_id, error)
            return error
        return None

    def _skip(self, run_id: str, error: Exception) -> None:
        self._open.discard(run_id)
        self.log(f"run {run_id} is damaged and skipped: {type(error).__name__}: {error}")

    def _waits(self, run: QueuedRun) -> bool:
        """Whether another worker trains the run's trunk."""
        return run.trunk is not None and self.status(run.trunk) == "running"
