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
        law = self.fit.law
        with solver.precise():
            found = law(values, {name: self.samples[name].to_numpy()[:, None] for name in law.names})
            return np.broadcast_to(
                np.asarray(found, dtype=np.float64), (len(self.samples), *np.shape(next(iter(values.values())))[1:])
            )

    def predict_interval(
        self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95, noise: bool = True
    ) -> tuple[Any, Any]:
        """Low and high of a new run's loss at `at`: the uncertainty of the fit and the scatter between runs.

        The scatter is a residual of the fit drawn at random, times sqrt(n / (n − p)) for the p parameters fitted to the
        n runs; it holds what differs between seeds and what the law misses. `noise=False` gives the interval of the law
        itself, the mean over many such runs.
        """
        values = self.predictions(at)
        if noise:
            criterion, residuals = self.fit.criterion, self.fit.residuals
            free = len(self.fit.law.names) - len(self.fit.fixed)
            drawn = np.random.default_rng(self.seed).choice(residuals, size=values.shape)
            drawn *= np.sqrt(len(residuals) / max(len(residuals) - free, 1))
            values = criterion.invert(criterion.transform(values) + drawn)
        return percentiles(values, level)


def counts(runs: int, resamples: int, seed: int) -> np.ndarray:
    """How often each run is drawn in each resample: an array of (resamples, runs) with rows that sum to `runs`."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: must be at least 1; 1000 is usual")
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(np.float64)


def bootstrap(fit: "fitting.Fit", resamples: int, seed: int) -> Bootstrap:
    """Refit on runs drawn with replacement, every resample started from the optimum of the full sample.

    Rows of one cluster are drawn together. Resamples that do not reach a minimum are left out of `samples` and counted
    in `converged`; fewer than nine in ten raise `Refused`.
    """
    data = fit.points()
    runs = len(fit.runs)
    cluster = pd.factorize(fit.runs["cluster"])[0] if "cluster" in fit.runs else np.arange(runs)
    weights = np.zeros((resamples, len(data.weight)))
    weights[:, :runs] = counts(int(cluster.max()) + 1, resamples, seed)[:, cluster] * data.weight[:runs]
    low, high = solver.box(fit.law, fit.fixed)
    with solver.precise():
        optimum = solver.coordinates(fit.law, fit.params)
        start = np.clip(np.tile(optimum, (resamples, 1)), low, high)
        refined = solver.refine(fit.law, start, data, weights, fit.criterion, low, high)
        params = {name: np.asarray(values) for name, values in solver.named(fit.law, refined.theta).items()}
    share = float(refined.converged.mean())
    if share < 0.9:
        raise errors.Refused(
            f"only {share:.0%} of {resamples} resamples reached a minimum: {runs} runs do not carry "
            f"{len(fit.law.names)} parameters of {fit.law.name!r}; add runs or use a simpler law"
        )
    return Bootstrap(fit, pd.DataFrame(params)[refined.converged].reset_index(drop=True), share, seed)
