"""Waiting for a condition, with a limit that no load of the machine reaches."""

import time
from collections.abc import Callable

LIMIT_SECONDS = 60.0


def until(ready: Callable[[], object], seconds: float = LIMIT_SECONDS, what: Callable[[], object] = str) -> None:
    """Wait until a condition is true; fails after `seconds` with what `what` shows."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, what()
        time.sleep(0.02)
