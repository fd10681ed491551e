"""Approach 1: the lower envelope of final loss against compute, and power laws through its points.

Hoffmann et al. 2022, arXiv 2203.15556, section 3.1.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import allocation, budgets, checks, errors, lines, redrawing, uncertainty

BIN = np.log(10.0) / 4  # envelope of unlabelled runs: the best run of each quarter of a decade of FLOPs
_CURVES = "residuals of the budgets' curves, drawn again, and half a step of the grid of sizes"


def frontier(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> allocation.Frontier:
    """The frontier through the best run of each budget; `Refused` where it has too few points."""
    frame = chosen.frame
    labelled = budgets.labelled(frame)
    table = _configurations(frame, names, loss)
    logs = np.log(table[["flops", *lines.QUANTITIES]].to_numpy())
    sizes = table.groupby("bin")["params"].nunique()
    contested = sizes.index[sizes > 1].to_numpy()
    if not len(contested):
        raise errors.Refused("approach 1: no two sizes share a budget, so none can be the best; run sizes side by side")
    bins = [np.flatnonzero(table["bin"] == value) for value in contested]
    drawn, varied = _drawn(logs, bins, resamples, seed)
    optima = np.stack([np.concatenate([_best(logs[mine]), again]) for mine, again in zip(bins, drawn, strict=True)], 1)
    before = np.fmin.accumulate(optima[:, :, 3], axis=1)
    behind = np.concatenate([np.zeros((len(optima), 1), bool), optima[:, 1:, 3] >= before[:, :-1]], axis=1)
    optima[behind] = np.nan
    minima = allocation.minima(optima[0])
    if len(minima) < lines.FEWEST or minima["params"].nunique() < 2:
        raise errors.Refused(
            f"approach 1: the envelope has {len(minima)} points of {minima['params'].nunique()} sizes; it needs "
            f"{lines.FEWEST} points of 2 sizes; run more budgets"
        )
    groups = "budget" if labelled else "quarter of a decade of FLOPs"
    how = (
        f"approach 1: the best final loss of each {groups}, where no cheaper run is better; {allocation.LOSS_LINE}; "
        f"intervals from {varied}"
    )
    worse = int(behind[0].sum())
    excluded: tuple[str, ...] = (
        (f"approach 1: {worse} budgets whose best run is no better than a cheaper one",) if worse else ()
    )
    if alone := len(sizes) - len(contested):
        excluded += (f"approach 1: {alone} budgets with one size only",)
    excluded += tuple(f"approach 1: {reason}" for reason in budgets.unlabelled(frame))
    statements = allocation.statements(frame, names, how)
    return allocation.Frontier(1, level, lines.through(optima), minima, statements, excluded, chosen.warnings)


def _configurations(frame: pd.DataFrame, names: dict[str, str], loss: str) -> pd.DataFrame:
    """A row a configuration, the mean over its seeds, with the budget that it is in, `bin`."""
    table = pd.DataFrame({key: checks.column(frame, name, "the envelope") for key, name in names.items()})
    table["loss"] = checks.column(frame, loss, "the envelope")
    log_flops = np.log(table["flops"])
    labelled = budgets.labelled(frame)
    table["bin"] = checks.numbers(frame, "flops_budget") if labelled else ((log_flops - log_flops.min()) // BIN)
    return table.groupby(["bin", "params", "tokens"], as_index=False).mean()


def _best(logs: Float[np.ndarray, "points 4"]) -> Float[np.ndarray, "1 4"]:
    return logs[[logs[:, 3].argmin()]]


def _drawn(
    logs: Float[np.ndarray, "configurations 4"], bins: list[np.ndarray], resamples: int, seed: int
) -> tuple[list[Float[np.ndarray, "resamples 4"]], str]:
    """The best of each budget in every draw, and what the draws vary.

    Losses are drawn about a parabola in log N (and straight in log C, where a budget's runs differ in it). The best of
    a grid is known to half a step of it: log N moves by as much either way, and log D against it.
    """
    curves, left, freedom = [], [], 0
    for mine in bins:
        fitted, free = _curve(logs[mine])
        curves.append(fitted)
        if free:
            left.append(redrawing.residuals(np.exp(logs[mine, 3]), fitted))
            freedom += free
    if freedom < redrawing.FEWEST:
        counts = uncertainty.counts(len(logs), resamples, seed)
        return [_chosen(logs[mine], np.where(counts[:, mine] > 0, logs[mine, 3], np.inf)) for mine in bins], (
            "resampled runs: the budgets have too few sizes for curves"
        )
    drawn = redrawing.redrawn(curves, left, freedom, resamples, seed)
    rng = np.random.default_rng([seed, 1])
    best = []
    for mine, losses in zip(bins, drawn, strict=True):
        optimum = _chosen(logs[mine], np.log(np.maximum(losses, 1e-300)))
        off = rng.uniform(-0.5, 0.5, resamples) * _step(np.unique(logs[mine, 1]), optimum[:, 1])
        best.append(optimum + off[:, None] * np.array([0.0, 1.0, -1.0, 0.0]))
    return best, _CURVES


def _curve(logs: Float[np.ndarray, "points 4"]) -> tuple[Float[np.ndarray, " points"], int]:
    """A smooth curve of a budget's losses and its degrees of freedom; the losses themselves where it has none."""
    y, u, c = np.exp(logs[:, 3]), logs[:, 1] - logs[:, 1].mean(), logs[:, 0] - logs[:, 0].mean()
    near = np.abs(logs[:, 1] - logs[logs[:, 3].argmin(), 1]) <= budgets.NEAR
    columns = [np.ones_like(u), u, u**2, *([c] if np.ptp(c[near]) > 1e-3 else [])]
    design = np.stack(columns, axis=1)
    rank = int(np.linalg.matrix_rank(design[near]))
    if near.sum() <= rank:
        return y, 0
    fitted = y.copy()
    fitted[near] = design[near] @ np.linalg.lstsq(design[near], y[near], rcond=None)[0]
    return fitted, int(near.sum()) - rank


def _chosen(
    logs: Float[np.ndarray, "points 4"], losses: Float[np.ndarray, "resamples points"]
) -> Float[np.ndarray, "resamples 4"]:
    """The configuration of the least log loss in every draw; NaN where there is none."""
    first, least = losses.argmin(axis=1), losses.min(axis=1)
    chosen = np.concatenate([logs[first, :3], least[:, None]], axis=1)
    return np.where(np.isinf(least)[:, None], np.nan, chosen)


def _step(sizes: Float[np.ndarray, " sizes"], at: Float[np.ndarray, " resamples"]) -> Float[np.ndarray, " resamples"]:
    """The mean distance in log N of each chosen size to its neighbours in the budget."""
    return np.gradient(sizes)[np.searchsorted(sizes, at)]
