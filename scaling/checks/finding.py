"""What a check found, and what to do about it."""

import dataclasses
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the doctor's: the check, how it came out, what was found, and the remedy where one is needed.

    wrong: something will fail. warning: it works, perhaps not as was meant.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""

    def line(self) -> str:
        """As a person reads it."""
        return f"{self.level:<8} {self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Works, perhaps not as was meant."""
    return Finding(check, "warning", found, remedy)


def wrong(check: str, found: str, remedy: str = "") -> Finding:
    """Will fail; the remedy may be part of what was found, as in the message of an error."""
    return Finding(check, "wrong", found, remedy)
