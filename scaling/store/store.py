"""The store of results: a folder or a bucket, which plans fill, workers train from and analyses read.

    <store>/runs/<run_id>/config.json       everything that determines the result; created once
                          status.json       how far the run is; written whole by its owner
                          leases/           who may train it: `scaling.store.lease`
                          metrics/          one segment an attempt, one JSON object a line
                          checkpoints/      one folder an attempt
                          result.json       one flat row; created once, never rewritten
    <store>/sweeps/<name>/sweep.json        the config of a sweep, and its runs with their labels

Reading needs no right to write. Neither JAX nor pandas is imported with this module.
"""

import contextlib
import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from scaling.storage import atomic, backends, cache, errors, retry
from scaling.store import layout, lease, settings
from scaling.store.layout import Status, SweepMember, SweepRecord

if TYPE_CHECKING:
    import pandas as pd


class Store:
    """The runs and sweeps in a folder or a bucket, which is filled when something is first written.

    Raises ValueError where a path is, or lies below, something that is no folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        heartbeat_seconds: float = lease.HEARTBEAT_SECONDS,
        lease_seconds: float = lease.LEASE_SECONDS,
    ):
        self.files = backends.open_storage(path)
        self.local = self.files.local()
        self.heartbeat_seconds = heartbeat_seconds
        self.lease_seconds = lease_seconds
        self.counted: dict[str, dict[str, Any]] = {}  # by run id, of runs without a result: configs never change
        self.settings = settings.RunSettings()
        if self.local is None:
            return
        existing = cache.nearest_existing(self.local)
        if not existing.is_dir():
            raise ValueError(f"store {self.path}: {existing} is a file, not a folder; name a folder, new or old")
        for folder in ("runs", "sweeps"):
            _no_link(f"{self.path}/{folder}")

    def retrying(self, waiter: retry.Waiter) -> "Store":
        """The same store, which retries transient errors of its disk or service; others raise every error."""
        retrying = copy.copy(self)
        retrying.files = retry.RetryingStorage(self.files, waiter)
        return retrying

    @property
    def path(self) -> str:
        """Where it is: an absolute path, or a URL."""
        return str(self.files)

    def exists(self) -> bool:
        """Whether anything was ever written to it."""
        return self.local.is_dir() if self.local is not None else bool(self.files.names("sweeps"))

    def check_writable(self) -> None:
        """Raises ValueError where nothing may be written to a folder; of a bucket the first write tells."""
        if self.local is None:
            return
        existing = cache.nearest_existing(self.local)
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(
                f"store {self.path}: no permission to write to {existing}; choose another folder or fix its permissions"
            )

    # Writing

    def add_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Store what determines a run (`record.config_record`), unless it is there already.

        Where only the place of the corpus differs, the new place is taken for a run that has no result yet. A config
        that cannot be read, or from which the run's id does not follow, is written again. Raises ValueError where the
        run is there with another config.
        """
        self.check_writable()
        run = self.run(run_id)
        new = atomic.plain(record)
        if run.create("config.json", atomic.dumps(new)):
            return
        from scaling.store import record as records

        try:
            old = self.config(run_id)
            if old == new:
                return
            records.read(old)
        except (errors.UnreadableError, pydantic.ValidationError):  # damaged or edited: the id says what it held
            run.replace("config.json", atomic.dumps(new))
            return
        if records.without_source(old) != records.without_source(new):
            raise ValueError(
                f"{run}/config.json holds another config than run {run_id} has ({records.difference(old, new)}); "
                "if it was edited by hand remove the run's folder, else use another store"
            )
        if not run.exists("result.json"):
            run.replace("config.json", atomic.dumps(new))

    def add_sweep(self, name: str, config: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> None:
        """Store a sweep as it is now: its config, and its runs, in order. Runs that it had before stay in the store.

        Raises ValueError where a run has not been added.
        """
        self.check_writable()
        configs = {f"runs/{self._known(member['run_id'])}/config.json": member["run_id"] for member in members}
        for lacking in configs.keys() - self.files.present(list(configs)):
            raise ValueError(f"sweep {name!r} lists run {configs[lacking]}, which the store lacks; add the run first")
        value = SweepRecord(
            format=layout.FORMAT,
            name=name,
            config=dict(config),
            members=[SweepMember(run_id=member["run_id"], labels=dict(member["labels"])) for member in members],
        )
        self._sweep_files(name).replace("sweep.json", atomic.dumps(value))

    def claim(
        self,
        run_id: str,
        owner: str,
        about: Mapping[str, Any] | None = None,
        *,
        joining: bool = False,
        suspects: bool = True,
    ) -> lease.Lease | None:
        """The right to train a run, or None where it has ended, has failed, is damaged, or someone else trains it.

        `about` (versions, device, git commit) goes into status.json; for `joining` and `suspects` see `lease.take`.
        """
        self.check_writable()
        run = self.run(run_id)
        if run.exists("result.json"):
            return None
        if not run.exists("config.json"):
            raise errors.UnreadableError(f"the store {self.path} has no run {run_id}; add it first")
        mine = lease.take(run, owner, self.lease_seconds, joining=joining, suspects=suspects)
        if mine is not None:
            return lease.Lease(run_id, run, mine, heartbeat_seconds=self.heartbeat_seconds, about=about or {})
        lease.complete(run)
        return None

    def retry(self, run_id: str) -> bool:
        """Let a failed run be claimed again; says whether it had failed."""
        self.check_writable()
        return lease.reopen(self.run(run_id))

    # Reading

    def run_ids(self) -> list[str]:
        """All runs, in order of their ids. Raises ValueError for what is no run."""
        return [self._known(name) for name in self.files.names("runs") if not name.startswith(".")]

    def sweeps(self) -> list[str]:
        """The names of all sweeps, in alphabetical order."""
        names = [name for name in self.files.names("sweeps") if layout.SWEEP_NAME.fullmatch(name)]
        there = self.files.present([f"sweeps/{name}/sweep.json" for name in names])
        return [name for name in names if f"sweeps/{name}/sweep.json" in there]

    def sweep(self, name: str) -> SweepRecord:
        """A sweep's config and members. Raises ValueError where there is none of that name."""
        files = self._sweep_files(name)
        try:
            value = files.read_json("sweep.json")
        except FileNotFoundError:
            known = ", ".join(self.sweeps()) or "none"
            raise ValueError(f"the store {self.path} has no sweep {name!r} (its sweeps: {known})") from None
        layout.check_format(f"{files}/sweep.json", value)
        for member in value["members"]:
            self._known(member["run_id"])
        return SweepRecord(format=value["format"], name=name, config=value["config"], members=value["members"])

    def config(self, run_id: str) -> dict[str, Any]:
        """What config.json of a run holds; `scaling.store.record.read` makes a Run of it."""
        run = self.run(run_id)
        try:
            value = run.read_json("config.json")
        except FileNotFoundError:
            path = f"{run}/config.json"
            raise errors.UnreadableError(f"{path} is missing; {atomic.remedy(path)}") from None
        layout.check_config(f"{run}/config.json", value)
        return value

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that has finished or diverged, or None. Raises UnreadableError where it is damaged."""
        run = self.run(run_id)
        try:
            return run.read_json("result.json")
        except FileNotFoundError:
            last = lease.newest(run)
            return None if last is None else last.row
        except errors.UnreadableError as error:
            last = lease.newest(run)
            if last is None or last.row is None:
                raise
            raise errors.UnreadableError(
                f"{run}/result.json is not readable ({error.__cause__}); remove it: the result is also in "
                f"{lease.key_of(last.attempt)} beside it, and is read from there"
            ) from error

    def readable_result(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that has ended; None also where it is damaged, which `status` tells of."""
        try:
            return self.result(run_id)
        except errors.UnreadableError:
            return None

    def results(self, run_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of those runs that have finished or diverged, by run id: of ids that the store gave.

        Without those of damaged runs: `result` of one raises the reason.
        """
        keys = {f"runs/{run_id}/result.json": run_id for run_id in run_ids}
        rows = {}
        for key, content in self.files.read_many(list(keys)).items():
            with contextlib.suppress(errors.UnreadableError):
                rows[keys[key]] = atomic.parse(content, f"{self.path}/{key}")
        return rows

    def ended(self, run_ids: Iterable[str]) -> set[str]:
        """Those of the runs whose result is published: of ids that the store gave."""
        keys = {f"runs/{run_id}/result.json": run_id for run_id in run_ids}
        return {keys[key] for key in self.files.present(list(keys))}

    def status(self, run_id: str) -> Status:
        """How far a run is: planned, running, finished, diverged, failed or damaged. Where the owner is lost, planned.

        A run that the store lacks is planned.
        """
        try:
            return self._status(run_id)
        except errors.UnreadableError as error:
            return Status(**{**layout.PLANNED, "status": layout.DAMAGED, "reason": str(error)})

    def _status(self, run_id: str) -> Status:
        run = self.run(run_id)
        known: dict[str, Any] = {**layout.PLANNED}
        if run.exists("status.json"):
            known |= run.read_json("status.json")
        row, last = self.result(run_id), lease.newest(run)
        if row is not None:
            known |= {"status": row["status"], "reason": row["reason"] or "", "traceback": None}
            if last is not None and last.row is not None:  # what status.json says may be of one who came late
                known |= {"attempt": last.attempt - 1, "owner": last.owner, "faults": dict(last.faults)}
        elif last is None:
            known = {**layout.PLANNED}
        else:
            if last.attempt != known["attempt"]:
                known |= {"attempt": last.attempt, "owner": last.owner, "traceback": None}
            known |= {"faults": dict(last.faults), "microbatch": last.microbatch}
            known |= self._now(run, last)
        return Status(**{name: known[name] for name in layout.PLANNED})  # type: ignore[typeddict-item]

    def _now(self, run: backends.Storage, last: lease.Attempt) -> dict[str, Any]:
        """Status and reason of a run without a result, by its newest attempt."""
        if last.ended == "failed":
            return {"status": "failed", "reason": last.reason}
        if last.ended == "stopped":
            return {"status": "planned", "reason": last.reason}
        if lease.alive(run, last, self.lease_seconds):
            return {"status": "running", "reason": ""}
        return {"status": "planned", "reason": f"{last.owner} is gone; another worker resumes the run"}

    def checkpoints(self, run_id: str) -> list[backends.Place]:
        """The checkpoint folders of the attempts at a run, oldest first."""
        files = self.run(run_id).sub("checkpoints")
        return [files.sub(name).place() for name in files.names("")]

    def has_checkpoint(self, run_id: str, step: int | None = None) -> bool:
        """Whether a run has a finished checkpoint, or one of a given step."""
        files = self.run(run_id).sub("checkpoints")
        steps = (name for attempt in files.names("") for name in files.names(attempt))
        return any(name.isdecimal() and step in (None, int(name)) for name in steps)

    def begun(self, run_id: str) -> bool:
        """Whether a run has a result, or a checkpoint to go on from."""
        return self.readable_result(run_id) is not None or self.has_checkpoint(run_id)

    def statuses(self, sweep: str) -> dict[str, str]:
        """The status of each run of a sweep, by run id."""
        from scaling.store import record

        run_ids = [member["run_id"] for member in self.sweep(sweep)["members"]]
        rows = self.results(run_ids)
        statuses = {run_id: row["status"] for run_id, row in rows.items()}
        for run_id in (run_id for run_id in run_ids if run_id not in rows):
            statuses[run_id] = self.status(run_id)["status"]
            if statuses[run_id] in (*layout.OPEN, "failed"):
                try:
                    record.counted(self, run_id)
                except errors.UnreadableError:
                    statuses[run_id] = layout.DAMAGED
        return {run_id: statuses[run_id] for run_id in run_ids}

    def open(self, run_ids: Iterable[str]) -> set[str]:
        """Those of the runs that are still to end: of ids that the store gave, or that it does not know yet."""
        listed = set(run_ids)
        return {run_id for run_id in listed - self.ended(listed) if self.status(run_id)["status"] in layout.OPEN}

    def runs(
        self, sweep: str | None = None, settings: Literal["differing", "all", "none"] = "differing"
    ) -> "pd.DataFrame":
        """One row a run, with the columns of `scaling.store.columns`; of a sweep only its runs, with its labels.

        Runs without a result have their counts, a status of planned, running or failed, and no losses. One of which a
        file is missing or cannot be read has the status damaged and a reason that names the file and the remedy.
        `settings` are config fields under their dotted names, as further columns: those in which the runs differ
        (trunks left out), all, or none, for which no config is read.
        """
        from scaling.store import frames

        return frames.runs(self, sweep, settings)

    def curves(self, sweep: str | None = None) -> "pd.DataFrame":
        """One row an evaluation, by run and step: run_id, step, tokens, flops, loss, loss_se, …, and `OF_RUN`.

        A run of which a file cannot be read is left out, with a warning.
        """
        from scaling.store import frames

        return frames.curves(self, sweep)

    def history(self, run_id: str) -> "pd.DataFrame":
        """One row a recorded training step of a run; of a step trained twice, the later attempt's."""
        from scaling.store import frames

        return frames.history(self, run_id)

    def metrics(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """Rows of one kind (train, validation) of all attempts, by step; the later attempt's row of a step counts."""
        files = self.run(run_id).sub("metrics")
        segments = files.read_many([name for name in files.names("") if layout.SEGMENT.fullmatch(name)])
        steps: dict[int, dict[str, Any]] = {}
        for name in sorted(segments):
            for row in atomic.parse_lines(segments[name], f"{files}/{name}"):
                if row["kind"] == kind:
                    steps[row["step"]] = {key: value for key, value in row.items() if key != "kind"}
        return [steps[step] for step in sorted(steps)]

    # Places

    def run(self, run_id: str) -> backends.Storage:
        """The files of a run. Raises ValueError where the id is none, or its folder leads out of the store."""
        self._known(run_id)
        if self.local is not None:
            _no_link(f"{self.path}/runs/{run_id}")
        return self.files.sub(f"runs/{run_id}")

    def folder(self, run_id: str) -> Path:
        """The folder of a run, or in this machine's cache one for what cannot be written to a bucket."""
        return self.run(run_id).local() or cache.root() / "runs" / run_id

    def sweep_folder(self, name: str) -> Path:
        """The folder for a sweep's logs and report: in the store, or of a bucket's in `results`, here.

        Raises ValueError where the name is none, or leads out of the store.
        """
        return self._sweep_files(name).local() or Path("results").absolute() / "sweeps" / name

    def _sweep_files(self, name: str) -> backends.Storage:
        if not layout.SWEEP_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a sweep: letters, digits, '.', '_' and '-', not first; rename it")
        if self.local is not None:
            _no_link(f"{self.path}/sweeps/{name}")
        return self.files.sub(f"sweeps/{name}")

    def _known(self, run_id: str) -> str:
        """A run id. Raises ValueError where it is none."""
        if not isinstance(run_id, str) or not layout.RUN_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} in {self.path}/runs is no run id (16 digits of 0-9a-f); move it elsewhere")
        return run_id

    def logs(self, sweep: str) -> Path:
        """The folder of the logs of a sweep's workers."""
        return self.sweep_folder(sweep) / "logs"


def _no_link(path: str) -> None:
    """Raises ValueError where a folder of a store is a link, which may lead out of the store."""
    if os.path.islink(path):
        raise ValueError(f"{path} is a symbolic link, and a store's folders must lie in it; move the folder there")
