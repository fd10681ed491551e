"""What of a sweep a worker may train now: runs in the order that packs a pool best, trunks before their branches.

Branches wait until their trunk has a checkpoint where they leave it; a worker waits with them only while another
worker trains that trunk.
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

WAIT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Item:
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
        """Where it leaves its trunk."""
        return trunks.branch_step(self.run)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run that is this worker's to train."""

    item: Item
    lease: leases.Lease


class Queue:
    """The runs of a sweep that have no result; those that have one are not read, however many they are."""

    def __init__(self, results: store.Store, sweep_name: str):
        self.results = results
        members = results.sweep(sweep_name)["members"]
        self._labels = {member["run_id"]: member["labels"] for member in members}
        self._open = set(self._labels) - results.ended(self._labels)
        self._read: dict[str, tuple[config.Run, record.Stored]] = {}
        self.damaged: dict[str, str] = {}  # why runs are not trained whose config cannot be read
        for run_id in (run_id for run_id in self._labels if run_id in self._open):
            try:
                self._read[run_id] = record.read(results.config(run_id))
            except errors.UnreadableError as error:
                self.damaged[run_id] = str(error)
        self._branches: dict[str, set[int]] = {}
        for run_id, (run, _) in self._read.items():
            parent = self._labels[run_id].get("parent_run_id")
            if parent is not None:
                self._branches.setdefault(parent, set()).add(trunks.branch_step(run))
        self.items = {run_id: self.item(run_id) for run_id in self._read}

    def item(self, run_id: str) -> Item:
        """A run of the sweep, of those with a result too. Raises UnreadableError where its config cannot be read."""
        if run_id not in self._read:
            self._read[run_id] = record.read(self.results.config(run_id))
        run, stored = self._read[run_id]
        return Item(
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
        return self.items.keys() | {item.trunk for item in self.items.values() if item.trunk is not None}

    def claims(
        self, owner: str, about: Mapping[str, Any], limit: Callable[[Item], int], stop: Callable[[], bool]
    ) -> Iterator[list[Claim]]:
        """Packs of runs, of one or of up to `limit(run)`, until none can be had or a stop is asked for."""
        while not stop():
            left = self.left()
            waiting = any(self._waits(item) for item in left)
            pack = self._claim(left, owner, about, limit)
            if pack:
                yield pack
            elif waiting or any(self._waits(item) for item in left):  # a trunk may end, or be taken, in between
                time.sleep(WAIT_SECONDS)
            else:
                return

    def left(self) -> list[Item]:
        """Runs without a result: trunks first, and the longest first, which packs a pool best.

        By the seconds that were predicted when the sweep was planned, where they were: FLOPs alone put off small models
        that take long, and one core idled at the end of a sweep.
        """

        def order(item: Item) -> tuple[bool, float, float]:
            return bool(item.branches), item.labels.get("predicted_seconds", 0.0), item.counted["flops"]

        self._open -= self.results.ended(self._open)
        return sorted((item for item in self.items.values() if item.run_id in self._open), key=order, reverse=True)

    def _claim(
        self, left: list[Item], owner: str, about: Mapping[str, Any], limit: Callable[[Item], int]
    ) -> list[Claim]:
        """A pack of what can be had; a run whose attempts vanished one after another only where nothing else can."""
        for suspects in (False, True):
            pack: list[Claim] = []
            most = 1
            for item in left:
                if pack and packing.key(item.run) != packing.key(pack[0].item.run):
                    continue
                if not self.ready(item):
                    continue
                lease = self.results.claim(item.run_id, owner, about, joining=bool(pack), suspects=suspects)
                if lease is None:
                    continue
                if not pack:
                    most = 1 if lease.alone or suspects else limit(item)
                pack.append(Claim(item, lease))
                if len(pack) == most:
                    break
            if pack:
                return pack
        return []

    def ready(self, item: Item) -> bool:
        """Whether a run can be started: it has no trunk, or nothing more is to be had from its trunk."""
        if item.trunk is None or self.results.has_checkpoint(item.run_id) or self.has_trunk(item):
            return True
        return self.results.status(item.trunk)["status"] in ("finished", "diverged", "failed", store.DAMAGED)

    def has_trunk(self, item: Item) -> bool:
        """Whether the trunk has a checkpoint where the run leaves it."""
        return item.trunk is not None and self.results.has_checkpoint(item.trunk, item.branch_step)

    def _waits(self, item: Item) -> bool:
        """Whether the run's trunk is being trained by another worker."""
        return item.trunk is not None and self.results.status(item.trunk)["status"] == "running"
