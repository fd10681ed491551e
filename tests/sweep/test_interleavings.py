"""Several workers and runs, interleaved at every operation on the storage: one writer, one result, never rewritten.

Each worker is a thread that stops before every operation on its storage until it is told to go on, so that any other
may come in between; to do the operation and be told that it failed, or that it could not be done; or to die there, as a
process does. Time passes where the test says so.
"""

import copy
import datetime
import itertools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
from hypothesis import settings, stateful
from hypothesis import strategies as st

from scaling import store
from scaling.storage import backends, bucket, host, retry
from scaling.store import layout
from scaling.store import lease as leases

RUNS = [f"{number:016x}" for number in range(2)]
MOSTLY_ONE = st.sampled_from([RUNS[0], RUNS[0], RUNS[0], RUNS[1]])  # workers are to meet
WORKERS = range(3)
LEASE_SECONDS = 60.0
FATES = ("go on",) * 6 + ("full disk", "die")  # what may become of an operation
LOST = "lost reply"  # it is done, and its reply is lost, as over a network


class DeathError(BaseException):
    """The process ends between two operations."""


def _stepped(name: str) -> Callable[..., Any]:
    def operation(self: "Stepped", *given: Any) -> Any:
        fate = self.turn()
        if fate == "full disk":
            raise OSError(28, "No space left on device")
        done = getattr(self.inner, name)(*given)
        if fate == LOST:
            raise retry.UnreachableError("the connection was lost")
        return done

    return operation


class Paused(backends.Storage):
    """A storage each operation of which waits for its turn."""

    def __init__(self, inner: backends.Storage, turn: Callable[[], str]):
        self.inner = inner
        self.turn = turn
        self.min_request_interval_seconds = inner.min_request_interval_seconds

    def __str__(self) -> str:
        return str(self.inner)

    def sub(self, key: str) -> "Stepped":
        return Stepped(self.inner.sub(key), self.turn)

    def local(self) -> Path | None:
        return self.inner.local()


OPERATIONS = backends.Storage.__abstractmethods__ - {"__str__", "sub"}
Stepped: Any = type("Stepped", (Paused,), {name: _stepped(name) for name in OPERATIONS})


class Worker:
    """A process that does one thing at a time, an operation at each step; when it dies another takes its place."""

    def __init__(self, number: int, results: store.Store):
        self.number = number
        self.pid = 1000 * (number + 1)
        self.held: list[leases.Lease] = []
        self.torn = False  # whether it ever died in the middle of something
        self._fate = ""
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.results = copy.copy(results)
        self.results.files = Stepped(results.files, self._turn)
        self.results = self.results.retrying(self)

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def begin(self, do: Callable[[], object]) -> None:
        """Begin something, up to its first operation."""

        def run() -> None:
            try:
                do()
            except BaseException as error:
                self._error = error
            self._thread = None
            self._stopped.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self._wait()

    def step(self, fate: str) -> None:
        """Let the operation happen at which it stands, or not, and go on up to the next."""
        self._fate = fate
        self._go.release()
        self._wait()

    def die(self) -> None:
        """Begin again as another process, which holds nothing."""
        if self.busy:
            self.torn = True
            self.step("die")
        self.pid += 1
        self.held = []

    def wait(self, error: OSError, seconds: float) -> None:
        """See `retry.Waiter`: it tries again when its turn comes."""

    def passed(self, seconds: float) -> None:
        """See `retry.Waiter`."""

    def _turn(self) -> str:
        self._stopped.release()
        self._go.acquire()
        if self._fate == "die":
            raise DeathError
        return self._fate

    def _wait(self) -> None:
        self._stopped.acquire()
        error, self._error = self._error, None
        if error is not None and not isinstance(error, DeathError):
            raise error


class Interleavings(stateful.RuleBasedStateMachine):
    """Any interleaving keeps what the store promises. Subclasses say where its files are."""

    fates: tuple[str, ...] = FATES

    def __init__(self) -> None:
        super().__init__()
        self.files = self.place()
        with mock.patch.object(backends, "open_storage", return_value=self.files):
            self.results = store.Store("there")
        for run_id in RUNS:
            self.results.add_run(run_id, {"format": 1, "run_id": run_id, "run": {"data": {}}, "data": {}})
        self.workers = [Worker(number, self.results) for number in WORKERS]
        self.now = self.workers[0]  # the worker whose thread runs
        alive = lambda pid: pid if pid in {worker.pid for worker in self.workers} else 0  # noqa: E731
        self.patches = [
            mock.patch.object(host, "started", alive),
            mock.patch.object(os, "getpid", side_effect=lambda: self.now.pid),
            mock.patch.object(os, "fsync", return_value=None),
        ]
        for patch in self.patches:
            patch.start()
        self.owners: dict[tuple[str, int], str] = {}  # who was given an attempt
        self.finished: dict[str, float] = {}  # the loss of whoever was told that its result counts
        self.seen: dict[str, bytes] = {}  # results, as they were first seen
        self.order = itertools.count()
        self.asked: dict[tuple[str, int], tuple[int, int | None, bool]] = {}  # when, and microbatch and alone from then
        self.rows = 0

    def place(self) -> backends.Storage:
        raise NotImplementedError

    def age(self, key: str, seconds: float) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            for worker in self.workers:
                self.now = worker
                while worker.busy:
                    worker.step("go on")
                worker.die()
            self.every_run_can_be_ended()
            self.check()
        finally:
            for patch in self.patches:
                patch.stop()

    def every_run_can_be_ended(self) -> None:
        """Whatever was left behind, a new worker ends each run."""
        self.now = Worker(9, self.results)
        for run_id in RUNS:
            self.results.retry(run_id)
            heir = f"{next(self.order)}:heir"
            lease = self.results.claim(run_id, heir)
            assert (lease is None) is (self.results.result(run_id) is not None)
            if lease is not None:
                self.given(lease, heir)
                assert self.publish(lease, -1.0)
            assert self.files.exists(f"runs/{run_id}/result.json")
            told, status = self.files.read_json(f"runs/{run_id}/status.json"), self.results.status(run_id)
            last = self.newest(run_id)
            for name, value in {"status": "finished", "attempt": last.attempt - 1, "faults": last.faults}.items():
                assert status[name] == value
                assert told[name] == value or any(worker.torn for worker in self.workers)

    # What workers do

    def given(self, lease: leases.Lease, owner: str) -> None:
        key = (lease.run_id, lease.attempt)
        assert key not in self.owners, f"{key} is of {self.owners[key]} and was given to {owner}"
        self.owners[key] = owner

    def claim(self, worker: Worker, run_id: str, joining: bool, suspects: bool) -> None:
        owner = f"{next(self.order)}:{worker.number}:{worker.pid}"
        lease = worker.results.claim(run_id, owner, joining=joining, suspects=suspects)
        if lease is not None:
            self.given(lease, owner)
            assert not (joining and lease.alone)
            worker.held.append(lease)

    def publish(self, lease: leases.Lease, loss: float) -> bool:
        ours = lease.publish({"status": "finished", "reason": None, "loss": loss})
        if ours:
            assert lease.run_id not in self.finished, f"{lease.run_id} was finished twice"
            self.finished[lease.run_id] = loss
        return ours

    def release(self, lease: leases.Lease, microbatch: int | None, alone: bool) -> None:
        before, over = (lease.microbatch, lease.alone), lease._ended
        lease.release("stopped", "out_of_memory" if microbatch else None, microbatch=microbatch, alone=alone)
        run = self.files.sub(f"runs/{lease.run_id}")
        if not over and not run.exists(leases.key_of(lease.attempt + 1)):
            asked = next(self.order), microbatch or before[0], alone or before[1]
            self.asked[lease.run_id, lease.attempt] = asked

    def measure(self, lease: leases.Lease) -> None:
        self.rows += 1
        lease.metrics([{"kind": "train", "step": self.rows, "attempt": lease.attempt}])
        lease.flush()

    @stateful.rule(number=st.sampled_from(WORKERS), run_id=MOSTLY_ONE, joining=st.booleans(), suspects=st.booleans())
    def begin_to_claim(self, number: int, run_id: str, joining: bool, suspects: bool) -> None:
        self.begin(number, lambda worker: self.claim(worker, run_id, joining, suspects))

    @stateful.rule(run_id=MOSTLY_ONE)
    def all_begin_to_claim(self, run_id: str) -> None:
        for number in WORKERS:
            self.begin(number, lambda worker: self.claim(worker, run_id, False, True))

    @stateful.precondition(lambda self: any(self.newest(run_id).ended == "failed" for run_id in RUNS))
    @stateful.rule(number=st.sampled_from(WORKERS))
    def begin_to_retry(self, number: int) -> None:
        self.begin(number, lambda worker: [worker.results.retry(run_id) for run_id in RUNS])

    @stateful.precondition(lambda self: any(worker.held and not worker.busy for worker in self.workers))
    @stateful.rule(
        data=st.data(),
        what=st.sampled_from(("beat", "measure", "publish", "publish", "fail", "release", "release")),
        loss=st.floats(0, 10),
        microbatch=st.sampled_from([None, None, 1]),
        alone=st.booleans(),
    )
    def begin_with_a_lease(
        self, data: st.DataObject, what: str, loss: float, microbatch: int | None, alone: bool
    ) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.held and not w.busy]))
        lease = data.draw(st.sampled_from(worker.held))
        does: dict[str, Callable[[], object]] = {
            "beat": lease.heartbeat,
            "measure": lambda: self.measure(lease),
            "publish": lambda: self.publish(lease, loss),
            "fail": lambda: lease.fail("ValueError: no", "Traceback …"),
            "release": lambda: self.release(lease, microbatch, alone),
        }
        self.begin(worker.number, lambda _: does[what]())

    def begin(self, number: int, do: Callable[[Worker], object]) -> None:
        self.now = worker = self.workers[number]
        if not worker.busy:
            worker.begin(lambda: do(worker))

    @stateful.precondition(lambda self: any(worker.busy for worker in self.workers))
    @stateful.rule(data=st.data(), steps=st.sampled_from([1, 1, 2, 3, 20]))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        """A worker does some operations, the last of which may fail."""
        self.now = worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.busy]))
        for step in range(steps):
            if worker.busy:
                fate = data.draw(st.sampled_from(self.fates)) if step == steps - 1 else "go on"
                worker.die() if fate == "die" else worker.step(fate)

    @stateful.precondition(lambda self: sum(worker.busy for worker in self.workers) > 1)
    @stateful.rule(turns=st.lists(st.sampled_from(WORKERS), max_size=40))
    def all_go_on(self, turns: list[int]) -> None:
        """All who are at something end it, one operation at a time, in any order."""
        for number in (*turns, *sorted([*WORKERS] * 40)):
            self.now = worker = self.workers[number]
            if worker.busy:
                worker.step("go on")
                self.check()

    @stateful.precondition(lambda self: any(worker.held for worker in self.workers))
    @stateful.rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.now = data.draw(st.sampled_from([worker for worker in self.workers if worker.held]))
        self.now.die()

    @stateful.rule(run_id=MOSTLY_ONE, seconds=st.sampled_from([1.0, LEASE_SECONDS, LEASE_SECONDS]))
    def time_passes(self, run_id: str, seconds: float) -> None:
        last = self.newest(run_id)
        if last.attempt:
            self.age(f"runs/{run_id}/{leases.key_of(last.attempt)}", seconds)

    def newest(self, run_id: str) -> leases.Attempt:
        return leases.newest(self.files.sub(f"runs/{run_id}")) or leases.Attempt(0)

    # What holds at every moment

    @stateful.invariant()
    def check(self) -> None:
        for run_id in RUNS:
            self.check_run(run_id, self.files.sub(f"runs/{run_id}"))

    def check_run(self, run_id: str, run: backends.Storage) -> None:
        names = [name for name in run.names("leases") if not name.startswith(".")]
        numbers = [int(name[:6]) for name in names]
        assert numbers == list(range(1, len(names) + 1))
        attempts = [leases.read(run, number) for number in numbers]
        published = [attempt for attempt in attempts if attempt.ended == "published"]
        assert published in ([], attempts[-1:])
        holders = [
            lease
            for worker in self.workers
            for lease in worker.held
            if lease.run_id == run_id and lease.attempt == len(attempts) and attempts[-1].ended is None
        ]
        assert len(holders) <= 1, "two may write"
        if attempts:
            over = attempts[-1].ended in ("stopped", "failed")
            assert sum(attempts[-1].faults.values()) <= len(attempts) - (not over)
        self.check_what_is_handed_on(run_id, attempts)
        if run.exists("result.json"):
            content = run.read("result.json")
            assert self.seen.setdefault(run_id, content) == content, "a result was rewritten"
            assert json.loads(content) == published[0].row
        else:
            assert run_id not in self.seen, "a result is gone"
        if run_id in self.finished:
            assert published[0].row is not None
            assert published[0].row["loss"] == self.finished[run_id]
        for attempt, row in self.measured(run):
            assert row["attempt"] == attempt, "an attempt wrote another's segment"

    def check_what_is_handed_on(self, run_id: str, attempts: list[leases.Attempt]) -> None:
        """Who begins to claim a run when it was released with a smaller microbatch, or to be tried alone, knows of it.

        Not who was at it before: of an attempt that was given up for lost what it says at last may go unheard.
        """
        when, microbatch, alone = -1, None, False
        for attempt in attempts:
            begins_anew = not attempt.owner or attempt.ended == "published"  # a retry, or a result
            if begins_anew or int(attempt.owner.partition(":")[0]) < when:
                when, microbatch, alone = -1, None, False
            assert microbatch in (None, attempt.microbatch), "the microbatch was not carried over"
            assert attempt.alone or not alone, "that it is to be trained alone was not carried over"
            when, microbatch, alone = self.asked.get((run_id, attempt.attempt), (when, microbatch, alone))

    def measured(self, run: backends.Storage) -> Iterator[tuple[int, dict[str, Any]]]:
        for name in run.names("metrics"):
            assert layout.SEGMENT.fullmatch(name)
            for line in run.read(f"metrics/{name}").splitlines():
                yield int(name[:6]), json.loads(line)


class OnAFolder(Interleavings):
    def place(self) -> backends.Storage:
        self.folder = tempfile.TemporaryDirectory()
        return backends.Folder(Path(self.folder.name) / "store")

    def age(self, key: str, seconds: float) -> None:
        path = Path(self.folder.name) / "store" / key
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


class InABucket(Interleavings):
    """A memory with the conditional writes of a bucket, whose replies may be lost."""

    fates = (*FATES, LOST)

    def place(self) -> backends.Storage:
        self.memory = fsspec.filesystem("memory", skip_instance_cache=True)
        self.memory.store.clear()
        self.memory.pseudo_dirs.clear()
        service = bucket.Service("memory")
        service._fs = self.memory
        return bucket.Bucket(service, "/bucket/store")

    def age(self, key: str, seconds: float) -> None:
        self.memory.store[f"/bucket/store/{key}"].modified -= datetime.timedelta(seconds=seconds)


for machine in (OnAFolder, InABucket):
    machine.TestCase.settings = settings(max_examples=80, stateful_step_count=60)
TestOnAFolder = OnAFolder.TestCase
TestInABucket = InABucket.TestCase
