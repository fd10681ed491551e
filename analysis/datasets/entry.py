"""What an entry of the table of public tables says, and the words that several of them share."""

import dataclasses
from collections.abc import Callable, Mapping

import pandas as pd

from analysis.datasets import tidying

NATS = "validation loss, nats per token"
SPLIT = "fit or extrapolate, as the authors split"
NO_FLOPS = "the table has no FLOPs"
NO_PARAMS = "the table has no parameter counts"
NONE_STATED = "none stated"
SIX_ND = "6 · params · tokens"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One public table: where it is from, what its tidy file holds, and what the project calls that.

    `columns` are those of the tidy file, in order, with their meaning; of them `dropped` are not loaded and `renames`
    get the project's names; `added` are those that `finish` adds. `tidy` makes the tidy table from the bytes of `url`.
    """

    name: str
    paper: str
    repository: str  # owner/name on GitHub
    commit: str
    path: str
    licence: str
    file: str  # in the folder named by SCALING_DATASETS
    rows: int
    columns: Mapping[str, str]
    params_convention: str | tidying.By
    flops_convention: str | tidying.By
    renames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    added: Mapping[str, str] = dataclasses.field(default_factory=dict)
    finish: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    sha256: str | None = None
    tidy: Callable[[bytes], pd.DataFrame] | None = None
    host: str = "https://raw.githubusercontent.com"

    @property
    def url(self) -> str:
        """Where the bytes of the source are."""
        return f"{self.host}/{self.repository}/{self.commit}/{self.path}"

    @property
    def source(self) -> str:
        """Where a reader finds the source."""
        return f"github.com/{self.repository} {self.path}"
