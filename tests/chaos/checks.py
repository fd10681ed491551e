"""What must hold of a store while its workers are disturbed, and when all runs have ended. Violations are sentences."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling import store
from scaling.storage import directories
from scaling.store import lease, record
from scaling.training import checkpoint, runs
from tests.chaos import sweeps

# Every file that a store documents; RUN and ATTEMPT are numbers. Anything else is a stray one.
DOCUMENTED = re.compile(
    r"""
    runs/[0-9a-f]{16}/(
        config\.json | status\.json | result\.json
        | leases/[0-9]{6}\.json
        | metrics/[0-9]{6}\.jsonl
        | checkpoints/[0-9]{6}/[0-9]+/state\.npz
    )
    | sweeps/chaos/(sweep\.json | logs/worker-[0-9]\.log)
    """,
    re.VERBOSE,
)
MEASURED = ("loss", "loss_se", "bits_per_byte")
OF_THIS_TIME = ("seconds", "device")  # columns of a result that may differ between two trainings of one run


class Watch:
    """Looks at the results again and again: once there, a file stays the same, and stays."""

    def __init__(self, results: store.Store):
        run_ids = [member["run_id"] for member in results.sweep(sweeps.NAME)["members"]]
        self.files = {run_id: results.folder(run_id) / "result.json" for run_id in run_ids}
        self.seen: dict[str, tuple[int, int, str]] = {}
        self.violations: list[str] = []

    def look(self) -> int:
        """Look at all results; says how many there are."""
        for run_id, path in self.files.items():
            try:
                found, content = path.stat(), path.read_bytes()
            except FileNotFoundError:
                if run_id in self.seen:
                    self._tell(f"the result of {run_id} is gone")
                continue
            now = (found.st_ino, found.st_mtime_ns, hashlib.sha256(content).hexdigest())
            if self.seen.setdefault(run_id, now) != now:
                self._tell(f"the result of {run_id} was written again")
        return len(self.seen)

    def _tell(self, violation: str) -> None:
        if violation not in self.violations:
            self.violations.append(violation)


def violations(disturbed: store.Store, undisturbed: store.Store) -> list[str]:
    """All that is wrong with a sweep that was disturbed, beside one that was not."""
    found = []
    for member in disturbed.sweep(sweeps.NAME)["members"]:
        run_id = member["run_id"]
        if disturbed.result(run_id) is None or undisturbed.result(run_id) is None:
            status = disturbed.status(run_id)
            found.append(f"{run_id}: it is {status['status']}: {status['reason']}\n{status['traceback'] or ''}")
            continue
        for check in (_result, _leases, _status, _metrics, _checkpoints):
            found += [f"{run_id}: {problem}" for problem in check(disturbed, undisturbed, run_id)]
    return found + [f"stray: {path}" for path in strays(Path(disturbed.path))]


def _result(disturbed: store.Store, undisturbed: store.Store, run_id: str) -> Iterator[str]:
    """Bit for bit what the undisturbed sweep found: JSON keeps every bit of a float."""
    row, other = disturbed.result(run_id), undisturbed.result(run_id)
    assert row is not None
    assert other is not None
    if row["status"] != "finished":
        yield f"it {row['status']}: {row['reason']}"
    for name in store.COLUMNS:
        if name not in OF_THIS_TIME and row[name] != other[name]:
            yield f"{name} is {row[name]!r} and undisturbed {other[name]!r}"


def _leases(disturbed: store.Store, undisturbed: store.Store, run_id: str) -> Iterator[str]:
    """Numbered without gaps; one seal, the last, which is the result; each attempt has a reason in those before it."""
    run = disturbed.run(run_id)
    numbers = sorted(int(name[:6]) for name in run.names("leases"))
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"its leases are numbered {numbers}"
        return
    attempts = [lease.read(run, number) for number in numbers]
    if [attempt.attempt for attempt in attempts if attempt.ended == "published"] != [len(attempts)]:
        yield f"its attempts ended {[attempt.ended for attempt in attempts]}: not published once, at last"
    if attempts[-1].row != disturbed.result(run_id):
        yield "its result is not the one that was published"
    if [attempt.attempt for attempt in attempts if attempt.ended == "failed"]:
        yield f"it failed: {[attempt.reason for attempt in attempts if attempt.ended == 'failed']}"
    faults = sum(attempts[-1].faults.values())
    if faults != len(attempts) - 2:  # the seal, and the attempt that published, came of no fault
        yield f"it had {len(attempts) - 1} attempts for {faults} faults"


def _status(disturbed: store.Store, undisturbed: store.Store, run_id: str) -> Iterator[str]:
    """status.json says what the leases say."""
    run, told = disturbed.run(run_id), disturbed.status(run_id)
    for where, status in (("status.json", run.read_json("status.json")), ("its status", told)):
        last = lease.newest(run)
        assert last is not None
        expected = {"status": "finished", "attempt": last.attempt - 1, "faults": last.faults, "owner": last.owner}
        for name, value in expected.items():
            if status[name] != value:
                yield f"{where} has {name} {status[name]!r}, not {value!r}"


def _metrics(disturbed: store.Store, undisturbed: store.Store, run_id: str) -> Iterator[str]:
    """Every step and every evaluation is there, with the losses of the undisturbed sweep; segments are of attempts.

    An attempt at a branch that wakes up when the branch, and so the trunk, is done with begins at the seed, before it
    notices: in its own segment there are then steps of the trunk, with the trunk's losses.
    """
    run, _ = record.read(disturbed.config(run_id))
    labels = {member["run_id"]: member["labels"] for member in disturbed.sweep(sweeps.NAME)["members"]}
    files = disturbed.run(run_id)
    last = lease.newest(files)
    assert last is not None
    for name in files.names("metrics"):
        if not 1 <= int(name[:6]) < last.attempt:
            yield f"metrics/{name} is of no attempt"
    for kind, fields in (("train", ("loss",)), ("validation", MEASURED)):
        here, there = _values(disturbed, run_id, kind, fields), _values(undisturbed, run_id, kind, fields)
        trunk = labels[run_id].get("parent_run_id")
        known = there if trunk is None else {**_values(undisturbed, trunk, kind, fields), **there}
        lacking = there.keys() - here.keys()
        differing = [step for step, values in here.items() if known.get(step, values) != values]
        if lacking or differing or (kind == "train" and here.keys() - known.keys()):
            yield f"{kind} metrics lack steps {sorted(lacking)} and are others than undisturbed at {differing}"
    begun = run.steps - len(undisturbed.metrics(run_id, "train"))
    wanted = {step for step in runs.evaluation_steps(run.steps, sweeps.EVALUATIONS) if step > begun}
    if not wanted <= {row["step"] for row in disturbed.metrics(run_id, "validation")}:
        yield f"its evaluations are not those of steps {sorted(wanted)}"


def _values(results: store.Store, run_id: str, kind: str, fields: Sequence[str]) -> dict[int, list[float]]:
    """Columns of a run's metrics, by step."""
    return {row["step"]: [row[field] for field in fields] for row in results.metrics(run_id, kind)}


def _checkpoints(disturbed: store.Store, undisturbed: store.Store, run_id: str) -> Iterator[str]:
    """As many as the undisturbed run kept at most, in one folder, and the last step's among them."""
    run, _ = record.read(disturbed.config(run_id))
    kept = [directories.at(place).steps() for place in disturbed.checkpoints(run_id)]
    if len(kept) != 1 or run.steps not in kept[0] or len(kept[0]) > checkpoint.KEPT:
        yield f"its checkpoints are {kept}, of {run.steps} steps"
    trunk = any(member["labels"].get("parent_run_id") == run_id for member in disturbed.sweep(sweeps.NAME)["members"])
    if trunk and kept != [[run.steps]]:
        yield f"it is a trunk that is over, and its checkpoints are {kept}"


def strays(folder: Path) -> list[str]:
    """Files that a store does not document, and folders without any."""
    paths = sorted(path for path in folder.rglob("*"))
    files = [str(path.relative_to(folder)) for path in paths if not path.is_dir()]
    empty = [f"{path.relative_to(folder)}/" for path in paths if path.is_dir() and not any(path.iterdir())]
    return [name for name in files if not DOCUMENTED.fullmatch(name)] + empty


def faults(results: store.Store) -> Counter[str]:
    """How attempts ended, by what the store counted."""
    counted: Counter[str] = Counter()
    for member in results.sweep(sweeps.NAME)["members"]:
        counted.update(results.status(member["run_id"])["faults"])
    return counted


def attempts(results: store.Store) -> dict[str, int]:
    """How many attempts each run took."""
    found: dict[str, Any] = {}
    for member in results.sweep(sweeps.NAME)["members"]:
        last = lease.newest(results.run(member["run_id"]))
        found[member["run_id"]] = 0 if last is None else last.attempt - (last.ended == "published")
    return found
