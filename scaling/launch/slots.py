"""Workers in slots, each of which holds one: started, started again where they crash or are lost, and given up."""

import abc
import dataclasses
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from scaling import store
from scaling.launch import launcher
from scaling.store import lease
from scaling.worker import protocol

TAIL_BYTES = 2000
PAUSE_SECONDS = 5.0  # between the end of a worker and the start of one for runs that others left


@dataclasses.dataclass
class Slot:
    """A place for one worker."""

    number: int
    crashes: int = 0
    given_up: bool = False
    ended: float = 0.0  # when its last worker ended, by the monotonic clock
    lost: bool = False  # whether that one ended by no fault of its own


@dataclasses.dataclass(frozen=True)
class End:
    """How a worker ended: its exit code, None where it was lost with its machine; the same in words; its log."""

    code: int | None
    how: str
    log: str
    tail: str


S = TypeVar("S", bound=Slot)


class SlotWorkers(launcher.Workers, Generic[S]):
    """Workers that are started again where they crash, where their machine is lost, or where others leave runs."""

    def __init__(self, results: store.Store, sweep_name: str, slots: Sequence[S]):
        super().__init__()
        self.slots = slots
        self.stopping = False
        self.open_runs = launcher.OpenRuns(results, sweep_name)
        self._filled = -float("inf")  # when workers were last started for runs that others left

    @abc.abstractmethod
    def busy(self, slot: S) -> bool:
        """Whether there is a worker in a slot, running or about to."""

    @abc.abstractmethod
    def look(self, slot: S) -> End | None:
        """How the worker of a busy slot has ended, which leaves the slot empty; None while it goes on."""

    @abc.abstractmethod
    def start(self, slot: S) -> None:
        """Start a worker in an empty slot."""

    def poll(self) -> bool:
        """See `launcher.Workers`: restarts what crashed, and fills empty slots where nobody trains what is left."""
        for slot in self.slots:
            end = self.look(slot) if self.busy(slot) else None
            if end is not None:
                self.open_runs.expire()
                self._ended(slot, end)
        busy = [slot for slot in self.slots if self.busy(slot)]
        if busy and len(busy) < len(self.slots) and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        usable = [slot for slot in self.slots if not slot.given_up and not self.busy(slot)]
        if self.stopping or not usable:
            return bool(busy)
        left, now = self.open_runs(), time.monotonic()
        ready = [slot for slot in usable if now - max(slot.ended, self._filled) > _pause(slot, bool(busy))]
        for slot in ready[: left.count("planned")]:
            self._filled = now
            self.start(slot)
        return bool(busy or left)

    def _ended(self, slot: S, end: End) -> None:
        """Restart a worker that crashed, and say so; give it up after `RESTARTS` crashes, or where it was refused."""
        slot.ended, slot.lost = time.monotonic(), end.code in (None, protocol.AGAIN)
        if end.code == 0 or self.stopping:
            return
        if slot.lost:
            self.messages.append(f"worker {slot.number} {end.how}; another goes on where runs are left, log {end.log}")
            return
        if end.code in launcher.STOPPED:
            slot.given_up = True
            self.messages.append(f"worker {slot.number} {end.how}")
            return
        slot.crashes += 1
        if slot.crashes <= launcher.RESTARTS and end.code != launcher.REFUSED:
            self.messages.append(
                f"worker {slot.number} {end.how}; restarted ({slot.crashes} of {launcher.RESTARTS}), log {end.log}"
            )
            self.start(slot)
        else:
            slot.given_up = True
            self.messages.append(f"worker {slot.number} {end.how} and is given up; its log {end.log} ends:\n{end.tail}")


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker's process, which writes to `log`, in `folder` or in this one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as written:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which asks once
        )


def tail(log: Path) -> str:
    """The last `TAIL_BYTES` of a log, as text."""
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()


def in_words(code: int) -> str:
    """How a process with this exit code ended, below 0 the signal that ended it: "was ended by SIGKILL"."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if code in launcher.STOPPED:
        return f"was stopped by {signal.Signals(code - 128).name} from outside"
    return f"ended with exit code {code}"


def _pause(slot: Slot, others: bool) -> float:
    """Seconds for which a slot stays empty though runs are left. Where others train, they take those that can be had.

    A run whose owner is gone can be had when its lease has expired, and may seem so too early by this host's clock.
    """
    return lease.LEASE_SECONDS if others and not slot.lost else PAUSE_SECONDS
