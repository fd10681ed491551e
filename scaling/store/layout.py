"""The formats of a store's files: names, sweeps, statuses."""

import re
from collections.abc import Mapping
from typing import Any, TypedDict

from scaling.storage import atomic, errors

FORMAT = 1

OPEN = ("planned", "running")  # statuses of runs that are still to end
DAMAGED = "damaged"  # the status of a run of which a file that is needed is missing or cannot be read

RUN_ID = re.compile(r"[0-9a-f]{16}")
SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SEGMENT = re.compile(r"[0-9]{6}(-[0-9]{6})?\.jsonl")  # of an attempt, or a part of it in a bucket


class SweepMember(TypedDict):
    """A run's place in a sweep: labels are columns that say why it is there (`family`, `role`, `flops_budget`, …)."""

    run_id: str
    labels: dict[str, Any]


class SweepRecord(TypedDict):
    """What sweep.json holds: `config` is the sweep's config as JSON values."""

    format: int
    name: str
    config: dict[str, Any]
    members: list[SweepMember]


class Status(TypedDict):
    """How far a run is. `step` counts optimizer steps; `heartbeat` is in seconds since 1970 by the owner's clock.

    `faults` counts how its attempts ended (`lease.Fault`); `microbatch` is that of this run alone, where it ran out of
    memory with the sweep's.
    """

    status: str
    reason: str
    owner: str
    attempt: int
    faults: dict[str, int]
    microbatch: int | None
    heartbeat: float | None
    step: int
    versions: dict[str, str]
    device: str | None
    git_commit: str | None
    traceback: str | None


PLANNED = Status(
    status="planned", reason="", owner="", attempt=0, faults={}, microbatch=None, heartbeat=None, step=0, versions={},
    device=None, git_commit=None, traceback=None,
)  # fmt: skip


def check_format(path: str, value: Mapping[str, Any]) -> None:
    """Raises OtherVersionError for what another version wrote."""
    if value.get("format") != FORMAT:
        written = value.get("format")
        raise errors.OtherVersionError(
            f"{path} has format {written!r} and this version reads format {FORMAT}; use the version that wrote it"
        )


def check_config(path: str, value: Mapping[str, Any]) -> None:
    """Raises UnreadableError where a config.json is of another version, or lacks the run or its data."""
    check_format(path, value)
    for part in ("run", "data"):
        if not isinstance(value.get(part), Mapping):
            raise errors.UnreadableError(f"{path} has no {part!r}; {atomic.remedy(path)}")
