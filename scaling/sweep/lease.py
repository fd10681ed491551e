"""Who may train a run: numbered attempts, each taken by creating a file that did not exist.

    leases/000001.json, 000002.json, …      the highest number owns the run; numbers are taken one after another

Attempt n + 1 may be taken where attempt n was released, its process is dead on this host, or its file has not been
rewritten for `lease_seconds` by the clock of the file system. Publishing a result takes the next number too, so that
an attempt that was replaced cannot publish, however late it wakes: both would need the same file.
"""

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scaling.sweep import atomic

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0

Ended = Literal["stopped", "failed", "published"]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One lease file: who took the run, where, and how the attempt ended (None: it goes on, or its owner is lost)."""

    attempt: int
    owner: str = ""
    place: str = ""  # host, boot and process namespace in which `pid` has a meaning
    pid: int = 0
    pid_started: int = 0
    heartbeat: float = 0.0  # seconds since 1970 by the owner's clock; for people, never compared
    ended: Ended | None = None
    reason: str = ""
    row: dict[str, Any] | None = None  # the result, where `ended` is "published"


def path_of(folder: Path, attempt: int) -> Path:
    """The lease file of an attempt at the run in `folder`."""
    return folder / "leases" / f"{attempt:06d}.json"


def newest(folder: Path) -> Attempt | None:
    """The highest attempt at a run, or None. Raises ValueError where its file is not readable."""
    try:
        names = os.listdir(folder / "leases")
    except FileNotFoundError:
        return None
    numbers = [int(name[:6]) for name in names if len(name) == 11 and name[:6].isdecimal() and name.endswith(".json")]
    return read(folder, max(numbers)) if numbers else None


def read(folder: Path, attempt: int) -> Attempt:
    """One attempt. Raises ValueError naming the file where it lacks a field or has one of a later version."""
    path = path_of(folder, attempt)
    values = atomic.read_json(path)
    try:
        return Attempt(**values)
    except TypeError as error:
        raise ValueError(f"{path} is no lease of this version ({error}); use the version that wrote it") from error


def take(folder: Path, owner: str, lease_seconds: float) -> Attempt | None:
    """Take the next attempt at a run for this process, or None where someone else has it or its last attempt failed."""
    last = newest(folder)
    if last is not None and last.ended in ("failed", "published"):
        return None
    mine = Attempt(
        1 if last is None else last.attempt + 1, owner, place(), os.getpid(), started(os.getpid()), time.time()
    )
    path = path_of(folder, mine.attempt)
    with atomic.temporary(path, atomic.dumps(dataclasses.asdict(mine))) as beside:
        if last is not None and last.ended is None and not dead(last):
            now = beside.stat().st_mtime  # the same clock as the other file's: no host's clock counts
            if now - path_of(folder, last.attempt).stat().st_mtime < lease_seconds:
                return None
        return mine if atomic.link(beside, path) else None


def forgive(folder: Path) -> bool:
    """Let a run whose last attempt failed be taken again; says whether there was one."""
    last = newest(folder)
    if last is None or last.ended != "failed":
        return False
    next_attempt = Attempt(
        last.attempt + 1, ended="stopped", reason=f"attempt {last.attempt} failed; to be tried again"
    )
    return atomic.create(path_of(folder, next_attempt.attempt), atomic.dumps(dataclasses.asdict(next_attempt)))


def alive(folder: Path, attempt: Attempt, lease_seconds: float) -> bool:
    """Whether an attempt goes on, as far as this host's clock tells."""
    if attempt.ended is not None or dead(attempt):
        return False
    return time.time() - path_of(folder, attempt.attempt).stat().st_mtime < lease_seconds


def dead(attempt: Attempt) -> bool:
    """Whether the owner is certainly gone: a process of this host, boot and namespace that no longer runs."""
    return attempt.place == place() and started(attempt.pid) != attempt.pid_started


def place() -> str:
    """Where process ids have the same meaning as here: host, boot, and process namespace (containers)."""
    boot = namespace = "unknown"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


def started(pid: int) -> int:
    """When a process started, in the system's own units; 0 where none runs under that id, or it has ended."""
    if not os.path.isdir("/proc/self"):
        import psutil

        return int(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else 0
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if after_name[0] in "ZX" else int(after_name[19])


class Lease:
    """The right to train one run, as long as nobody took a higher number. Made by `Store.claim`."""

    def __init__(self, folder: Path, mine: Attempt, *, heartbeat_seconds: float, about: Mapping[str, Any]):
        self.run_id = folder.name
        self.attempt = mine.attempt
        self.owner = mine.owner
        self.folder = folder
        self.heartbeat_seconds = heartbeat_seconds
        self.step = 0
        self._mine = mine
        self._about = dict(about)
        self._lock = threading.Lock()
        self._ended = False
        self.heartbeat()

    @property
    def lost(self) -> bool:
        """Whether another attempt has replaced this one: stop, and write nothing more but this one's own metrics."""
        return not self._ended and path_of(self.folder, self.attempt + 1).exists()

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint folders of the attempts so far, oldest first; the last, this attempt's own, may not exist yet."""
        return [self.folder / "checkpoints" / f"{number:06d}" for number in range(1, self.attempt + 1)]

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to this attempt's segment; numbers that are not finite are stored as null."""
        if rows:
            atomic.append_lines(self.folder / "metrics" / f"{self.attempt:06d}.jsonl", rows)
            self.step = max(self.step, max(int(row["step"]) for row in rows))

    def heartbeat(self) -> None:
        """Say that this attempt goes on, and how far it is, unless it ended or was lost."""
        with self._lock:
            if not self._ended and not self.lost:
                self._mine = dataclasses.replace(self._mine, heartbeat=time.time())
                atomic.replace(path_of(self.folder, self.attempt), atomic.dumps(dataclasses.asdict(self._mine)))
                self._write_status("running", "", None)

    @contextlib.contextmanager
    def beating(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Heartbeats from a thread while the body runs; one that cannot be written is told to `warn`."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.heartbeat_seconds):
                try:
                    self.heartbeat()
                except OSError as error:
                    warn(f"run {self.run_id}: no heartbeat could be written ({error}); trying again")

        thread = threading.Thread(target=beat, name=f"heartbeat {self.run_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def publish(self, row: Mapping[str, Any]) -> bool:
        """Make the result visible, for ever; says False, and changes nothing, where this attempt was replaced."""
        with self._lock:
            seal = Attempt(self.attempt + 1, self.owner, ended="published", row=dict(row))
            if self._ended or not atomic.create(
                path_of(self.folder, seal.attempt), atomic.dumps(dataclasses.asdict(seal))
            ):
                return False
            self._ended = True
            atomic.create(self.folder / "result.json", atomic.dumps(row))
            self._write_status(str(row["status"]), str(row["reason"] or ""), None)
            return True

    def fail(self, reason: str, traceback: str) -> None:
        """End the attempt as failed: the run is not tried again until someone asks for it."""
        self._end("failed", reason, traceback)

    def release(self, reason: str) -> None:
        """End the attempt so that anyone may go on from its last checkpoint."""
        self._end("stopped", reason, None)

    def _end(self, how: Ended, reason: str, traceback: str | None) -> None:
        with self._lock:
            if self._ended or self.lost:
                return
            self._ended = True
            self._write_status("failed" if how == "failed" else "planned", reason, traceback)
            self._mine = dataclasses.replace(self._mine, heartbeat=time.time(), ended=how, reason=reason)
            atomic.replace(path_of(self.folder, self.attempt), atomic.dumps(dataclasses.asdict(self._mine)))

    def _write_status(self, status: str, reason: str, traceback: str | None) -> None:
        values = {
            "status": status,
            "reason": reason,
            "owner": self.owner,
            "attempt": self.attempt,
            "heartbeat": self._mine.heartbeat,
            "step": self.step,
            **self._about,
            "traceback": traceback,
        }
        atomic.replace(self.folder / "status.json", atomic.dumps(values))
