"""A sweep: a base run, a grid over it, a rule for the learning rates, and how to compute them."""

from collections.abc import Mapping
from typing import Any, Self

import pydantic

from scaling import schema
from scaling.config import execution as executions
from scaling.config import grids, rates
from scaling.config import run as runs
from scaling.config import trackers as trackings


class Sweep(schema.Config):
    """A named set of runs: a base run, a grid over it, a rule for the learning rates, and how to compute them."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: runs.Run
    grid: grids.Grid = grids.Single()
    learning_rate: rates.Rule = rates.AsGiven()
    execution: executions.Execution = executions.Execution()
    trackers: tuple[trackings.Tracker, ...] = ()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_older(cls, values: Any) -> Any:
        """Read what was stored when a sweep had one field `tracking`, with nothing lost."""
        if not isinstance(values, Mapping) or not isinstance(values.get("tracking"), Mapping) or "trackers" in values:
            return values
        others = {name: value for name, value in values.items() if name != "tracking"}
        return {**others, "trackers": trackings.from_tracking(values["tracking"])}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        self.learning_rate.check(self.base)
        if self.name.endswith(".tune"):
            raise ValueError(f"name {self.name!r} ends as the tune stage of a sweep does; drop the ending .tune")
        return self

    def points(self) -> list[grids.Point]:
        """Every run of the grid once, in the grid's order, learning rates as in the base run (see `rates`)."""
        unique: dict[runs.Run, grids.Point] = {}
        for point in self.grid.expand(grids.Point(self.base, {"role": "single"})):
            self.execution.sequences(point.run.batch_size)
            unique.setdefault(point.run, grids.Point(point.run, {"family": point.run.model.kind, **point.labels}))
        return list(unique.values())
