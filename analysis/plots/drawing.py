"""What all figures share: the project's style while drawing, bands of intervals, files by their suffix."""

import os
import pathlib
from collections.abc import Callable
from typing import ParamSpec

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure

from analysis import axes

LOSS = "loss (nats per token)"
NAMES = {
    "params": "parameters",
    "params_non_embedding": "non-embedding parameters",
    "params_with_head": "non-embedding parameters and head",
    "tokens": "training tokens",
    "unique_tokens": "unique tokens",
    "batch_tokens": "batch (tokens)",
    "flops": "training compute (FLOPs)",
    "loss": LOSS,
    "learning_rate": "learning rate",
    "seconds": "training time (s)",
}
UNITS = {"flops": "FLOPs", "loss": "nats per token", "bits_per_byte": "bits per byte", "seconds": "s"}
P = ParamSpec("P")


def styled(draw: Callable[P, figure.Figure]) -> Callable[P, figure.Figure]:
    """The project's style while drawing, and only then."""

    def drawn(*args: P.args, **kwargs: P.kwargs) -> figure.Figure:
        with axes.style():
            return draw(*args, **kwargs)

    drawn.__doc__, drawn.__name__ = draw.__doc__, draw.__name__
    return drawn


def labelled(column: str) -> str:
    """What an axis says of a column: its name in words where it is one of `NAMES`, else with the unit it tells."""
    if column in NAMES:
        return NAMES[column]
    name = column.removeprefix("metric/")
    for part, unit in UNITS.items():
        if name.startswith(part) or name.endswith(f"_{part}"):
            return f"{name} ({unit})"
    return name


def save(fig: figure.Figure, path: str | os.PathLike[str]) -> pathlib.Path:
    """Write a figure by its suffix: .png, .svg or .pdf."""
    target = pathlib.Path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{target.name}: figures are written as .png, .svg or .pdf; change the suffix")
    target.parent.mkdir(parents=True, exist_ok=True)
    with axes.style():
        fig.savefig(target)
    return target


def band(panel: mpl_axes.Axes, at: np.ndarray, intervals: np.ndarray) -> None:
    panel.fill_between(at, intervals[:, 0], intervals[:, 1], color=axes.ACCENT, alpha=0.15, lw=0, zorder=2)
