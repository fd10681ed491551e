"""Requests to stop: signals, and the end of the launcher."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from scaling.training import processes
from scaling.worker import group, protocol


class Stop:
    """Whether the worker was asked to stop: by a signal, or by the end of its launcher, which counts as SIGHUP."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._launcher = int(os.environ[protocol.LAUNCHER]) if protocol.LAUNCHER in os.environ else None

    def __call__(self) -> bool:
        if self._launcher not in (None, os.getppid()) and self.signal is None:
            self.signal = signal.SIGHUP
        return self.signal is not None

    def anywhere(self) -> bool:
        """Whether this process or another one of this worker was asked to stop."""
        if not self() and (numbers := processes.announced()):
            self.signal = numbers[0]
        return self.signal is not None


@contextlib.contextmanager
def until_signal(log: Callable[[str], None]) -> Iterator[Stop]:
    """A first signal of a kind sets `Stop` while the body runs; a second one has the effect that it had before."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def note(number: int, frame: object) -> None:
        stop.signal = number
        signal.signal(number, signal.SIG_IGN if group.joined() else before[number])  # the parent acts on a second one
        log(f"{signal.Signals(number).name}: saving the run and stopping; a second one stops at once")

    before = {int(number): signal.signal(number, note) for number in protocol.SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
