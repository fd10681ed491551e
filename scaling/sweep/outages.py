"""What a worker heeds and waits for: signals that ask it to stop, a launcher that is gone, a store that is away."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from scaling import processes
from scaling.sweep import faults, group

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHER = "SCALING_LAUNCHER_PID"  # the process whose end a worker takes for a request to stop
FIRST_SECONDS = 0.5  # between two tries, at first; then a quarter of what the outage has lasted, up to
LONGEST_SECONDS = 15.0
TOLD_SECONDS = 60.0  # between two lines of log about one outage


class Stop:
    """Whether the worker was asked to stop: by a signal, or because its launcher is gone."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._launcher = int(os.environ[LAUNCHER]) if LAUNCHER in os.environ else None

    def __call__(self) -> bool:
        if self._launcher not in (None, os.getppid()) and self.signal is None:
            self.signal = signal.SIGHUP
        return self.signal is not None

    def anywhere(self) -> bool:
        """Whether this worker was, or another process that trains its runs with it."""
        if not self() and (numbers := processes.said()):
            self.signal = numbers[0]
        return self.signal is not None


@contextlib.contextmanager
def until_signal(log: Callable[[str], None]) -> Iterator[Stop]:
    """Signals are noted while the body runs; a second one of a kind does what it would do without us."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def note(number: int, frame: object) -> None:
        stop.signal = number
        signal.signal(number, signal.SIG_IGN if group.joined() else before[number])  # the parent acts on a second one
        log(f"{signal.Signals(number).name}: saving the run and stopping; a second one stops at once")

    before = {int(number): signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Outages:
    """Waits while something is away, and says so; gives up where the worker is asked to stop."""

    def __init__(self, stop: Callable[[], bool], log: Callable[[str], None]):
        self.stop = stop
        self.log = log
        self._told = -float("inf")

    def wait(self, error: OSError, seconds: float) -> None:
        """Wait before something is tried again that has failed for `seconds`. Raises the error where a stop is due."""
        if time.monotonic() - self._told > TOLD_SECONDS:
            self._told = time.monotonic()
            self.log(f"paused, and trying again until it passes: {type(error).__name__}: {error}")
        end = time.monotonic() + min(max(FIRST_SECONDS, seconds / 4), LONGEST_SECONDS)
        while time.monotonic() < end:
            if self.stop():
                raise error
            time.sleep(0.1)

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Ends the body quietly where `wait` gave up: a stop was asked for while the store was away."""
        try:
            yield
        except OSError as error:
            if not (self.stop() and faults.passes(error)):
                raise
            self.log(f"leases could not be released and run out by themselves: {type(error).__name__}: {error}")

    def passed(self, seconds: float) -> None:
        """Something is back that was away for `seconds`."""
        self._told = -float("inf")
        self.log(f"going on after a pause of {seconds:.0f} s")
