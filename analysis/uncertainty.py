"""Intervals by resampling runs: the bootstrap of a fit, and percentile intervals of anything resampled."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import errors, solver

if typing.TYPE_CHECKING:
    from analysis import fitting


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its interval at `level`."""

    value: float
    interval: tuple[float, float]
    level: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.level:.0%}: {self.interval[0]:.4g} to {self.interval[1]:.4g})"


def percentiles(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The central interval of `samples` along their first axis (Efron's percentile interval), NaN left out."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must lie between 0 and 1; 0.95 is usual")
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(samples, [tail, 100 - tail], axis=0)
    return low, high


def estimate(value: float, samples: np.ndarray, level: float) -> Estimate:
    """`value` with the percentile interval of its resamples."""
    low, high = percentiles(samples, level)
    return Estimate(float(value), (float(low), float(high)), level)


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits on resampled runs; `samples` has one row a resample, `converged` is the share that found its minimum."""

    fit: "fitting.Fit"
    samples: pd.DataFrame
    converged: float
    seed: int

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a parameter."""
        if name not in self.samples:
            raise ValueError(f"{name!r} is no parameter of {self.fit.law.name!r}; name one of {list(self.samples)}")
        low, high = percentiles(self.samples[name].to_numpy(), level)
        return float(low), float(high)

    def predictions(self, at: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """The law at `at` under every resample: an array of (resamples, rows)."""
        from analysis import fitting

        values = {name: np.atleast_1d(v)[None, :] for name, v in fitting.inputs(self.fit, at).items()}
        return np.asarray(self.fit.law(values, {n: self.samples[n].to_numpy()[:, None] for n in self.fit.law.names}))

    def predict_interval(self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95) -> tuple[Any, Any]:
        """Low and high of the law's value at `at`: the uncertainty of the fit, without the scatter of single runs."""
        return percentiles(self.predictions(at), level)


def counts(runs: int, resamples: int, seed: int) -> np.ndarray:
    """How often each run is drawn in each resample: an array of (resamples, runs) with rows that sum to `runs`."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: must be at least 1; 1000 is usual")
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(np.float64)


def bootstrap(fit: "fitting.Fit", resamples: int, seed: int) -> Bootstrap:
    """Refit on runs drawn with replacement, every resample started from the optimum of the full sample.

    Resamples that do not reach a minimum are left out of `samples` and counted in `converged`; fewer than nine in
    ten raise `Refused`.
    """
    data = solver.points({name: fit.runs[name].to_numpy() for name in fit.law.inputs}, fit.runs["loss"].to_numpy())
    runs = len(fit.runs)
    weights = np.zeros((resamples, len(data.real)))
    weights[:, :runs] = counts(runs, resamples, seed)
    with solver.precise():
        optimum = solver.coordinates(fit.law, {name: np.array([value]) for name, value in fit.params.items()})
        refined = solver.refine(fit.law, np.tile(optimum, (resamples, 1)), data, weights)
        params = {name: np.asarray(values) for name, values in solver.named(fit.law, refined.theta).items()}
    share = float(refined.converged.mean())
    if share < 0.9:
        raise errors.Refused(
            f"only {share:.0%} of {resamples} resamples reached a minimum: {runs} runs do not carry "
            f"{len(fit.law.names)} parameters of {fit.law.name!r}; add runs or use a simpler law"
        )
    return Bootstrap(fit, pd.DataFrame(params)[refined.converged].reset_index(drop=True), share, seed)
