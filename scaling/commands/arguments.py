"""Arguments that several subcommands share, each written once; imports nothing heavy."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

RESULTS = "results"

Repeated = tyro.conf.UseAppendAction
Positional = tyro.conf.Positional

SweepFile: TypeAlias = Annotated[
    Path,
    Positional,
    tyro.conf.arg(help="A Python file with a function sweep(), or a stored sweep.json or config.json."),
]
Overrides: TypeAlias = Annotated[
    tuple[str, ...],
    Repeated,
    tyro.conf.arg(
        name="set",
        metavar="FIELD=VALUE",
        help="Set a field of the sweep, for example --set base.seed=1; repeat for more.",
    ),
]
Store: TypeAlias = Annotated[
    str, tyro.conf.arg(help="Folder of results, or a bucket (s3://…, gs://…); made when something is first written.")
]
StorePlace: TypeAlias = Annotated[
    str, Positional, tyro.conf.arg(help="Folder of results, or a bucket (s3://…, gs://…).")
]
Workers: TypeAlias = Annotated[
    int | None,
    tyro.conf.arg(help="Workers; by default one an accelerator, or one a CPU core (at most one a run)."),
]
RetryFailed: TypeAlias = Annotated[bool, tyro.conf.arg(help="Train again what failed before.")]
Law: TypeAlias = Annotated[
    str,
    tyro.conf.arg(
        help="Name of the law, for example hoffmann, kaplan, power_offset; `scaling laws` lists them. One of your own "
        "is FILE.py, or FILE.py:NAME where the file defines several."
    ),
]
OwnLaw: TypeAlias = Annotated[
    str | None,
    tyro.conf.arg(help="FILE.py or FILE.py:NAME, where a law of your own was fitted: a saved fit has its name alone."),
]
HoldOut: TypeAlias = Annotated[
    str, tyro.conf.arg(help="Column that says which runs are large; the largest are predicted from the others.")
]
Origins: TypeAlias = Annotated[
    int, tyro.conf.arg(help="How many largest groups of runs are left out, one after the other.")
]
At: TypeAlias = Annotated[
    tuple[str, ...],
    Repeated,
    tyro.conf.arg(
        metavar="INPUT=VALUE",
        help="An input of the law, for example --at params=1e9 --at tokens=2e10; repeat for more.",
    ),
]
Cluster: TypeAlias = Annotated[
    str | None,
    tyro.conf.arg(
        help="Column that says which run a row is a checkpoint of: a fit resamples the rows of a run together, a "
        "prediction by several laws takes the last of each."
    ),
]


@dataclasses.dataclass(frozen=True)
class RunTable:
    """The runs of a file or a store."""

    data: tyro.conf.Positional[str]
    """A CSV file with a row a run, or a store: a folder, or a bucket (s3://…, gs://…)."""
    sweep: str | None = None
    """Which sweep of the store; not needed where there is one."""
    where: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="COLUMN=VALUE")] = ()
    """Use only rows with this value, for example --where split=fit or --where optimizer.weight_decay=0.1."""

    @property
    def is_store(self) -> bool:
        """Whether the runs are in a store."""
        return "://" in str(self.data) or self.file.is_dir()

    @property
    def file(self) -> Path:
        """The CSV file."""
        return Path(self.data)


@dataclasses.dataclass(frozen=True)
class Table(RunTable):
    """The runs, and what their columns mean."""

    loss: str = "loss"
    """Column that holds the loss, in nats a token."""
    columns: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(name="column", metavar="INPUT=COLUMN")] = ()
    """Read an input of the law from another column, for example --column params=params_non_embedding."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the fit minimises."""

    objective: Literal["huber", "squared", "log_cosh"] = "huber"
    """Loss of a residual of log L."""
    delta: float = 1e-3
    """Where huber and log_cosh turn from square to straight."""
    weights: str | None = None
    """Column of standard errors of the loss; a run weighs 1/se²."""
    cluster: Cluster = None
    fix: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="PARAMETER=VALUE")] = ()
    """Hold a parameter at a value, for example --fix alpha=0.34."""
