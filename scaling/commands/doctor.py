"""`scaling doctor`: is everything here that a sweep needs? A line a check, and what to do where one fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from scaling import store as stores
from scaling.checks import finding, machine, places, storing, tracker, versions

MODES: tuple[tracker.Mode, ...] = ("disabled", "offline", "online")


def show(store: str | None, tracking: tracker.Mode) -> int:
    """Print what each check found as soon as it is known. Returns 1 where anything is wrong, else 0."""
    counts = {"ok": 0, "warning": 0, "wrong": 0}
    for each in findings(store, tracking):
        counts[each.level] += 1
        print(each.line(), flush=True)
    print(f"{counts['ok']} checks are ok, {counts['warning']} warn, {counts['wrong']} are wrong")
    return 1 if counts["wrong"] else 0


def findings(store: str | None, tracking: tracker.Mode) -> Iterator[finding.Finding]:
    """All findings, the quick ones first. A store is written to only where one is given."""
    try:
        python, wanted = versions.required()
        yield from versions.packages(python, wanted)
    except ValueError as error:
        yield finding.wrong("versions", str(error))
    yield from versions.jax()
    yield from machine.processes(os.environ)
    yield from places.compiled(os.environ, os.getuid())
    yield from places.cache_folder()
    yield from places.temporary_folder()
    yield from machine.devices(machine.look(), machine.hardware(), os.environ)
    yield from tracker.tracker(_mode(store, tracking), os.environ, Path.home())
    if store is not None:
        yield from storing.store(store)


def _mode(store: str | None, tracking: tracker.Mode) -> tracker.Mode:
    """What is asked for, or what a sweep of the store does where that needs more."""
    asked: set[str] = {tracking}
    if store is not None:
        with contextlib.suppress(ValueError, OSError):  # the checks of the store tell of it
            asked |= storing.tracked(stores.Store(store))
    return next(mode for mode in reversed(MODES) if mode in asked)
