"""What of a sweep a worker may train now: runs in the order that packs a pool best, trunks before their branches.

Branches wait until their trunk has a checkpoint where they leave it; a worker waits with them only while another
worker trains that trunk.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scaling import config
from scaling.sweep import lease as leases
from scaling.sweep import packing, record, store, trunks

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
    """The runs of a sweep that have no result."""

    def __init__(self, results: store.Store, sweep_name: str):
        self.results = results
        members = results.sweep(sweep_name)["members"]
        read = {m["run_id"]: record.read(results.config(m["run_id"])) for m in members}
        steps: dict[str, set[int]] = {}
        for member in members:
            parent = member["labels"].get("parent_run_id")
            if parent is not None:
                steps.setdefault(parent, set()).add(trunks.branch_step(read[member["run_id"]][0]))
        items = [
            Item(
                run_id=member["run_id"],
                run=read[member["run_id"]][0],
                stored=read[member["run_id"]][1],
                counted=record.columns(*read[member["run_id"]]),
                labels=member["labels"],
                trunk=member["labels"].get("parent_run_id"),
                branches=tuple(sorted(steps.get(member["run_id"], ()))),
            )
            for member in members
        ]
        self.items = {item.run_id: item for item in items}
        self.alone: set[str] = set()  # to be trained without others, since a pack with it failed

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

        open_items = [item for item in self.items.values() if self.results.result(item.run_id) is None]
        return sorted(open_items, key=order, reverse=True)

    def _claim(
        self, left: list[Item], owner: str, about: Mapping[str, Any], limit: Callable[[Item], int]
    ) -> list[Claim]:
        pack: list[Claim] = []
        most = 1
        for item in left:
            if pack and (packing.key(item.run) != packing.key(pack[0].item.run) or item.run_id in self.alone):
                continue
            if not self.ready(item):
                continue
            lease = self.results.claim(item.run_id, owner, about)
            if lease is None:
                continue
            if not pack:
                most = 1 if item.run_id in self.alone else limit(item)
            pack.append(Claim(item, lease))
            if len(pack) == most:
                break
        return pack

    def ready(self, item: Item) -> bool:
        """Whether a run can be started: it has no trunk, or nothing more is to be had from its trunk."""
        if item.trunk is None or self.results.has_checkpoint(item.run_id) or self.has_trunk(item):
            return True
        return self.results.status(item.trunk)["status"] in ("finished", "diverged", "failed")

    def has_trunk(self, item: Item) -> bool:
        """Whether the trunk has a checkpoint where the run leaves it."""
        return item.trunk is not None and self.results.has_checkpoint(item.trunk, item.branch_step)

    def _waits(self, item: Item) -> bool:
        """Whether the run's trunk is being trained by another worker."""
        return item.trunk is not None and self.results.status(item.trunk)["status"] == "running"
