"""A limit on how often a store is read: what takes long is done less often."""

import time
from collections.abc import Callable

SECONDS = 1.0  # between two calls, at least
SHARE = 0.05  # of the time, or of a core, that the calls may take


class RateLimited:
    """A function that is called at most once in `SECONDS`, and takes at most `SHARE` of the time."""

    def __init__(self, function: Callable[[], None]):
        self.call = function
        self._next = 0.0

    def call_if_due(self) -> None:
        """Call it, unless the last call was too short a time ago."""
        start = time.monotonic()
        if start >= self._next:
            self.call()
            end = time.monotonic()
            self._next = end + max(SECONDS, (end - start) / SHARE)

    def expire(self) -> None:
        """Make it due, whenever the last call was."""
        self._next = 0.0
