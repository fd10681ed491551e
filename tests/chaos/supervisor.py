"""Keeps workers running, whatever ends them, and disturbs them at random: by a seed, and by who runs when it is due."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from scaling import store
from scaling.launch import environments
from scaling.launch.launchers import local
from scaling.store import lease
from scaling.worker import protocol
from tests.chaos import disk, sweeps

ROOT = Path(__file__).parents[2]
AGAIN_SECONDS = 1.0  # before a worker is started again that found nothing to claim, and before a fault that hit nobody
AT_TRAINING = 0.8  # the share of faults that go to workers with a run, where there are any; others may be starting
KINDS = {"SIGKILL": 4, "SIGTERM": 3, "SIGSTOP": 3, "full disk": 1}  # and how often, relative to each other


@dataclasses.dataclass
class Slot:
    """A place for one worker."""

    core: int
    log: Path
    errors: Path
    process: subprocess.Popen[bytes] | None = None
    paused_until: float | None = None
    start_at: float = 0.0

    def send(self, number: int) -> None:
        """Send a signal to the worker."""
        assert self.process is not None
        self.process.send_signal(number)


class Supervisor:
    """Workers of one sweep, each on one core. `ends` counts how they ended: exit codes, and signals as names.

    What they write on standard error is kept in the folder `errors`.
    """

    def __init__(self, results: store.Store, workers: int, lease_seconds: float, errors: Path):
        self.results = results
        self.lease_seconds = lease_seconds
        logs = results.logs(sweeps.NAME)
        logs.mkdir(parents=True, exist_ok=True)
        cores = [share[0] for share in local.split(sorted(os.sched_getaffinity(0)), workers)]
        errors.mkdir()
        self.slots = [
            Slot(core, logs / f"worker-{number}.log", errors / f"worker-{number}.log")
            for number, core in enumerate(cores)
        ]
        self.ends: Counter[str] = Counter()
        self.starts = 0

    def tick(self, restart: bool) -> bool:
        """Wake workers that were paused long enough, note those that ended and, with `restart`, start them again.

        Says whether any runs.
        """
        now = time.monotonic()
        for slot in self.slots:
            if slot.paused_until is not None and now >= slot.paused_until:
                self.wake(slot)
            code = None if slot.process is None else slot.process.poll()
            if code is not None:
                slot.process, slot.paused_until = None, None
                self.ends[signal.Signals(-code).name if code < 0 else f"exit code {code}"] += 1
                slot.start_at = now + AGAIN_SECONDS if code == 0 else now
            if slot.process is None and restart and now >= slot.start_at:
                self._start(slot)
        return any(slot.process for slot in self.slots)

    def wake(self, slot: Slot) -> None:
        """Let a paused worker go on."""
        slot.paused_until = None
        slot.send(signal.SIGCONT)

    def holders(self) -> set[int]:
        """The processes that hold a run."""
        run_ids = [member["run_id"] for member in self.results.sweep(sweeps.NAME)["members"]]
        held = set(run_ids) - self.results.ended(run_ids)
        newest = [lease.newest(self.results.run(run_id)) for run_id in held]
        return {attempt.pid for attempt in newest if attempt is not None and attempt.ended is None}

    def end(self) -> None:
        """End all workers at once."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()

    def _start(self, slot: Slot) -> None:
        self.starts += 1
        arguments = [str(slot.core), str(self.lease_seconds), str(self.results.path), sweeps.NAME]
        # The log is in the store, as those of `scaling sweep` are; errors are elsewhere, where there is always room.
        with open(slot.log, "ab") as log, open(slot.errors, "ab") as errors:
            slot.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", *arguments],
                cwd=ROOT,
                env={**os.environ, **environments.worker(), protocol.WORKERS: str(len(self.slots))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                start_new_session=True,
            )


class Faults:
    """Deals faults for `lasting` seconds from the first on, one each `every` seconds on average, and counts them.

    The first are one of each kind, and hit workers that train.
    """

    def __init__(self, workers: Supervisor, space: disk.Disk | None, seed: int, every: float, lasting: float):
        self.workers = workers
        self.disk = space
        self.every = every
        self.lasting = lasting
        self.began: float | None = None
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()  # how long workers were paused, and the disk full
        self._kinds = {kind: weight for kind, weight in KINDS.items() if kind != "full disk" or space is not None}
        self._first = self.random.sample(list(self._kinds), len(self._kinds))
        self._next = 0.0
        self._full_until = 0.0

    @property
    def over(self) -> bool:
        """Whether all have been dealt."""
        return self.began is not None and time.monotonic() > self.began + self.lasting

    def tick(self) -> None:
        """Deal a fault where one is due."""
        now = time.monotonic()
        if self.disk is not None and self.disk.full:
            if now >= self._full_until:
                self.disk.free()
            else:
                self.disk.fill()
        if now < self._next:
            return
        kind = self._first[-1] if self._first else self.random.choices(*zip(*self._kinds.items(), strict=True))[0]
        if not (self._fill(now) if kind == "full disk" else self._hit(kind, now)):
            self._next = now + AGAIN_SECONDS
            return
        self.began = self.began or now
        self._next = now + self.random.expovariate(1 / self.every)
        self._first = self._first[:-1]

    def stop(self) -> None:
        """Give back the disk's space and wake who is paused."""
        if self.disk is not None:
            self.disk.free()
        for slot in self.workers.slots:
            if slot.paused_until is not None:
                self.workers.wake(slot)

    def _fill(self, now: float) -> bool:
        """Fill the disk, unless it is full; says whether it was done."""
        if self.disk is None or self.disk.full or (self._first and not self.workers.holders()):
            return False
        seconds = self.workers.lease_seconds * self.random.uniform(0.5, 2.5)
        self._full_until = now + seconds
        self.disk.fill()
        return self._count("full disk", seconds)

    def _hit(self, kind: str, now: float) -> bool:
        """Send a signal to a worker that is not paused; a paused one may be killed. Says whether there was one."""
        slots = [slot for slot in self.workers.slots if slot.process is not None and slot.process.poll() is None]
        if kind != "SIGKILL":
            slots = [slot for slot in slots if slot.paused_until is None]
        holders = self.workers.holders()
        training = [slot for slot in slots if slot.process is not None and slot.process.pid in holders]
        if self._first or (training and self.random.random() < AT_TRAINING):
            slots = training
        if not slots:
            return False
        slot = self.random.choice(slots)
        seconds = 0.0
        if kind == "SIGSTOP":  # longer than the lease, by as much as may pass between its last heartbeat and the signal
            seconds = self.workers.lease_seconds * self.random.uniform(1.5, 3.0)
            slot.paused_until = now + seconds
        slot.send(getattr(signal, kind))
        return self._count(kind, seconds)

    def _count(self, kind: str, seconds: float) -> bool:
        self.counts[kind] += 1
        self.seconds[kind] += seconds
        return True
