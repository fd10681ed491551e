"""Reproductions: one file a paper, with its grid, its laws, its figures and its numbers beside ours.

Who may import it: `scaling.cli` and people's scripts; it imports `analysis`, `scaling.launch` and `scaling.config`.
A new paper is one file that defines `PAPER`, a `papers.Paper`: here it is found by its name, anywhere else by its path,
and nothing else has to be edited. `papers` holds what all of them share, `running` trains one and writes its page.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.config import loading

if TYPE_CHECKING:
    from experiments import papers


def names() -> list[str]:
    """The experiments there are: modules of this package that define `PAPER`."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "PAPER")]


def find(name: str) -> "papers.Paper":
    """The experiment of that name, or of a Python file that is not here.

    Raises ValueError, naming those that there are, where there is none.
    """
    from experiments import papers

    if (own := _own(name)) is not None:
        paper = getattr(loading.module(own), "PAPER", None)
        if not isinstance(paper, papers.Paper):
            raise ValueError(f"{own} defines no PAPER; set PAPER to an experiments.papers.Paper at its top level")
        return paper
    if name not in (known := names()):
        raise ValueError(
            f"there is no experiment {name!r}; name one of {', '.join(known)}, or give a Python file that defines PAPER"
        )
    experiment: papers.Paper = importlib.import_module(f"{__name__}.{name}").PAPER
    return experiment


def reproduce(name: str, scale: str, store: str, workers: int | None) -> int:
    """Train what the store lacks of an experiment, compare with the paper, write the page; 0, or 1 if runs are left.

    Raises ValueError where the experiment or the scale is unknown.
    """
    from experiments import running

    return running.reproduce(name, find(name), scale, store, workers, _own(name))


def _own(name: str) -> Path | None:
    """The Python file that is named in the place of an experiment."""
    return Path(name) if name.endswith(".py") else None
