"""Reproductions: one file a paper, with its grid, its laws, its figures and its numbers beside ours.

Who may import it: `scaling.cli` and people's scripts; it imports `analysis`, `scaling.launch` and `scaling.config`.
A new paper is one file here that defines `PAPER`, a `papers.Paper`; it is found by its name and nothing else has to
be edited. `papers` holds what all of them share, `running` trains one and writes its page.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments import papers


def names() -> list[str]:
    """The experiments there are: modules of this package that define `PAPER`."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in found if hasattr(importlib.import_module(f"{__name__}.{name}"), "PAPER")]


def find(name: str) -> "papers.Paper":
    """The experiment of that name. Raises ValueError, naming those that there are, where there is none."""
    if name not in (known := names()):
        raise ValueError(f"there is no experiment {name!r}; name one of {', '.join(known)}")
    paper: papers.Paper = importlib.import_module(f"{__name__}.{name}").PAPER
    return paper


def reproduce(name: str, scale: str, store: str, workers: int | None) -> int:
    """Train what the store lacks of an experiment, compare with the paper, write the page; 0, or 1 if runs are left.

    Raises ValueError where the experiment or the scale is unknown.
    """
    from experiments import running

    return running.reproduce(name, find(name), scale, store, workers)
