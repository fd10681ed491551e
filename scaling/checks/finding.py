"""What a check found, and what to do about it."""

import dataclasses
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the doctor's: the check, how it came out, the message, and the remedy where one is needed.

    wrong: something will fail. warning: it works, perhaps not as was meant.
    """

    check: str
    level: Level
    message: str
    remedy: str = ""

    def line(self) -> str:
        """As a person reads it."""
        return f"{self.level:<8} {self.check}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


def ok(check: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Works, perhaps not as was meant."""
    return Finding(check, "warning", message, remedy)


def wrong(check: str, message: str, remedy: str = "") -> Finding:
    """Will fail; the remedy may be part of the message, as in that of an error."""
    return Finding(check, "wrong", message, remedy)
