"""Where metrics go besides the store's JSON lines, which are always written: nowhere, or Weights & Biases.

A tracker never stops a training: `build` wraps it so that its first error is told once and the rest goes untracked.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from scaling import config


class Tracker(Protocol):
    """Follows one run at a time: `start`, then any number of `log`, then `finish`."""

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        """A run begins, or goes on: `group` is its sweep, `settings` its config, `folder` its place in the store."""

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of metrics, each with `kind` (train, validation) and `step`."""

    def finish(self, row: Mapping[str, Any]) -> None:
        """The run has ended, with at least `status` and `reason`; a finished one with its whole result."""


class Nothing:
    """No tracker."""

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        pass

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, row: Mapping[str, Any]) -> None:
        pass


class WandB:
    """Weights & Biases: a run of ours is one of theirs under the same id, a sweep is a group, the result the summary.

    Their files go to WANDB_DIR, or else beside the run's in the store. A key is taken from the environment only.
    """

    def __init__(self, settings: config.Tracking):
        self.settings = settings
        self._run: Any = None

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            mode="online" if self.settings.wandb == "online" else "offline",
            project=self.settings.project,
            entity=self.settings.entity,
            id=run_id,
            name=name,
            group=group,
            config=dict(settings),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            resume="allow" if self.settings.wandb == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
            reinit="create_new",  # members of a pack are followed at once
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            values = {f"{row['kind']}/{name}": value for name, value in row.items() if name not in ("kind", "step")}
            self._run.log({"step": row["step"], **values})

    def finish(self, row: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(row))
        self._run.finish(exit_code=0 if row["status"] in ("finished", "diverged") else 1)


class Guarded:
    """A tracker whose first error is told once; from then on nothing is tracked in this process."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]):
        self._tracker: Tracker | None = tracker
        self._warn = warn

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        self._call("start", run_id, name, group, settings, folder)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._call("log", rows)

    def finish(self, row: Mapping[str, Any]) -> None:
        self._call("finish", row)

    def _call(self, method: str, *arguments: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:  # whatever a tracker may raise: no run is lost for it
            name = type(self._tracker).__name__
            self._tracker = None
            self._warn(
                f"{name} failed ({method}: {type(error).__name__}: {error}); training goes on untracked, and every "
                "metric is in the store"
            )


def build(settings: config.Tracking, warn: Callable[[str], None]) -> Tracker:
    """The tracker that a sweep's settings ask for, guarded; `warn` is told once where it fails."""
    return Nothing() if settings.wandb == "disabled" else Guarded(WandB(settings), warn)
