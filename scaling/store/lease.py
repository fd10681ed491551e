"""Who may train a run: numbered attempts, each taken by creating a file that did not exist.

    leases/000001.json, 000002.json, …      the highest number owns the run; numbers are taken one after another

Attempt n + 1 may be taken where attempt n was released, its process is dead on this host, or its file has not been
rewritten for `lease_seconds` by the clock of the storage. Publishing a result takes the next number too, so that
an attempt that was replaced cannot publish, however late it wakes: both would need the same file.

What later attempts must know of earlier ones is handed on from each to the next: how often and how attempts ended, and
with what microbatch, or whether alone, the run is to be tried.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from scaling.storage import atomic, backends, errors, host

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
SUSPECT = 3  # attempts that vanished one after another, from which on a run waits for all others: it may kill workers

Ended = Literal["stopped", "failed", "published"]
Fault = Literal["vanished", "preempted", "infrastructure", "out_of_memory", "pack"]


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
    faults: Mapping[str, int] = dataclasses.field(default_factory=dict)  # how often attempts ended by each, so far
    vanished: int = 0  # attempts that ended without a word just before this one
    microbatch: int | None = None  # sequences of a forward pass, where those of the sweep did not fit
    alone: bool = False  # to be trained in no pack, since one with it failed


def key_of(attempt: int) -> str:
    """The lease file of an attempt, in the run's folder."""
    return f"leases/{attempt:06d}.json"


def newest(run: backends.Storage) -> Attempt | None:
    """The highest attempt at a run, or None. Raises UnreadableError where its file is not readable."""
    names = run.names("leases")
    numbers = [int(name[:6]) for name in names if len(name) == 11 and name[:6].isdecimal() and name.endswith(".json")]
    return read(run, max(numbers)) if numbers else None


def read(run: backends.Storage, attempt: int) -> Attempt:
    """One attempt. Raises UnreadableError naming the file where it lacks a field or has one of a later version."""
    values = run.read_json(key_of(attempt))
    try:
        return Attempt(**values)
    except TypeError as error:
        raise errors.UnreadableError(
            f"{run}/{key_of(attempt)} is no lease of this version ({error}); use the version that wrote it"
        ) from error


def take(
    run: backends.Storage, owner: str, lease_seconds: float, *, joining: bool = False, suspects: bool = True
) -> Attempt | None:
    """Take the next attempt at a run for this process, or None where someone else has it or its last attempt failed.

    A run that must be alone is not taken to be `joining` a pack; one whose attempts vanish only where `suspects` may.
    """
    last = newest(run)
    if last is None:
        last = Attempt(0, ended="stopped")
    if last.ended in ("failed", "published") or (joining and last.alone):
        return None
    faults, vanished = dict(last.faults), 0
    if last.ended is None:
        if not dead(last) and run.now() - run.modified(key_of(last.attempt)) < lease_seconds:
            return None
        faults["vanished"] = faults.get("vanished", 0) + 1
        vanished = last.vanished + 1
        if vanished >= SUSPECT and not suspects:
            return None
    pid = os.getpid()
    mine = dataclasses.replace(
        Attempt(last.attempt + 1, owner, host.place(), pid, host.started(pid), time.time()),
        faults=faults,
        vanished=vanished,
        microbatch=last.microbatch,
        alone=last.alone,
    )
    return mine if run.create(key_of(mine.attempt), _text(mine)) else None


def forgive(run: backends.Storage) -> bool:
    """Let a run whose last attempt failed be taken again; says whether there was one."""
    last = newest(run)
    if last is None or last.ended != "failed":
        return False
    again = Attempt(last.attempt + 1, ended="stopped", reason=f"attempt {last.attempt} failed; to be tried again")
    return run.create(key_of(again.attempt), _text(dataclasses.replace(again, faults=last.faults)))


def complete(run: backends.Storage) -> None:
    """Write the result that an owner sealed who died before it had written it."""
    last = newest(run)
    if last is not None and last.row is not None:
        restate(run)
        run.create("result.json", atomic.dumps(last.row))


def restate(run: backends.Storage) -> None:
    """Write status.json anew, by how the newest attempt ended; one that goes on will say so itself."""
    last = newest(run)
    if last is None or last.ended is None:
        return
    known = run.read_json("status.json") if run.exists("status.json") else {}
    told = {"status": "failed" if last.ended == "failed" else "planned", "reason": last.reason}
    known |= {**told, "attempt": last.attempt, "owner": last.owner, "faults": dict(last.faults), "traceback": None}
    if last.row is not None:  # the number of a result is that after its attempt's
        known |= {"status": last.row["status"], "reason": last.row["reason"] or "", "attempt": last.attempt - 1}
    run.replace("status.json", atomic.dumps(known))


def alive(run: backends.Storage, attempt: Attempt, lease_seconds: float) -> bool:
    """Whether an attempt goes on, as far as this host's clock tells."""
    if attempt.ended is not None or dead(attempt):
        return False
    return time.time() - run.modified(key_of(attempt.attempt)) < lease_seconds


def dead(attempt: Attempt) -> bool:
    """Whether the owner is certainly gone: a process of this host, boot and namespace that no longer runs."""
    return attempt.place == host.place() and host.started(attempt.pid) != attempt.pid_started


def _text(attempt: Attempt) -> str:
    return atomic.dumps(dataclasses.asdict(attempt))


class Lease:
    """The right to train one run, as long as nobody took a higher number. Made by `Store.claim`."""

    def __init__(
        self,
        run_id: str,
        run: backends.Storage,
        mine: Attempt,
        *,
        heartbeat_seconds: float,
        about: Mapping[str, Any],
    ):
        self.run_id = run_id
        self.run = run
        self.attempt = mine.attempt
        self.owner = mine.owner
        self.alone = mine.alone
        self.microbatch = mine.microbatch
        self.heartbeat_seconds = heartbeat_seconds
        self.step = 0
        self._mine = mine
        self._about = dict(about)
        self._lock = threading.Lock()
        self._ended = False
        self._lost = False
        self._asked = -float("inf")
        self._rows: list[Mapping[str, Any]] = []  # metrics that are held back
        self._flushed = time.monotonic()
        self.heartbeat()

    @property
    def lost(self) -> bool:
        """Whether another attempt has replaced this one: stop, and write nothing more but this one's own metrics.

        Where each question is a request it is asked no oftener than `pace_seconds`; a result is never published late
        whatever this says.
        """
        if self._ended:
            return False
        if not self._lost and time.monotonic() - self._asked >= self.run.pace_seconds:
            self._lost = self.run.exists(key_of(self.attempt + 1))
            self._asked = time.monotonic()
        return self._lost

    @property
    def checkpoints(self) -> list[backends.Place]:
        """Checkpoint folders of the attempts so far, oldest first; the last, this attempt's own, may not exist yet."""
        return [self.run.sub(f"checkpoints/{number:06d}").place() for number in range(1, self.attempt + 1)]

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to this attempt's segment; numbers that are not finite are stored as null.

        Where each write is a request, rows are held back for `pace_seconds`, or until `flush`.
        """
        self._rows += rows
        if rows:
            self.step = max(self.step, max(int(row["step"]) for row in rows))
        if time.monotonic() - self._flushed >= self.run.pace_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are held back: to be done before a checkpoint, after which none measures them again."""
        if self._rows:
            self.run.append(f"metrics/{self.attempt:06d}.jsonl", self._rows)
            self._rows = []
        self._flushed = time.monotonic()

    def heartbeat(self) -> None:
        """Say that this attempt goes on, and how far it is, unless it ended or was lost."""
        with self._lock:
            if not self._ended and not self.lost:
                self._mine = dataclasses.replace(self._mine, heartbeat=time.time())
                self.run.replace(key_of(self.attempt), _text(self._mine))
                self._tell("running", "", None)

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
        self.flush()
        with self._lock:
            seal = Attempt(self.attempt + 1, self.owner, ended="published", row=dict(row), faults=self._mine.faults)
            if self._ended or not self.run.create(key_of(seal.attempt), _text(seal)):
                return False
            self._ended = True
            self._write_status(str(row["status"]), str(row["reason"] or ""), None)
            self.run.create("result.json", atomic.dumps(row))  # at last: who finds it missing writes both (`complete`)
            return True

    def fail(self, reason: str, traceback: str, fault: Fault | None = None) -> None:
        """End the attempt as failed: the run is not tried again until someone asks for it."""
        self._end("failed", reason, traceback, fault)

    def release(
        self,
        reason: str,
        fault: Fault | None = None,
        *,
        microbatch: int | None = None,
        alone: bool = False,
        traceback: str | None = None,
    ) -> None:
        """End the attempt so that anyone may go on from its last checkpoint.

        `fault` is counted; with a `microbatch`, or `alone`, the run is tried so from now on.
        """
        changes = {"microbatch": microbatch or self.microbatch, "alone": alone or self.alone}
        self._end("stopped", reason, traceback, fault, **changes)

    def _end(self, how: Ended, reason: str, traceback: str | None, fault: Fault | None, **changes: Any) -> None:
        self.flush()
        with self._lock:
            if self._ended or self.lost:
                return
            self._ended = True
            faults = dict(self._mine.faults)
            if fault is not None:
                faults[fault] = faults.get(fault, 0) + 1
            changes |= {"heartbeat": time.time(), "ended": how, "reason": reason, "faults": faults}
            self._mine = dataclasses.replace(self._mine, **changes)
            self._tell("failed" if how == "failed" else "planned", reason, traceback)
            self.run.replace(key_of(self.attempt), _text(self._mine))

    def _tell(self, status: str, reason: str, traceback: str | None) -> None:
        """Write status.json; where this attempt was replaced in the meantime, what its successor said is told again."""
        self._write_status(status, reason, traceback)
        if self.run.exists(key_of(self.attempt + 1)):
            self._lost = True
            restate(self.run)

    def _write_status(self, status: str, reason: str, traceback: str | None) -> None:
        values = {
            "status": status,
            "reason": reason,
            "owner": self.owner,
            "attempt": self.attempt,
            "faults": dict(self._mine.faults),
            "microbatch": self._mine.microbatch,
            "heartbeat": self._mine.heartbeat,
            "step": self.step,
            **self._about,
            "traceback": traceback,
        }
        self.run.replace("status.json", atomic.dumps(values))
