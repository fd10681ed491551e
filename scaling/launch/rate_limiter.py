"""How often a store is looked at: what is slow to read is read less often."""

import time
from collections.abc import Callable

SECONDS = 1.0  # between two looks, at least
SHARE = 0.05  # of the time, or of a core, that looking may take


class Paced:
    """Calls something at most once in `SECONDS`, and so seldom that it takes at most `SHARE` of the time."""

    def __init__(self, act: Callable[[], None]):
        self.now = act
        self._next = 0.0

    def tick(self) -> None:
        """Do it if it is due."""
        start = time.monotonic()
        if start >= self._next:
            self.now()
            end = time.monotonic()
            self._next = end + max(SECONDS, (end - start) / SHARE)

    def hurry(self) -> None:
        """Have it done at the next tick: something happened."""
        self._next = 0.0
