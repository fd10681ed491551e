"""`scaling doctor`: is everything here that a sweep needs? A line a check, and what to do where one fails."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaling import config, schema
from scaling import store as stores
from scaling.checks import finding, machine, places, storing, tracker, versions


def show(store: str | None, trackers: Sequence[str]) -> int:
    """Print what each check found as soon as it is known. Returns 1 where anything is wrong, else 0."""
    counts = {"ok": 0, "warning": 0, "wrong": 0}
    for each in findings(store, [tracker_of(text) for text in trackers]):
        counts[each.level] += 1
        print(each.line(), flush=True)
    print(f"{counts['ok']} checks are ok, {counts['warning']} warn, {counts['wrong']} are wrong")
    return 1 if counts["wrong"] else 0


def findings(store: str | None, trackers: Sequence[config.Tracker]) -> Iterator[finding.Finding]:
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
    yield from tracker.trackers(_wanted(store, trackers), os.environ, Path.home())
    if store is not None:
        yield from storing.store(store)


def tracker_of(text: str) -> config.Tracker:
    """A tracker by its kind, or as JSON with its settings. Raises ValueError where it is none."""
    value = schema.parse_value(text)
    return config.Tracker.model_validate({"kind": value} if isinstance(value, str) else value)


def _wanted(store: str | None, trackers: Sequence[config.Tracker]) -> list[config.Tracker]:
    """What is asked for, and what the sweeps of the store ask for."""
    wanted = list(trackers)
    if store is not None:
        with contextlib.suppress(ValueError, OSError):  # the checks of the store tell of it
            wanted += storing.trackers(stores.Store(store))
    return list(dict.fromkeys(wanted))
