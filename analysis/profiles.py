"""Likelihood profiles: a parameter held at each of many values, the others refitted."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from analysis import checks, errors, solver

if typing.TYPE_CHECKING:
    from analysis import fitting

POINTS = 32
REACH = 5.0  # standard errors to either side, doubled until the profile has risen enough or a bound is met
WIDENINGS = 5
LOWER = 0.1  # of the quantile: a profile that finds so much lower an objective is none of this fit


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """The least objective at each value of a parameter, as a deviance, and the interval below its quantile.

    `deviance` is 2 κ (objective − minimum), F with 1 and n − p degrees of freedom where the value is true: exactly for
    a law that is linear in its parameters, independent normal residuals and squares, and about so otherwise.
    κ is the parameter's H⁻¹ over its variance (see `Diagnostics`), so that the deviance is (θ − θ̂)² over that variance
    near the minimum: the variance under equal scatter where independent rows are fitted by squares, which makes a
    likelihood of the objective, the sandwich's otherwise. Clusters, G of them, leave G − 1 degrees
    of freedom. An end of `interval` that the deviance never reaches is the parameter's bound, and `open_ends` names it.
    """

    name: str
    values: Float[np.ndarray, " points"]
    deviance: Float[np.ndarray, " points"]
    best: float
    level: float
    quantile: float
    interval: tuple[float, float]
    open_ends: tuple[str, ...]

    def __str__(self) -> str:
        ends = f" ({' and '.join(self.open_ends)} end open: the data do not bound it)" if self.open_ends else ""
        return (
            f"{self.name} = {self.best:.5g} ({self.level:.0%}: {self.interval[0]:.4g} to {self.interval[1]:.4g}){ends}"
        )


def profile(fit: "fitting.Fit", name: str, level: float) -> Profile:
    """The profile of one parameter and its interval at `level`; Refused where the fit holds it fixed."""
    if name not in fit.params:
        raise ValueError(f"{name!r} is no parameter of {fit.law.name!r}; name one of {', '.join(fit.params)}")
    checks.level(level)
    if name in fit.fixed:
        raise errors.Refused(f"{name} is fixed at {fit.fixed[name]:g} in this fit: it has no profile; fit it free")
    index, parameter = fit.law.names.index(name), fit.law.parameter(name)
    freedom = max(fit.clusters - 1 if fit.clusters else len(fit.runs) - len(fit.diagnostics.free), 1)
    quantile = float(scipy.stats.f.ppf(level, 1, freedom))
    back = np.exp if parameter.log else np.asarray
    at, deviance = _risen(fit, index, quantile, _curvature(fit, index), back)
    middle = int(np.argmin(np.abs(at - solver.coordinates(fit.law, fit.params)[0][index])))
    left, left_open = _crossing(at[: middle + 1][::-1], deviance[: middle + 1][::-1], quantile)
    right, right_open = _crossing(at[middle:], deviance[middle:], quantile)
    open_ends = tuple(end for end, is_open in (("lower", left_open), ("upper", right_open)) if is_open)
    interval = (
        parameter.lower if left_open else float(back(left)),
        parameter.upper if right_open else float(back(right)),
    )
    return Profile(name, back(at), deviance, fit.params[name], level, quantile, interval, open_ends)


@dataclasses.dataclass(frozen=True, eq=False)
class _Curvature:
    """Of the objective in one parameter: κ, its standard error, and how the others move with it along the valley."""

    kappa: float
    error: float
    ridge: np.ndarray


def _curvature(fit: "fitting.Fit", index: int) -> _Curvature:
    diagnostics, theta = fit.diagnostics, solver.coordinates(fit.law, fit.params)[0]
    robust = fit.clusters > 0 or fit.criterion.kind != "squared"
    covariance = diagnostics.covariance if robust else diagnostics.equal_scatter
    variance, curved = covariance[index, index], diagnostics.inverse[index, index]
    kappa = curved / variance if variance > 0 else 1 / max(diagnostics.stiffness * diagnostics.variance, 1e-300)
    error = float(np.sqrt(variance)) or 0.1 * max(abs(theta[index]), 1.0)
    return _Curvature(kappa, error, diagnostics.inverse[:, index] / curved if curved > 0 else np.eye(len(theta))[index])


def _risen(
    fit: "fitting.Fit", index: int, quantile: float, curvature: _Curvature, back: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the parameter, and the deviance there, as far out as it takes to rise above the quantile.

    Refused where the others reach a lower objective than the fit's.
    """
    data, theta = fit.points(), solver.coordinates(fit.law, fit.params)[0]
    low, high = solver.box(fit.law, fit.fixed)
    below = above = REACH * curvature.error
    for _ in range(WIDENINGS + 1):
        first, last = max(theta[index] - below, low[index]), min(theta[index] + above, high[index])
        at = np.unique(
            np.concatenate(
                [np.linspace(first, theta[index], POINTS // 2 + 1), np.linspace(theta[index], last, POINTS // 2)]
            )
        )
        along = theta + (at - theta[index])[:, None] * curvature.ridge
        objective = _objectives(fit, data, along, index, at, low, high)
        lower = fit.objective - np.nanmin(objective)
        if 2 * curvature.kappa * lower > LOWER * quantile:
            raise errors.Refused(
                f"held at {fit.law.names[index]} = {float(back(at[np.nanargmin(objective)])):.5g} the others reach an "
                f"objective {lower / fit.objective:.2%} below that of the fit, so its minimum is not the least one: "
                "fit again with start= there"
            )
        deviance = 2 * curvature.kappa * (objective - min(fit.objective, np.nanmin(objective)))
        falls_short = deviance[0] < quantile and first > low[index], deviance[-1] < quantile and last < high[index]
        if not any(falls_short):
            break
        below, above = below * (3 if falls_short[0] else 1), above * (3 if falls_short[1] else 1)
    return at, deviance


def _objectives(
    fit: "fitting.Fit",
    data: solver.Points,
    theta: np.ndarray,
    index: int,
    at: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """The least objective with parameter `index` held at each of `at`, from `theta` and from each inner neighbour."""
    rows, fit_at = len(at), solver.coordinates(fit.law, fit.params)[0][index]
    held_low, held_high = np.tile(low, (rows, 1)), np.tile(high, (rows, 1))
    held_low[:, index] = held_high[:, index] = at
    weights = np.tile(data.weight, (rows, 1))
    with solver.precise():
        refined = solver.refine(
            fit.law, np.clip(theta, held_low, held_high), data, weights, fit.criterion, held_low, held_high
        )
        inward = np.where((at > fit_at)[:, None], np.roll(refined.theta, 1, axis=0), np.roll(refined.theta, -1, axis=0))
        again = solver.refine(
            fit.law, np.clip(inward, held_low, held_high), data, weights, fit.criterion, held_low, held_high
        )
    return np.fmin(refined.objective, again.objective)


def _crossing(at: np.ndarray, deviance: np.ndarray, quantile: float) -> tuple[float, bool]:
    """Where the deviance first exceeds the quantile going outward (√deviance is nearly straight); True: never."""
    beyond = np.flatnonzero(deviance > quantile)
    if not len(beyond) or beyond[0] == 0:
        return float(at[-1]), True
    i = int(beyond[0])
    inner, outer = np.sqrt(np.maximum(deviance[i - 1 : i + 1], 0.0))
    return float(at[i - 1] + (np.sqrt(quantile) - inner) / (outer - inner) * (at[i] - at[i - 1])), False
