"""The store of results: a folder on a local or shared disk, which plans fill, workers train from and analyses read.

    <store>/runs/<run_id>/config.json       everything that determines the result; created once
                          status.json       how far the run is; written whole by its owner
                          leases/           who may train it: `scaling.sweep.lease`
                          metrics/          one segment an attempt, one JSON object a line
                          checkpoints/      one folder an attempt
                          result.json       one flat row; created once, never rewritten
    <store>/sweeps/<name>/sweep.json        the config of a sweep, and its runs with their labels

Reading needs no right to write. Neither JAX nor pandas is imported with this module.
"""

import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from scaling.sweep import atomic, lease

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1

# The columns of a result, and of any table that the analysis reads, in this order; labels of a sweep follow them.
COLUMNS = (
    "run_id", "sweep", "family", "role", "parent_run_id", "width", "depth", "params", "params_non_embedding",
    "params_with_head", "tokens", "unique_tokens", "epochs", "flops", "flops_spent", "flops_6nd", "batch_tokens",
    "context", "vocabulary_size", "tokenizer_id", "data_sha256", "validation_id", "precision", "parametrization",
    "optimizer", "schedule", "learning_rate", "seed", "loss", "loss_se", "bits_per_byte", "seconds", "device", "status",
    "reason",
)  # fmt: skip
MEASURED = ("loss", "loss_se", "bits_per_byte", "seconds")  # missing until a run has ended
OF_RUN = ("sweep", "family", "role", "params", "params_non_embedding", "learning_rate", "seed")  # repeated in curves

OPEN = ("planned", "running")  # statuses of runs that are still to end

RUN_ID = re.compile(r"[0-9a-f]{16}")
SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SEGMENT = re.compile(r"[0-9]{6}\.jsonl")


class Member(TypedDict):
    """A run's place in a sweep: labels are columns that say why it is there (`family`, `role`, `flops_budget`, …)."""

    run_id: str
    labels: dict[str, Any]


class SweepRecord(TypedDict):
    """What sweep.json holds: `config` is the sweep's config as JSON values."""

    format: int
    name: str
    config: dict[str, Any]
    members: list[Member]


class Status(TypedDict):
    """How far a run is. `step` counts optimizer steps; `heartbeat` is in seconds since 1970 by the owner's clock."""

    status: str
    reason: str
    owner: str
    attempt: int
    heartbeat: float | None
    step: int
    versions: dict[str, str]
    device: str | None
    git_commit: str | None
    traceback: str | None


PLANNED = Status(
    status="planned", reason="", owner="", attempt=0, heartbeat=None, step=0, versions={}, device=None, git_commit=None,
    traceback=None,
)  # fmt: skip


class Store:
    """The runs and sweeps in a folder, which need not exist yet: it is made when something is first written.

    Raises ValueError where `path` is, or lies below, something that is no folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        heartbeat_seconds: float = lease.HEARTBEAT_SECONDS,
        lease_seconds: float = lease.LEASE_SECONDS,
    ):
        self.path = Path(path).absolute()
        self.heartbeat_seconds = heartbeat_seconds
        self.lease_seconds = lease_seconds
        self._planned: dict[str, dict[str, Any]] = {}
        existing = self._existing()
        if not existing.is_dir():
            raise ValueError(f"store {self.path}: {existing} is a file, not a folder; name a folder, new or old")
        for room in ("runs", "sweeps"):
            _no_link(f"{self.path}/{room}")

    def exists(self) -> bool:
        """Whether anything was ever written to it."""
        return self.path.is_dir()

    def check_writable(self) -> None:
        """Raises ValueError where nothing may be written to the store."""
        existing = self._existing()
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(
                f"store {self.path}: no permission to write to {existing}; choose another folder or mend its rights"
            )

    # Writing

    def add_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Store what determines a run (`record.config_record`), unless it is there already.

        Where only the place of the corpus differs, the new place is taken for a run that has no result yet. Raises
        ValueError where the run is there with another config.
        """
        self.check_writable()
        folder = self.folder(run_id)
        new = atomic.plain(record)
        if atomic.create(folder / "config.json", atomic.dumps(new)):
            return
        old = self.config(run_id)
        if old == new:
            return
        if _without_source(old) != _without_source(new):
            raise ValueError(
                f"{folder / 'config.json'} holds another config than run {run_id} has ({_difference(old, new)}); "
                "if it was edited by hand remove the run's folder, else use another store"
            )
        if not (folder / "result.json").exists():
            atomic.replace(folder / "config.json", atomic.dumps(new))

    def add_sweep(self, name: str, config: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> None:
        """Store a sweep as it is now: its config, and its runs, in order. Runs that it had before stay in the store.

        Raises ValueError where a run has not been added.
        """
        self.check_writable()
        for member in members:
            if not (self.folder(member["run_id"]) / "config.json").exists():
                raise ValueError(
                    f"sweep {name!r} lists run {member['run_id']}, which the store lacks; add the run first"
                )
        value = SweepRecord(
            format=FORMAT,
            name=name,
            config=dict(config),
            members=[Member(run_id=member["run_id"], labels=dict(member["labels"])) for member in members],
        )
        atomic.replace(self.sweep_folder(name) / "sweep.json", atomic.dumps(value))

    def claim(self, run_id: str, owner: str, about: Mapping[str, Any] | None = None) -> lease.Lease | None:
        """The right to train a run, or None where it has ended, has failed, or someone else trains it.

        `about` (versions, device, git commit) goes into status.json.
        """
        self.check_writable()
        folder = self.folder(run_id)
        if not (folder / "config.json").exists():
            raise ValueError(f"the store {self.path} has no run {run_id}; add it first")
        if (folder / "result.json").exists():
            return None
        mine = lease.take(folder, owner, self.lease_seconds)
        if mine is not None:
            return lease.Lease(folder, mine, heartbeat_seconds=self.heartbeat_seconds, about=about or {})
        last = lease.newest(folder)
        if last is not None and last.row is not None:  # its owner died between the two steps of publishing
            atomic.create(folder / "result.json", atomic.dumps(last.row))
        return None

    def retry(self, run_id: str) -> bool:
        """Let a failed run be claimed again; says whether it had failed."""
        self.check_writable()
        return lease.forgive(self.folder(run_id))

    # Reading

    def run_ids(self) -> list[str]:
        """All runs, in order of their ids. Raises ValueError for a folder that is no run."""
        try:
            entries = sorted(entry.name for entry in os.scandir(self.path / "runs") if entry.is_dir())
        except FileNotFoundError:
            return []
        return [self.folder(name).name for name in entries if not name.startswith(".")]

    def sweeps(self) -> list[str]:
        """The names of all sweeps, in alphabetical order."""
        return sorted(path.parent.name for path in (self.path / "sweeps").glob("*/sweep.json"))

    def sweep(self, name: str) -> SweepRecord:
        """A sweep's config and members. Raises ValueError where there is none of that name."""
        path = self.sweep_folder(name) / "sweep.json"
        try:
            value = atomic.read_json(path)
        except FileNotFoundError:
            known = ", ".join(self.sweeps()) or "none"
            raise ValueError(f"the store {self.path} has no sweep {name!r} (its sweeps: {known})") from None
        _check_format(path, value)
        for member in value["members"]:
            self.folder(member["run_id"])
        return SweepRecord(format=value["format"], name=name, config=value["config"], members=value["members"])

    def config(self, run_id: str) -> dict[str, Any]:
        """What config.json of a run holds; `scaling.sweep.record.read` makes a Run of it."""
        path = self.folder(run_id) / "config.json"
        try:
            value = atomic.read_json(path)
        except FileNotFoundError:
            raise ValueError(f"run {run_id} has no {path}; start its sweep again, which writes it") from None
        _check_format(path, value)
        return value

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that has finished or diverged, or None."""
        try:
            return atomic.read_json(self.folder(run_id) / "result.json")
        except FileNotFoundError:
            last = lease.newest(self.folder(run_id))
            return None if last is None else last.row

    def status(self, run_id: str) -> Status:
        """How far a run is: planned, running, finished, diverged or failed. Where the owner is lost, planned."""
        folder = self.folder(run_id)
        try:
            known = typing.cast(Status, {**PLANNED, **atomic.read_json(folder / "status.json")})
        except FileNotFoundError:
            known = PLANNED
        row, last = self.result(run_id), lease.newest(folder)
        if row is not None:
            return {**known, "status": row["status"], "reason": row["reason"] or "", "traceback": None}
        if last is None:
            return PLANNED
        if last.attempt != known["attempt"]:
            known = {**known, "attempt": last.attempt, "owner": last.owner, "traceback": None}
        if last.ended == "failed":
            return {**known, "status": "failed", "reason": last.reason}
        if last.ended == "stopped":
            return {**known, "status": "planned", "reason": last.reason, "traceback": None}
        if lease.alive(folder, last, self.lease_seconds):
            return {**known, "status": "running", "reason": ""}
        return {**known, "status": "planned", "reason": f"{last.owner} is gone; another worker resumes the run"}

    def checkpoints(self, run_id: str) -> list[Path]:
        """The checkpoint folders of the attempts at a run, oldest first."""
        folder = self.folder(run_id) / "checkpoints"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def has_checkpoint(self, run_id: str, step: int | None = None) -> bool:
        """Whether a run has a finished checkpoint, or one of a given step."""
        name = "[0-9]*" if step is None else str(step)
        return any(path.name.isdecimal() for path in (self.folder(run_id) / "checkpoints").glob(f"*/{name}"))

    def begun(self, run_id: str) -> bool:
        """Whether a run has a result, or a checkpoint to go on from."""
        return self.result(run_id) is not None or self.has_checkpoint(run_id)

    def statuses(self, sweep: str) -> dict[str, str]:
        """The status of each run of a sweep, by run id."""
        words = {}
        for member in self.sweep(sweep)["members"]:
            row = self.result(member["run_id"])
            words[member["run_id"]] = row["status"] if row is not None else self.status(member["run_id"])["status"]
        return words

    def runs(self, sweep: str | None = None) -> "pd.DataFrame":
        """One row a run, with the columns `COLUMNS`; of a sweep only its runs, with its labels as further columns.

        Runs without a result have their counts, a status of planned, running or failed, and no losses.
        """
        import pandas as pd

        rows = [self._row(member["run_id"], name, member["labels"]) for name, member in self._members(sweep)]
        labels = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
        frame = pd.DataFrame(rows, columns=[*COLUMNS, *labels])
        return frame.astype(dict.fromkeys(MEASURED, "float64"))

    def curves(self, sweep: str | None = None) -> "pd.DataFrame":
        """One row an evaluation, by run and step: run_id, step, tokens, flops, loss, loss_se, …, and `OF_RUN`."""
        import pandas as pd

        rows = []
        for name, member in self._members(sweep):
            points = self._metrics(member["run_id"], "validation")
            if points:
                row = self._row(member["run_id"], name, member["labels"])
                rows += [{"run_id": member["run_id"], **point, **{key: row[key] for key in OF_RUN}} for point in points]
        first = ("run_id", "step", "tokens", "flops", "loss", "loss_se", "bits_per_byte", "seconds", *OF_RUN)
        rest = dict.fromkeys(name for row in rows for name in row if name not in first)
        frame = pd.DataFrame(rows, columns=[*first, *rest])
        return frame.astype(dict.fromkeys(MEASURED, "float64"))

    def history(self, run_id: str) -> "pd.DataFrame":
        """One row a recorded training step of a run; of a step trained twice, the later attempt's."""
        import pandas as pd

        return pd.DataFrame(self._metrics(run_id, "train"))

    # Places

    def folder(self, run_id: str) -> Path:
        """The folder of a run. Raises ValueError where the id is none, or leads out of the store."""
        if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
            raise ValueError(
                f"{run_id!r} in {self.path / 'runs'} is no run id (16 digits of 0-9a-f); move it elsewhere"
            )
        return _no_link(f"{self.path}/runs/{run_id}")

    def sweep_folder(self, name: str) -> Path:
        """The folder of a sweep. Raises ValueError where the name is none, or leads out of the store."""
        if not SWEEP_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a sweep: letters, digits, '.', '_' and '-', not first; rename it")
        return _no_link(f"{self.path}/sweeps/{name}")

    def logs(self, sweep: str) -> Path:
        """The folder of the logs of a sweep's workers."""
        return self.sweep_folder(sweep) / "logs"

    def _existing(self) -> Path:
        """The store's folder, or the nearest thing above it that exists."""
        return next(place for place in (self.path, *self.path.parents) if place.exists())

    # Rows

    def _members(self, sweep: str | None) -> Iterator[tuple[str | None, Member]]:
        """Runs with the sweep that their row names: the one asked for, or the first that lists one without result."""
        if sweep is not None:
            for member in self.sweep(sweep)["members"]:
                yield sweep, member
            return
        listed: dict[str, tuple[str | None, Member]] = {}
        for name in self.sweeps():
            for member in self.sweep(name)["members"]:
                labels = {key: value for key, value in member["labels"].items() if key in COLUMNS}
                listed.setdefault(member["run_id"], (name, Member(run_id=member["run_id"], labels=labels)))
        for run_id in self.run_ids():
            bare = (None, Member(run_id=run_id, labels={}))
            ended = (self.path / "runs" / run_id / "result.json").exists()
            yield bare if ended else listed.get(run_id, bare)

    def _row(self, run_id: str, sweep: str | None, labels: Mapping[str, Any]) -> dict[str, Any]:
        row = self.result(run_id)
        if row is None:
            status = self.status(run_id)
            row = {**self._counted(run_id), **dict.fromkeys(MEASURED), "device": status["device"]}
            row |= {"sweep": None, "status": status["status"], "reason": status["reason"] or None}
        return {**row, **labels, **({} if sweep is None else {"sweep": sweep})}

    def _counted(self, run_id: str) -> dict[str, Any]:
        """The counted columns of a run that has no result, from its config, which never changes."""
        from scaling.sweep import record

        if run_id not in self._planned:
            self._planned[run_id] = {"run_id": run_id, **record.columns(*record.read(self.config(run_id)))}
        return self._planned[run_id]

    def _metrics(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """Rows of one kind of all attempts, by step; the later attempt's row of a step counts."""
        folder = self.folder(run_id) / "metrics"
        if not folder.is_dir():
            return []
        steps: dict[int, dict[str, Any]] = {}
        for path in sorted(folder.iterdir()):
            if SEGMENT.fullmatch(path.name):
                for row in atomic.read_lines(path):
                    if row["kind"] == kind:
                        steps[row["step"]] = {key: value for key, value in row.items() if key != "kind"}
        return [steps[step] for step in sorted(steps)]


def _no_link(path: str) -> Path:
    """A folder of a store as a path. Raises ValueError where it is a link, which may lead out of the store."""
    if os.path.islink(path):
        raise ValueError(f"{path} is a symbolic link, and a store's folders must lie in it; move the folder there")
    return Path(path)


def _check_format(path: Path, value: Mapping[str, Any]) -> None:
    if value.get("format") != FORMAT:
        written = value.get("format")
        raise ValueError(
            f"{path} has format {written!r} and this version reads format {FORMAT}; use the version that wrote it"
        )


def _without_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """A config record without the place of its corpus, which does not determine the result: its content does."""
    data = {key: value for key, value in record["run"]["data"].items() if key != "source"}
    return {**record, "run": {**record["run"], "data": data}}


def _difference(old: Any, new: Any, field: str = "") -> str:
    """The first field in which two records differ: `run.tokens: 100 there, 200 here`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{field}.{key}" if field else str(key))
    return f"{field}: {old!r} there, {new!r} here"
