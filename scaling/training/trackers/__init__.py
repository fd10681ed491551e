"""Trackers of runs: what a kind does is in a module of its name, with `build`, and `examine` for `scaling doctor`.

A tracker never stops a training: its first error is reported once, and the rest of the process goes on without it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import config
from scaling.config import trackers


class Trackers:
    """The trackers of a worker: each run that it trains at one time is followed by a recorder of each."""

    def __init__(self, settings: Sequence[config.Tracker], warn: Callable[[str], None]):
        self._settings = settings
        self._warn = warn
        self._failed: set[int] = set()  # places in the list of those that raised
        self._recorders: list[Recorders] = []  # by a run's place in its pack

    def recorder(self, place: int) -> "Recorders":
        """What follows the run at a place of a pack, one run after another."""
        while len(self._recorders) <= place:
            self._recorders.append(Recorders(self._call))
        return self._recorders[place]

    def _call(self, recorders: dict[int, trackers.Recorder], method: str, *arguments: Any) -> None:
        for index, settings in enumerate(self._settings):
            if index in self._failed:
                continue
            try:
                if index not in recorders:
                    recorders[index] = settings.build()
                getattr(recorders[index], method)(*arguments)
            except Exception as error:  # whatever a tracker may raise: no run is lost for it
                self._failed.add(index)
                self._warn(
                    f"tracker {settings.kind} failed ({method}: {type(error).__name__}: {error}); training goes on "
                    "without it, and every metric is in the store"
                )


class Recorders:
    """A recorder of each tracker; as `trackers.Recorder`, and raises nothing."""

    def __init__(self, call: Callable[..., None]):
        self._call = call
        self._recorders: dict[int, trackers.Recorder] = {}  # by place in the list of trackers, made when first used

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        self._call(self._recorders, "start", run_id, name, group, settings, folder)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._call(self._recorders, "log", rows)

    def finish(self, row: Mapping[str, Any]) -> None:
        self._call(self._recorders, "finish", row)


def nothing() -> Recorders:
    """A recorder of no tracker."""
    return Recorders(lambda *arguments: None)
