"""Where metrics go besides the store, which always has them.

What a kind does is in `scaling.training.trackers`; a tracker of one's own defines `start`, `log` and `finish`, or
`build`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from scaling import registry, schema


class Recorder(Protocol):
    """Follows one run at a time: `start`, then any number of `log`, then `finish`."""

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        """A run begins, or goes on: `group` is its sweep, `settings` its config, `folder` its place in the store."""

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of metrics, each with `kind` (train, validation) and `step`."""

    def finish(self, row: Mapping[str, Any]) -> None:
        """The run has ended, with at least `status` and `reason`; a finished one with its whole result."""


class Tracker(schema.Variant):
    """A place for metrics besides the store. What it raises ends the tracking, never the training."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The variables of the environment in which workers find the secrets that it needs."""
        return ()

    def examine(self, environment: Mapping[str, str], home: Path) -> str:
        """What `scaling doctor` says of it. Raises ValueError with what lacks, and the remedy after a semicolon."""
        own = registry.function(self, "examine")
        return f"{self.kind}, a tracker of your own" if own is None else own(self, environment, home)

    def build(self) -> Recorder:
        """What follows one run at a time; by default a copy of this, whose private attributes are its own."""
        own = registry.function(self, "build")
        return self.model_copy(deep=True) if own is None else own(self)

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        """See `Recorder`; nothing unless a tracker of one's own defines it."""

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Recorder`; nothing unless a tracker of one's own defines it."""

    def finish(self, row: Mapping[str, Any]) -> None:
        """See `Recorder`; nothing unless a tracker of one's own defines it."""


class Wandb(Tracker):
    """Weights & Biases. `mode` "online" needs WANDB_API_KEY or a login; "offline" needs neither, and sends nothing."""

    kind: Literal["wandb"] = "wandb"
    mode: Literal["offline", "online"] = "online"
    project: str = "scaling"
    entity: str | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """See `Tracker`."""
        return ("WANDB_API_KEY",) if self.mode == "online" else ()


class TensorBoard(Tracker):
    """Event files for TensorBoard: below `folder` one folder a sweep and run, or where it is None beside each run."""

    kind: Literal["tensorboard"] = "tensorboard"
    folder: Path | None = None


def stored(sweep: Mapping[str, Any]) -> tuple[Tracker, ...]:
    """The trackers of a sweep's config as it is stored, whatever else that holds."""
    if "tracking" in sweep:
        return from_tracking(sweep["tracking"])
    return tuple(Tracker.model_validate(each) for each in sweep["trackers"])


def from_tracking(tracking: Mapping[str, Any]) -> tuple[Wandb, ...]:
    """The trackers of a sweep that was stored when it had one field `tracking`: `wandb` (a mode), project, entity."""
    settings = {"wandb": "disabled", **tracking}
    mode = settings.pop("wandb")
    return () if mode == "disabled" else (Wandb.model_validate({**settings, "mode": mode}),)
