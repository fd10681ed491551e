"""What of a store nothing needs any more: checkpoints of runs that ended or went on, and what dead writers left.

What stays, and all else in `runs/*/checkpoints` goes:

- everything of a run that is being trained, of one that failed, which `--retry-failed` goes on from, of one that is
  suspected to kill who takes it, of one of which a file cannot be read, and of the trunk of such a branch;
- of an unfinished run the newest two steps of all attempts that can be read, the second should the first be damaged
  after all, and the steps at which branches without a result leave it;
- of a run that ended the latter, and its last step where a sweep that lists it keeps it
  (`execution.keep_last_checkpoint`), or where no sweep lists it.

Configs, leases, metrics and results are never removed. Temporary files beside them are, when their writer is certainly
dead, or after `STRAY_SECONDS`: writing one takes milliseconds.

A worker may claim an unfinished run at any moment, and then removes checkpoints itself: two that remove one folder at
once would make its training fail. So the lease of an unfinished run is taken, as by a worker, before anything of it is
removed, what is to go is decided again under it, and it is released as it was found. A worker that comes by meanwhile
takes another run. Runs of which nothing is to go are not taken.
A branch reads from its trunk without the trunk's lease; it never reads what goes, and one that a new sweep adds
meanwhile is trained from its seed, with the same result.

Neither JAX nor Orbax is imported here.
"""

import contextlib
import dataclasses
import os
import re
import socket
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping

from scaling import config, store
from scaling.config import schedules
from scaling.storage import backends, directories, errors, host
from scaling.store import lease as leases

KEPT = directories.KEPT
FINISHED = "_CHECKPOINT_METADATA"  # which Orbax writes into a checkpoint
STRAY_SECONDS = 3600.0

ATTEMPT = re.compile(r"[0-9]{6}")
HALF_WRITTEN = re.compile(r"[0-9]+\.(draft|dropped|orbax-checkpoint-tmp.*)")  # the first two of earlier versions
# `atomic.draft_name`, and what a bucket's clock is read from: `.NAME.PID-HOST-RANDOM`, `.clock.RANDOM`
TEMPORARY = re.compile(r"\..+\.(?P<pid>[0-9]+)-(?P<host>[0-9a-f]{8})-[0-9a-f]{8}|\.clock\.[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True)
class Removal:
    """A file or folder that nothing needs: its key in the store, its bytes, and why."""

    key: str
    size: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the sweeps of a store need of its runs' checkpoints.

    `ended` are the runs with a result, `last` those whose last step stays; `leaves` are the steps at which branches
    without a result leave a trunk; `damaged` are runs of which a file cannot be read, and their trunks.
    """

    ended: frozenset[str]
    last: frozenset[str]
    leaves: Mapping[str, frozenset[int]]
    damaged: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Removable:
    """What can go: by run of those that ended and of those that did not, and temporary files.

    `left` counts the runs that are left as they are, by why.
    """

    needs: Needs
    ended: Mapping[str, list[Removal]]
    unfinished: Mapping[str, list[Removal]]
    strays: list[Removal]
    left: Mapping[str, int]

    def removals(self) -> list[Removal]:
        """All of it."""
        of_runs = [*self.ended.values(), *self.unfinished.values()]
        return [*self.strays, *(removal for removals in of_runs for removal in removals)]


@dataclasses.dataclass(frozen=True, order=True)
class Copy:
    """A finished checkpoint of one attempt; later ones are greater."""

    step: int
    attempt: str

    @property
    def key(self) -> str:
        """Its folder in the run's."""
        return f"checkpoints/{self.attempt}/{self.step}"


def find(results: store.Store, run_ids: Collection[str] | None = None) -> Removable:
    """What can be removed now, of all runs or of those given. Writes nothing.

    Raises ValueError where a sweep cannot be read, where a sweep, or a run with checkpoints, is of another version, and
    where a folder is a link, which may lead out of the store.
    """
    run_ids = results.run_ids() if run_ids is None else run_ids
    needs = _needs(results, run_ids)
    ended: dict[str, list[Removal]] = {}
    unfinished: dict[str, list[Removal]] = {}
    strays: list[Removal] = []
    left: dict[str, int] = {}
    for folder in ("", *(f"sweeps/{name}" for name in results.sweeps())):
        strays += _strays(results.files, folder)
    for run_id in run_ids:
        run = results.run(run_id)
        why, removals = _removals(results, run_id, needs)
        if why:
            left[why] = left.get(why, 0) + 1
            continue
        for folder in ("", *(name for name in run.names("") if name == "leases")):
            strays += _strays(results.files, f"runs/{run_id}/{folder}".rstrip("/"))
        if removals:
            (ended if run_id in needs.ended else unfinished)[run_id] = removals
    return Removable(needs, ended, unfinished, strays, left)


def _removals(results: store.Store, run_id: str, needs: Needs) -> tuple[str, list[Removal]]:
    """Why a run is left as it is, or nothing, and what of its checkpoints can go."""
    damaged = "are damaged, or the trunk of one that is (see `scaling status`)"
    if run_id in needs.damaged:
        return damaged, []
    try:
        why = "" if run_id in needs.ended else _skip_reason(results, results.run(run_id))
        return why, [] if why else _of_run(results, run_id, needs)
    except errors.OtherVersionError:
        raise
    except errors.UnreadableError:
        return damaged, []


def remove(
    results: store.Store,
    removable: Removable,
    on_removed: Callable[[Removal], None],
    warn: Callable[[str], None] = print,
) -> None:
    """Remove what was found; `on_removed` is called with each when it is gone.

    Of unfinished runs what may go under their lease; those that someone else took meanwhile are left as they are.
    """
    _drop(results.files, removable.strays, on_removed)
    for run_id, removals in removable.ended.items():
        _drop(results.files, removals, on_removed)
        _tidy(results.run(run_id))
    for run_id in removable.unfinished:
        _under_lease(results, run_id, removable.needs, on_removed, warn)


def tidy(results: store.Store, run_ids: Iterable[str], stop: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Remove what workers that were killed, or woke up late, left of those of the runs that have ended.

    To be called by every worker when it has nothing more to train. In a bucket nothing is ever half written, and to
    look at each of many runs there would take minutes.
    """
    if results.local is None or stop():
        return
    try:
        remove(results, find(results, results.ended(run_ids)), lambda removal: None)
    except (OSError, ValueError) as error:  # no reason for a worker to fail: `scaling gc` finds it too, and says so
        log(f"could not remove what is left of runs that ended: {type(error).__name__}: {error}")


def _under_lease(
    results: store.Store, run_id: str, needs: Needs, on_removed: Callable[[Removal], None], warn: Callable[[str], None]
) -> None:
    """Take an unfinished run, remove what can go, and leave the run as it was; nothing where it cannot be claimed."""
    before = results.status(run_id)
    if before["status"] == store.DAMAGED:
        return
    about = {"versions": before["versions"], "device": before["device"], "git_commit": before["git_commit"]}
    held = results.claim(run_id, f"gc {socket.gethostname()}:{os.getpid()}", about, suspects=False)
    if held is None:
        return
    held.step = before["step"]
    with held.beating(warn):
        try:
            _drop(results.files, _of_run(results, run_id, needs), on_removed, lambda: held.lost)
            if not held.lost:
                _tidy(results.run(run_id))
        finally:
            held.release(before["reason"], traceback=before["traceback"])


def _skip_reason(results: store.Store, run: backends.Storage) -> str:
    """Why a run without a result is left as it is, or nothing."""
    last = leases.newest(run)
    if last is None or last.ended == "stopped":
        return ""
    if last.ended == "failed":
        return "failed, and go on from theirs with --retry-failed"
    if leases.alive(run, last, results.lease_seconds):
        return "are being trained"
    return "may crash their workers" if leases.vanished(run, last) >= leases.SUSPECT else ""


def _needs(results: store.Store, run_ids: Collection[str]) -> Needs:
    """See `Needs`, of these runs. Raises ValueError where a sweep is of another version or cannot be read."""
    mine, sweeps = set(run_ids), [results.sweep(name) for name in results.sweeps()]
    listed: set[str] = set()
    last: set[str] = set()
    branches: set[tuple[str, str]] = set()
    for sweep in sweeps:
        members = {member["run_id"]: member["labels"].get("parent_run_id") for member in sweep["members"]}
        listed.update(members)
        if config.Execution.model_validate(sweep["config"]["execution"]).keep_last_checkpoint:
            last.update(members)
        branches |= {(run_id, trunk) for run_id, trunk in members.items() if trunk in mine}
    last |= mine - listed
    known = mine | {run_id for run_id, _ in branches}
    ended, damaged = _ended(results, known)
    leaves: dict[str, set[int]] = {}
    for run_id, trunk in sorted(branches):
        try:
            if run_id not in ended | damaged:
                leaves.setdefault(trunk, set()).add(_steps(results, run_id)[1])
        except errors.OtherVersionError:
            raise
        except errors.UnreadableError:
            damaged.add(run_id)
    damaged |= {trunk for run_id, trunk in branches if run_id in damaged}
    steps = {trunk: frozenset(steps) for trunk, steps in leaves.items()}
    return Needs(frozenset(ended), frozenset(last), steps, frozenset(damaged))


def _ended(results: store.Store, run_ids: Collection[str]) -> tuple[set[str], set[str]]:
    """The runs with a result, and those of which it is not known."""
    ended, damaged = results.ended(run_ids), set()
    for run_id in set(run_ids) - ended:
        try:
            ended |= {run_id} if results.result(run_id) is not None else set()
        except errors.UnreadableError:
            damaged.add(run_id)
    return ended, damaged


def _steps(results: store.Store, run_id: str) -> tuple[int, int]:
    """The steps of a run, and the one at which it would leave a trunk; its model, which may be of any family, is not
    looked at."""
    run = results.config(run_id)["run"]
    batch_tokens = run["batch_size"] * run["context"]
    steps = run["tokens"] // batch_tokens
    return steps, schedules.Schedule.model_validate(run["schedule"]).branch_step(steps, batch_tokens)


def _of_run(results: store.Store, run_id: str, needs: Needs) -> list[Removal]:
    """What of a run's checkpoints can go. Raises UnreadableError where its config or result cannot be read."""
    run, whole = results.run(run_id), f"runs/{run_id}"
    copies, halves = _contents(run)
    if not copies and not halves:
        return []
    row = results.result(run_id)
    steps, _ = _steps(results, run_id)
    last = row is not None and row["status"] == "finished" and run_id in needs.last
    wanted = needs.leaves.get(run_id, frozenset()) | (frozenset({steps}) if last else frozenset())
    kept, reason = _kept(run, copies, wanted), "the run has ended"
    if row is None:
        newest = _newest(run, copies) if len(copies) > 1 else copies
        kept |= {*newest, *(copy for copy in copies if not newest or copy > max(newest))}
        reason = "later steps are there"
    gone = [(copy.key, reason) for copy in copies if copy not in kept]
    gone += [(key, "half written, or half removed") for key in halves]
    return [Removal(f"{whole}/{key}", run.size(key), why) for key, why in gone]


def _kept(run: backends.Storage, copies: Iterable[Copy], wanted: Iterable[int]) -> set[Copy]:
    """Of each wanted step the best copies."""
    return {copy for step in wanted for copy in _best(run, [copy for copy in copies if copy.step == step])}


def _contents(run: backends.Storage) -> tuple[list[Copy], list[str]]:
    """The finished checkpoints of a run, and the keys of unfinished ones; other names are ignored."""
    copies, halves = [], []
    _confined(run, "checkpoints")
    for attempt in filter(ATTEMPT.fullmatch, run.names("checkpoints")):
        _confined(run, f"checkpoints/{attempt}")
        for name in run.names(f"checkpoints/{attempt}"):
            _confined(run, f"checkpoints/{attempt}/{name}")
            if name.isdecimal():
                copies.append(Copy(int(name), attempt))
            elif HALF_WRITTEN.fullmatch(name) or TEMPORARY.fullmatch(name):
                halves.append(f"checkpoints/{attempt}/{name}")
    return copies, halves


def _confined(run: backends.Storage, key: str) -> None:
    place = run.local()
    if place is not None and (place / key).is_symlink():
        raise ValueError(
            f"{place / key} is a symbolic link, and only what lies in the store is removed; move the folder there"
        )


def _newest(run: backends.Storage, copies: Iterable[Copy]) -> set[Copy]:
    """The newest readable copies of the newest KEPT steps of which one can be read."""
    newest: dict[int, Copy] = {}
    for copy in sorted(copies, reverse=True):
        if len(newest) < KEPT and copy.step not in newest and _readable(run, copy):
            newest[copy.step] = copy
    return set(newest.values())


def _best(run: backends.Storage, copies: Iterable[Copy]) -> set[Copy]:
    """Of copies of one step the newest that can be read, or all where none can."""
    readable = next((copy for copy in sorted(copies, reverse=True) if _readable(run, copy)), None)
    return set(copies) if readable is None else {readable}


def _readable(run: backends.Storage, copy: Copy) -> bool:
    """Whether a checkpoint is whole as far as that is cheap to tell.

    Objects of a bucket are written whole. One file has checksums; of Orbax's only the mark that it was finished counts.
    """
    place = run.local()
    if place is None:
        return True
    file = place / copy.key / directories.FILE
    if not file.exists():
        return (place / copy.key / FINISHED).exists()
    try:
        with zipfile.ZipFile(file) as opened:
            return opened.testzip() is None
    except Exception:  # whatever damage makes it raise
        return False


def _strays(files: backends.Storage, folder: str) -> list[Removal]:
    """Temporary files in a folder whose writer was a process of this host and has ended, or that are old."""
    strays = []
    for name in files.names(folder):
        match = TEMPORARY.fullmatch(name)
        if match is None:
            continue
        key = f"{folder}/{name}".lstrip("/")
        with contextlib.suppress(FileNotFoundError):  # it has its name by now
            dead = match["host"] == host.tag() and not host.started(int(match["pid"]))
            if dead or time.time() - files.modified(key) > STRAY_SECONDS:
                strays.append(Removal(key, files.size(key), "a temporary file of a writer that is gone"))
    return strays


def _drop(
    files: backends.Storage,
    removals: Iterable[Removal],
    on_removed: Callable[[Removal], None],
    lost: Callable[[], bool] = lambda: False,
) -> None:
    """Remove, until the right to is `lost`."""
    for removal in removals:
        if lost():
            return
        folder, _, name = removal.key.rpartition("/")
        if name.isdecimal():
            directories.at(files.sub(folder).place()).drop(int(name))
        else:
            files.remove(removal.key)
        on_removed(removal)


def _tidy(run: backends.Storage) -> None:
    """Remove folders of attempts that have nothing left in them."""
    for attempt in filter(ATTEMPT.fullmatch, run.names("checkpoints")):
        if not run.names(f"checkpoints/{attempt}"):
            run.remove(f"checkpoints/{attempt}")
    if not run.names("checkpoints"):
        run.remove("checkpoints")
