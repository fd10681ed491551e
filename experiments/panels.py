"""Panels that the experiments' figures are made of: learning curves, a power law through points, an optimum."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import axes as mpl_axes
from matplotlib import cm

from analysis import axes, frontiers, plots, uncertainty

COMPUTE = "training compute (FLOPs)"
CUT = 1.3  # learning curves are shown from this multiple of the worst final loss on


def learning_curves(
    panel: mpl_axes.Axes, runs: pd.DataFrame, curves: pd.DataFrame, params: str, flops: str, shade: cm.ScalarMappable
) -> None:
    """Loss against compute, a line a run, coloured by `params`; `curves` has run_id, tokens and loss.

    The column `flops` of `runs` says what all tokens of a run cost. Early losses are cut off.
    """
    cost, shown = [], []
    for run in runs.to_dict("records"):
        line = curves[curves["run_id"] == run["run_id"]].sort_values("tokens")
        c = line["tokens"].to_numpy(dtype=float) * run[flops] / run["tokens"]
        color = shade.to_rgba(np.array(float(run[params])))
        panel.plot(c, line["loss"], color=color, lw=0.9, alpha=0.65, zorder=1)
        panel.scatter(run[flops], run["loss"], color=color, s=20, lw=0.4, edgecolor="white", zorder=3)
        cost.append(np.append(c, run[flops]))
        shown.append(np.append(line["loss"].to_numpy(dtype=float), run["loss"]))
    loss = np.concatenate(shown)
    visible = loss <= CUT * float(runs["loss"].max())
    axes.logarithmic(panel, "x", np.concatenate(cost)[visible], flops=True)
    axes.log_loss(panel, loss[visible])
    panel.set(xlabel=COMPUTE, ylabel=plots.LOSS)


def power_law(
    panel: mpl_axes.Axes, x: np.ndarray, law: Callable[[np.ndarray], np.ndarray] | None, text: str, label: str = ""
) -> None:
    """A fitted law over the range of `x`, with its equation in the panel; nothing where there is no fit."""
    if law is not None:
        reach = np.geomspace(x.min() / 1.2, x.max() * 1.2, 80)
        panel.plot(reach, law(reach), "--", color=axes.ACCENT, zorder=2, label=label or None)
    panel.text(0.05, 0.05, text, transform=panel.transAxes, va="bottom", linespacing=1.5)


def losses(panel: mpl_axes.Axes, x: np.ndarray, loss: np.ndarray, xlabel: str, label: str = "", **style: str) -> None:
    """Final losses as points over a log axis."""
    look = {"color": axes.INK, "marker": "o", **style}
    panel.scatter(x, loss, s=26, lw=0.4, edgecolor="white", zorder=3, label=label or None, **look)  # type: ignore[arg-type]
    axes.logarithmic(panel, "x", x, pad=0.1)
    axes.log_loss(panel, loss)
    panel.set(xlabel=xlabel, ylabel=plots.LOSS)


def optimum(
    panel: mpl_axes.Axes,
    frontier: frontiers.Frontier,
    quantity: str,
    exponent: uncertainty.Estimate,
    *,
    name: str = "",
    paper: float | None = None,
    band: bool = True,
) -> None:
    """N*(C) or D*(C) through its minima, with its exponent; `paper` draws that exponent through their middle."""
    best = frontier.minima
    c, y = best["flops"].to_numpy(), best[quantity].to_numpy()
    reach = np.geomspace(c.min() / 1.5, c.max() * 2, 60)
    line = [getattr(frontier.allocate(float(budget)), quantity) for budget in reach]
    panel.plot(reach, [point.value for point in line], "--", color=axes.ACCENT, zorder=3, label="power law, ours")
    shown = [y, np.array([point.value for point in line])]
    if band:
        low, high = np.array([point.interval for point in line]).T
        panel.fill_between(reach, low, high, color=axes.ACCENT, alpha=0.15, lw=0)
        shown += [low, high]
    if paper is not None:
        middle = np.exp(np.log(c).mean()), np.exp(np.log(y).mean())
        guide = middle[1] * (reach / middle[0]) ** paper
        panel.plot(reach, guide, ":", color=axes.INK, lw=1.2, zorder=2, label=f"exponent {paper:g}, the paper's")
        shown.append(guide)
    panel.scatter(c, y, s=30, color=axes.INK, lw=0.4, edgecolor="white", zorder=4)
    axes.logarithmic(panel, "x", reach, flops=True)
    axes.logarithmic(panel, "y", np.concatenate(shown))
    letter = {"params": "N", "tokens": "D"}[quantity]
    panel.set(xlabel=COMPUTE, ylabel=name or f"compute-optimal {'parameters' if letter == 'N' else 'tokens'}")
    low, high = exponent.interval
    text = f"${letter}^* \\propto C^{{{exponent.value:.2f}}}$\n95%: {low:.2f} to {high:.2f}"
    panel.text(0.05, 0.95, text, transform=panel.transAxes, va="top", linespacing=1.5)
    if paper is not None:
        panel.legend(loc="lower right")
