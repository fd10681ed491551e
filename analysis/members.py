"""The laws and the runs that a prediction by several laws rests on (`analysis.prediction`).

Runs weigh by how much they say about what lies above them,

    w = (C / C_max)^COMPUTE / (1 + (e / EXCESS)²),

e the log of a run's loss over the least loss that was reached with as much compute: what was trained far from the
optimum obeys no sum of two powers.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import checks, definitions, diagnostics, errors, fitting, laws, measuring, solver

COMPUTE = 0.5
EXCESS = 0.05
WINDOW = 0.6  # log FLOPs of a group of runs whose least loss is a point of the envelope
FEWEST = 3  # members that a mean and its spread need
UNKNOWN = 1e-6  # relative singular value below which runs say nothing of a direction of a law's parameters
RUNS, SIZES = 8, 3  # runs and distinct N below which nothing was tested
NAMES = ("params", "tokens", "flops")
MEMBERS: dict[str, tuple[str, dict[str, float]]] = {
    "hoffmann": ("hoffmann", {}),
    "hoffmann, α = β": ("hoffmann_shared", {}),
    "hoffmann, E = 0": ("hoffmann", {"E": 0.0}),
    "hoffmann, α = β = 0.15": ("hoffmann", {"alpha": 0.15, "beta": 0.15}),
    "hoffmann, α = β = 0.25": ("hoffmann", {"alpha": 0.25, "beta": 0.25}),
    "hoffmann, α = β = 0.35": ("hoffmann", {"alpha": 0.35, "beta": 0.35}),
    "kaplan": ("kaplan", {}),
    "kaplan_offset": ("kaplan_offset", {}),
}


def usable(
    frame: pd.DataFrame, loss: str, columns: dict[str, str], cluster: str | None
) -> tuple[checks.Selection, pd.DataFrame]:
    """The runs that a prediction may use, with columns params, tokens, flops and loss, or why there are none."""
    whole, derived = definitions.complete(frame, NAMES, columns)
    inputs = {name: columns[name] for name in ("params", "tokens")}
    # with exponents held, as some members have them, runs on one line of N and D are no reason to refuse
    chosen, _, _ = measuring.measurements(
        laws.get("hoffmann"), whole, loss, inputs, "log", {"alpha": 0.25, "beta": 0.25}, cluster
    )
    notes = list(derived)
    rows = chosen.frame
    if cluster is not None:
        rows = rows.sort_values(columns["tokens"], kind="stable").drop_duplicates(cluster, keep="last").sort_index()
        notes.append(f"the last checkpoints of {len(rows)} runs count, {len(chosen.frame) - len(rows)} others do not")
    runs = pd.DataFrame({name: checks.column(rows, columns[name], "a prediction") for name in NAMES})
    runs["loss"] = checks.column(rows, loss, "a prediction")
    checks.falling({name: runs[name].to_numpy() for name in inputs}, runs["loss"].to_numpy(), loss)
    if len(runs) < RUNS or runs["params"].nunique() < SIZES:
        raise errors.Refused(
            f"{len(runs)} runs of {runs['params'].nunique()} sizes: predictions were tested from {RUNS} runs of "
            f"{SIZES} sizes; add runs, or fit a law and predict with what holds if it is right"
        )
    runs["run_id"] = range(len(runs))  # no row repeats another: equal losses may be those of two seeds
    return dataclasses.replace(chosen, notes=tuple(notes)), runs


def fitted(runs: pd.DataFrame) -> tuple[dict[str, fitting.Fit], dict[str, str]]:
    """The members that the runs carry, and why they do not carry the others."""
    fits, refused = dict[str, fitting.Fit](), dict[str, str]()
    for name, (law, fixed) in MEMBERS.items():
        try:
            fit = fitting.fit(law, runs, weights="se", fixed=fixed or None)
            fitting.refuse_unconverged(fit)
            fits[name] = fit
        except errors.Refused as reason:
            refused[name] = str(reason)
    if len(fits) < FEWEST:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:2])
        raise errors.Refused(f"these runs carry {len(fits)} of {len(MEMBERS)} laws, fewer than {FEWEST}: {reasons}")
    return fits, refused


def line(runs: pd.DataFrame) -> tuple[tuple[float, float] | None, str]:
    """The line on which log D follows from log N in all runs, and the reason that this is one; None elsewhere."""
    n, d = runs["params"].to_numpy(), runs["tokens"].to_numpy()
    try:
        checks.separable(n, d)
    except errors.Refused as reason:
        slope, intercept = np.polyfit(np.log(n), np.log(d), 1)
        return (float(slope), float(intercept)), str(reason)
    return None, ""


def at_bounds(fits: Mapping[str, fitting.Fit]) -> Iterator[str]:
    """The members that have come down to simpler laws."""
    for name, fit in fits.items():
        if at := [key for key in fit.diagnostics.names if key not in (*fit.diagnostics.free, *fit.fixed)]:
            yield f"{name}: at a bound: {', '.join(f'{key} = {fit.params[key]:.3g}' for key in at)}"


def weights(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """What each run counts for a prediction above them (the head of this module has the equation)."""
    excess = np.maximum(np.log(loss) - envelope(flops, loss), 0.0)
    return np.asarray((flops / flops.max()) ** COMPUTE / (1 + (excess / EXCESS) ** 2))


def groups(flops: np.ndarray) -> np.ndarray:
    """The number of each run's group of like FLOPs."""
    return np.asarray(np.round(np.log(flops) / WINDOW))


def envelope(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """log of the least loss of each group of runs of like FLOPs, or of fewer, straight in log C between the groups."""
    order = np.argsort(flops, kind="stable")
    c, least = np.log(flops[order]), np.log(np.minimum.accumulate(loss[order]))
    group = groups(flops[order])
    at = np.unique(group)
    means, lowest = ([part(values[group == g]) for g in at] for part, values in ((np.mean, c), (np.min, least)))
    return np.interp(np.log(flops), means, lowest)


def scatter(fit: fitting.Fit, runs: pd.DataFrame, weight: np.ndarray) -> float:
    """The standard deviation of log losses about a law, by their weighted median magnitude: outliers do not count.

    Times sqrt(m / (m − p)) for the p parameters fitted, m = (Σ w)² / Σ w² the number of runs that weigh as much.
    """
    residuals = np.abs(np.log(runs["loss"] / fit.predict(runs)).to_numpy())
    order = np.argsort(residuals)
    share = np.cumsum(weight[order]) / weight.sum()
    count = weight.sum() ** 2 / np.sum(weight**2)
    lost = count / max(count - len(fit.diagnostics.free), 1.0)
    return float(1.4826 * residuals[order][np.searchsorted(share, 0.5)] * np.sqrt(lost))


def carried(fits: Mapping[str, fitting.Fit], params: np.ndarray, tokens: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The variance of the mean of the laws for the noise of the runs they are fitted to, in units of one run's.

    |ℓ|² with ℓ the mean over laws of x (Xᵀ W X)⁺ Xᵀ W: how weighted least squares moves log f at the target with the
    log loss of each run; X and x hold ∂ log f / ∂θ at the runs and at the target.
    """
    target = solver.points({"params": params, "tokens": tokens}, np.ones(len(params)))
    rows = [_response(fit, target)[: len(params)] for fit in fits.values()]
    return np.asarray(np.sum(np.mean(rows, axis=0) ** 2, axis=1))


def _response(fit: fitting.Fit, target: solver.Points) -> Float[np.ndarray, "rows runs"]:
    data, theta = fit.points(), solver.coordinates(fit.law, fit.params)[0]
    free = [fit.law.names.index(name) for name in fit.diagnostics.free]
    here, there = (diagnostics.jacobian(fit, points, theta)[:, free] for points in (data, target))
    root = np.sqrt(data.weight / data.weight.max())[:, None]
    size = np.linalg.norm(root * here, axis=0)
    size = np.where(size > 0, size, 1.0)
    inverse = np.linalg.pinv(root * here / size, rcond=UNKNOWN)
    return np.asarray((there / size) @ inverse * root.T)
