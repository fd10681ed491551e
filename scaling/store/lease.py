"""Leases: numbered attempts at a run, each taken by creating a file that did not exist.

    leases/000001.json, 000002.json, …      the highest number owns the run; numbers are taken one after another

Invariants: at most one attempt has each number, since creating a file is atomic; and at most one result is published.
The number is the fencing token: publishing creates the file of the next number, so that of an owner and its successor
one creates it and the other fails, however late a paused owner goes on.

Attempt n + 1 may be taken where attempt n was released, where its process is dead on this host, or where it has sent no
heartbeat, a rewrite of its file, for `lease_seconds` by the clock of the storage. Clocks of hosts are not compared. A
lease that expires too early costs work that is done twice, and changes no result.

Each attempt carries over from the one before it: how often and how attempts ended, the microbatch to use, and whether
the run is to be trained alone.
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
SUSPECT = 3  # attempts in a row that vanished without a checkpoint: the run may crash its workers and comes last

Ended = Literal["stopped", "failed", "published"]
Fault = Literal["vanished", "preempted", "infrastructure", "out_of_memory", "pack"]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One lease file: owner, place, and how the attempt ended (None: it goes on, or its owner died)."""

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
    vanished: int = 0  # attempts just before this one that vanished without a checkpoint
    microbatch: int | None = None  # sequences of a forward pass, where those of the sweep did not fit
    alone: bool = False  # train it in no pack, since one with it failed


def key_of(attempt: int) -> str:
    """The lease file of an attempt, in the run's folder."""
    return f"leases/{attempt:06d}.json"


def newest(run: backends.Storage) -> Attempt | None:
    """The attempt with the highest number, or None. Raises UnreadableError where its file is damaged."""
    names = run.names("leases")
    numbers = [int(name[:6]) for name in names if len(name) == 11 and name[:6].isdecimal() and name.endswith(".json")]
    return read(run, max(numbers)) if numbers else None


def read(run: backends.Storage, attempt: int) -> Attempt:
    """One attempt. Raises UnreadableError naming the file where it is no lease of this version."""
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
    """Take the next attempt at a run for this process; None where its lease is held, or it has ended or failed.

    A run that is to be trained alone is not taken when `joining` a pack, and a suspect only with `suspects`. Of several
    processes that find the lease free, one creates the next file and the others get None.
    """
    last = newest(run)
    if last is None:
        last = Attempt(0, ended="stopped")
    if last.ended in ("failed", "published") or (joining and last.alone):
        return None
    faults, in_a_row = dict(last.faults), 0
    if last.ended is None:
        if not dead(last) and run.now() - run.modified(key_of(last.attempt)) < lease_seconds:
            return None
        faults["vanished"] = faults.get("vanished", 0) + 1
        in_a_row = vanished(run, last)
        if in_a_row >= SUSPECT and not suspects:
            return None
    pid = os.getpid()
    mine = dataclasses.replace(
        Attempt(last.attempt + 1, owner, host.place(), pid, host.started(pid), time.time()),
        faults=faults,
        vanished=in_a_row,
        microbatch=last.microbatch,
        alone=last.alone,
    )
    return mine if run.create(key_of(mine.attempt), _text(mine)) else None


def vanished(run: backends.Storage, last: Attempt) -> int:
    """How many attempts in a row vanished without a checkpoint, up to `last`, which vanished.

    An attempt that left a checkpoint of its own made progress: machines that are taken away again and again do not
    make a long run a suspect.
    """
    progressed = any(name.isdecimal() for name in run.names(f"checkpoints/{last.attempt:06d}"))
    return 0 if progressed else last.vanished + 1


def reopen(run: backends.Storage) -> bool:
    """Let a run whose last attempt failed be taken again; says whether there was one."""
    last = newest(run)
    if last is None or last.ended != "failed":
        return False
    again = Attempt(last.attempt + 1, ended="stopped", reason=f"attempt {last.attempt} failed; to be tried again")
    return run.create(key_of(again.attempt), _text(dataclasses.replace(again, faults=last.faults)))


def complete(run: backends.Storage) -> None:
    """Finish the publication of an owner that died between creating its seal and writing result.json. Idempotent."""
    last = newest(run)
    if last is not None and last.row is not None:
        restate(run)
        run.create("result.json", atomic.dumps(last.row))


def restate(run: backends.Storage) -> None:
    """Rewrite status.json by how the newest attempt ended; one that goes on writes it at its next heartbeat.

    Repairs what a superseded attempt wrote late. status.json informs people and decides nothing.
    """
    last = newest(run)
    if last is None or last.ended is None:
        return
    known: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, errors.UnreadableError):
        known = run.read_json("status.json")
    known |= {"status": "failed" if last.ended == "failed" else "planned", "reason": last.reason}
    known |= {"attempt": last.attempt, "owner": last.owner, "faults": dict(last.faults), "traceback": None}
    if last.row is not None:  # the number of a result is that after its attempt's
        known |= {"status": last.row["status"], "reason": last.row["reason"] or "", "attempt": last.attempt - 1}
    run.replace("status.json", atomic.dumps(known))


def alive(run: backends.Storage, attempt: Attempt, lease_seconds: float) -> bool:
    """Whether an attempt holds its lease, by this host's clock: for people, and never to take a lease."""
    if attempt.ended is not None or dead(attempt):
        return False
    return time.time() - run.modified(key_of(attempt.attempt)) < lease_seconds


def dead(attempt: Attempt) -> bool:
    """Whether the owner certainly died: a process of this host, boot and namespace that no longer runs."""
    return attempt.place == host.place() and host.started(attempt.pid) != attempt.pid_started


def _text(attempt: Attempt) -> str:
    return atomic.dumps(dataclasses.asdict(attempt))


class Lease:
    """The lease of one run, held until another attempt takes a higher number. Made by `Store.claim`."""

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
        self._looked = -float("inf")
        self._rows: list[Mapping[str, Any]] = []  # of metrics, not yet written
        self._flushed = time.monotonic()
        self.heartbeat()

    @property
    def lost(self) -> bool:
        """Whether another attempt has superseded this one: stop training, and write only this attempt's own metrics.

        In a bucket it looks once in `min_request_interval_seconds` at most. A stale answer costs work
        only: publishing is fenced.
        """
        if self._ended:
            return False
        if not self._lost and time.monotonic() - self._looked >= self.run.min_request_interval_seconds:
            self._lost = self.run.exists(key_of(self.attempt + 1))
            self._looked = time.monotonic()
        return self._lost

    @property
    def checkpoints(self) -> list[backends.Place]:
        """Checkpoint directories of the attempts so far, oldest first; this attempt's, the last, may be missing."""
        return [self.run.sub(f"checkpoints/{number:06d}").place() for number in range(1, self.attempt + 1)]

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to this attempt's segment; numbers that are not finite are stored as null.

        In a bucket, where each write is a request, rows are buffered for `min_request_interval_seconds`, or until
        `flush`.
        """
        self._rows += rows
        if rows:
            self.step = max(self.step, max(int(row["step"]) for row in rows))
        if time.monotonic() - self._flushed >= self.run.min_request_interval_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows. Call it before a checkpoint: a later attempt repeats no step before that."""
        if self._rows:
            self.run.append(f"metrics/{self.attempt:06d}.jsonl", self._rows)
            self._rows = []
        self._flushed = time.monotonic()

    def heartbeat(self) -> None:
        """Renew the lease and write the progress to status.json, unless the attempt ended or was superseded."""
        with self._lock:
            if not self._ended and not self.lost:
                self._mine = dataclasses.replace(self._mine, heartbeat=time.time())
                self.run.replace(key_of(self.attempt), _text(self._mine))
                self._write_own_status("running", "", None)

    @contextlib.contextmanager
    def beating(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Send heartbeats from a thread while the body runs; one that cannot be written is logged by `warn`."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.heartbeat_seconds):
                try:
                    self.heartbeat()
                except (OSError, errors.UnreadableError) as error:
                    warn(f"run {self.run_id}: no heartbeat could be written ({error}); trying again")

        thread = threading.Thread(target=beat, name=f"heartbeat {self.run_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def publish(self, row: Mapping[str, Any]) -> bool:
        """Publish the result, at most once; returns False and changes nothing where this attempt was superseded.

        Step 1 creates the seal, the file of the next number with the row in it: the fence. Step 2 writes result.json.
        Where the owner dies between them, the next process that tries to claim the run does step 2 (`complete`).
        """
        self.flush()
        with self._lock:
            seal = Attempt(self.attempt + 1, self.owner, ended="published", row=dict(row), faults=self._mine.faults)
            if self._ended or not self.run.create(key_of(seal.attempt), _text(seal)):
                return False
            self._ended = True
            self._write_status(str(row["status"]), str(row["reason"] or ""), None)
            self.run.create("result.json", atomic.dumps(row))
            return True

    def fail(self, reason: str, traceback: str, fault: Fault | None = None) -> None:
        """End the attempt as failed: the run is not claimed again until `reopen`."""
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
        """End the attempt and free the lease: the next attempt resumes from the last checkpoint.

        `fault` is counted; `microbatch` and `alone` hold for all later attempts.
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
            self._write_own_status("failed" if how == "failed" else "planned", reason, traceback)
            self.run.replace(key_of(self.attempt), _text(self._mine))

    def _write_own_status(self, status: str, reason: str, traceback: str | None) -> None:
        """Write status.json, and restate it where this attempt was superseded before the write."""
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
