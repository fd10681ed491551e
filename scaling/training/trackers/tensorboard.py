"""TensorBoard: an event file an attempt at a run, with a scalar a metric, written by tensorboardX."""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import config


def build(settings: config.TensorBoard) -> "TensorBoardRecorder":
    """What follows one run at a time. Imports no tensorboardX yet."""
    return TensorBoardRecorder(settings)


class TensorBoardRecorder:
    """Scalars are named as columns of metrics are: `train/loss`, `validation/metric/accuracy`; results `result/loss`.

    Config and result are texts. A row's scalars are missing where they are no finite numbers.
    """

    def __init__(self, settings: config.TensorBoard):
        self.settings = settings
        self._writer: Any = None
        self._step = 0

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        import tensorboardX

        place = folder / "tensorboard" if self.settings.folder is None else self.settings.folder / group / run_id
        self._writer, self._step = tensorboardX.SummaryWriter(str(place), write_to_disk=True), 0
        self._text("config", {"name": name, **settings})

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._step = row["step"]
            self._scalars(row["kind"], row)

    def finish(self, row: Mapping[str, Any]) -> None:
        self._scalars("result", row)
        self._text("result", row)
        self._writer.close()

    def _scalars(self, prefix: str, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}/{name}", value, self._step)

    def _text(self, name: str, values: Mapping[str, Any]) -> None:
        self._writer.add_text(name, f"```\n{json.dumps(dict(values), indent=2, default=str)}\n```", self._step)


def examine(settings: config.TensorBoard, environment: Mapping[str, str], home: Path) -> str:
    """Whether tensorboardX is installed. Raises ValueError where it is not."""
    where = "beside each run" if settings.folder is None else f"in {settings.folder}"
    try:
        return f"tensorboardX {importlib.metadata.version('tensorboardX')}, event files {where}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError("tensorboardX is not installed; pip install tensorboardX") from error
