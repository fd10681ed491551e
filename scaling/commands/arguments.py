"""Arguments that several subcommands of the analysis share; imports nothing heavy."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Repeated = tyro.conf.UseAppendAction


@dataclasses.dataclass(frozen=True)
class Table:
    """The runs, and what their columns mean."""

    data: tyro.conf.Positional[str]
    """A CSV file with a row a run, or a store: a folder, or a bucket (s3://…, gs://…)."""
    sweep: str | None = None
    """Which sweep of the store; not needed where there is one."""
    loss: str = "loss"
    """Column that holds the loss, in nats a token."""
    columns: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(name="column", metavar="INPUT=COLUMN")] = ()
    """Read an input of the law from another column, for example --column params=params_non_embedding."""
    where: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="COLUMN=VALUE")] = ()
    """Use only rows with this value, for example --where split=fit."""

    @property
    def is_store(self) -> bool:
        """Whether the runs are in a store."""
        return "://" in str(self.data) or self.file.is_dir()

    @property
    def file(self) -> Path:
        """The CSV file."""
        return Path(self.data)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the fit minimises."""

    objective: Literal["huber", "squared", "log_cosh"] = "huber"
    """Loss of a residual of log L."""
    delta: float = 1e-3
    """Where huber and log_cosh turn from square to straight."""
    weights: str | None = None
    """Column of standard errors of the loss; a run weighs 1/se²."""
    cluster: str | None = None
    """Column that says which run a row is a checkpoint of; such rows are resampled together."""
    fix: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="PARAMETER=VALUE")] = ()
    """Hold a parameter at a value, for example --fix alpha=0.34."""
