"""Rows that lie far from what all others say, by name, and what the exponents are without them.

A row is named where its residual is further from the median residual than FAR times the median absolute deviation
(4.05 standard deviations of normal noise; of few rows more, as Student's t has it) and than LEAST, below which a row
moves nothing.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Bool, Float

from analysis import budgets, lines, solver

if typing.TYPE_CHECKING:
    from analysis import fitting

FAR = 6.0
LEAST = 1e-3  # of a loss, where residuals are of its logarithm
SHOWN = 5
MANY = 0.1  # of all rows: so many are no stray ones
TAIL = scipy.stats.norm.sf(FAR * scipy.stats.norm.ppf(0.75))
RULE = f"{FAR:g} times the median absolute deviation"


def limit(off: Float[np.ndarray, " rows"], freedom: int) -> float:
    """How far a row may lie off, by how far all do and how many degrees of freedom these have."""
    factor = scipy.stats.t.isf(TAIL, freedom) / scipy.stats.norm.isf(TAIL)
    return float(max(FAR * factor * np.median(off), LEAST))


def of_fit(fit: "fitting.Fit", index: pd.Index) -> Iterator[str]:
    """A warning that names the rows far from a fit, by their `index` in the table, with its exponents without them."""
    weight = fit.points().weight[: len(fit.runs)]
    residuals = fit.residuals * np.sqrt(weight)
    off = np.abs(residuals - np.median(residuals))
    freedom = max(len(off) - len(fit.diagnostics.free), 1)
    rows = np.flatnonzero(off > limit(np.sort(off)[-freedom:], freedom))  # a robust fit goes through p of n rows
    many = len(rows) > MANY * len(residuals)
    if not len(rows) or (many and fit.clusters):  # rows of a run that lies off as a whole
        return
    params = {} if many else _without(fit, rows)
    moved = [name for name in fit.law.nonlinear if name not in fit.fixed and not fit.law.parameter(name).log]
    exponents = ", ".join(f"{name} = {params[name]:.4g} ({fit.params[name]:.4g} with them)" for name in moved if params)
    order = rows[np.argsort(-np.abs(residuals[rows]), kind="stable")]
    relative = np.expm1(fit.residuals) if fit.criterion.scale == "log" else None
    yield _said(fit.runs, index, order, relative, "the fit", exponents)


def _without(fit: "fitting.Fit", rows: np.ndarray) -> dict[str, float]:
    """The parameters without these rows, refined from the fit's own; empty where too few are left."""
    if len(fit.runs) - len(rows) <= len(fit.diagnostics.free):
        return {}
    data = fit.points()
    weight = data.weight.copy()
    weight[rows] = 0.0
    low, high = solver.box(fit.law, fit.fixed)
    with solver.precise():
        theta = solver.coordinates(fit.law, fit.params)
        refined = solver.refine(fit.law, theta, data, weight[None], fit.criterion, low, high)
    if not refined.converged[0]:
        return {}
    return {name: float(values[0]) for name, values in solver.named(fit.law, refined.theta).items()}


def of_budgets(
    frame: pd.DataFrame, names: Mapping[str, str], loss: str, cuts: Sequence[budgets.Slice]
) -> Iterator[str]:
    """A warning that names the rows far from the parabola of their budget, with approach 2's exponent without them.

    A residual of log loss counts over √(1 − h), h its leverage, which scatters alike in all rows; the furthest row is
    left out first and the parabola drawn again, for it pulls the parabola to itself and away from its neighbours.
    """
    left = _left(cuts)
    rows = np.concatenate([cut.rows[~keep] for cut, keep in zip(cuts, left, strict=True)] or [np.empty(0, int)])
    if not len(rows):
        return
    off = np.full(len(frame), np.nan)
    for cut, keep in zip(cuts, left, strict=True):
        if not keep.all():  # others may have too few sizes for a parabola
            off[cut.rows] = cut.loss / np.exp(_parabola(cut, keep)) - 1
    table = pd.DataFrame({key: pd.to_numeric(frame[name]).to_numpy() for key, name in {**names, "loss": loss}.items()})
    keep = np.ones(len(frame), bool)
    keep[rows] = False
    others, _, _ = budgets.slices(frame[keep], names["params"], names["tokens"], names["flops"], loss)
    whole, without = _exponent(cuts), _exponent(others)
    exponents = f"a = {without:.4g} ({whole:.4g} with them)"
    order = rows[np.argsort(-np.abs(off[rows]), kind="stable")]
    yield _said(table, frame.index, order, off, "their budget's parabola", exponents)


def _left(cuts: Sequence[budgets.Slice]) -> list[Bool[np.ndarray, " points"]]:
    """The rows of each budget that are not far from its parabola."""
    left = [np.ones(len(cut.u), bool) for cut in cuts]
    while True:
        scores = [_scores(cut, keep) for cut, keep in zip(cuts, left, strict=True)]
        pooled = np.concatenate([each[~np.isnan(each)] for each in scores] or [np.empty(0)])
        size = [float(np.nanmax(np.abs(each), initial=0.0)) for each in scores]
        drawn = sum(not np.isnan(each).all() for each in scores)
        if not len(pooled) or max(size) <= limit(np.abs(pooled), len(pooled) - 3 * drawn):
            return left
        at = int(np.argmax(size))
        left[at][int(np.nanargmax(np.abs(scores[at])))] = False


def _parabola(cut: budgets.Slice, keep: Bool[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Log loss at every row of a budget by the parabola through those that are kept."""
    return np.polyval(np.polyfit(cut.u[keep], np.log(cut.loss[keep]), 2), cut.u)


def _scores(cut: budgets.Slice, keep: Bool[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """The residuals of the rows kept, over √(1 − leverage); NaN for others, and where a parabola has no rest."""
    scores = np.full(len(keep), np.nan)
    if len(np.unique(cut.u[keep])) <= budgets.FEWEST_SIZES:
        return scores
    powers = np.vander(cut.u[keep], 3)
    leverage = np.sum(np.linalg.qr(powers)[0] ** 2, axis=1)
    scores[keep] = (np.log(cut.loss) - _parabola(cut, keep))[keep] / np.sqrt(np.maximum(1 - leverage, 1e-6))
    return scores


def _exponent(cuts: Sequence[budgets.Slice]) -> float:
    """Approach 2's exponent of N*, NaN where too few budgets have a minimum."""
    good = [cut for cut in cuts if not budgets.optimum(cut, "parabola").refused]
    if len(good) < lines.FEWEST:
        return float("nan")
    optima = np.stack([cut.logs(*budgets.least(cut, "parabola")) for cut in good], axis=1)
    return float(lines.through(optima).slope[0, 0])


def _said(
    table: pd.DataFrame, index: pd.Index, rows: np.ndarray, off: np.ndarray | None, what: str, exponents: str
) -> str:
    shown = [name for name in table.columns if name not in ("weight", "cluster", "flops_budget")]
    named = []
    for row in rows[:SHOWN]:
        values = ", ".join(f"{name} {table[name].iloc[row]:.4g}" for name in shown)
        beside = "" if off is None else f", {off[row]:+.1%}"
        named.append(f"index {index[row]} ({values}{beside})")
    more = f", and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    remark = f"; without them {exponents}: check them" if exponents else ""
    if len(rows) > MANY * len(table):
        remark = ": so many are no stray rows, but a part of the table that is not as the rest (a source, whole runs)"
    return f"rows further from {what} than {RULE} ({len(rows)} of {len(table)}): {'; '.join(named)}{more}{remark}"
