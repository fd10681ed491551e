"""Intervals by resampling runs: the bootstrap of a fit, and percentile intervals of anything resampled.

Intervals of a `Bootstrap` are bias-corrected percentiles (Efron 1981, Canadian Journal of Statistics 9). On planted
Hoffmann laws (three grids of 36 to 60 runs, noise of 0.1%, 0.5% and 2%, 1,000 replicas of 200 resamples each,
`python -m benchmarks.calibration`) the 95% intervals of α and β hold the truth in 94.0% to 97.0% of replicas, those of
the loss at 10 times the largest compute in 94.0% to 96.4%, those of a new run there in 93.9% to 96.1%. Plain
percentiles reach 98.7% (too wide), basic intervals fall to 89.6%, errors that assume equal scatter to 89.8%.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float

from analysis import checks, errors, solver

if typing.TYPE_CHECKING:
    from analysis import fitting

RESTARTS = 8  # starts from which a resample is refined that reached no minimum from the optimum of all runs
MOST_BIAS = 0.97  # of z₀: with 2 · 0.97 < 1.96 a 95% interval keeps the median of its resamples
FEWEST = 0.5  # share of resamples at a minimum: with more of them missing, not even the median is known


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its interval at `level`."""

    value: float
    interval: tuple[float, float]
    level: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.level:.0%}: {self.interval[0]:.4g} to {self.interval[1]:.4g})"


def percentiles(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The central interval of `samples` along their first axis (Efron's percentile interval), NaN left out.

    The k-th smallest of B samples is taken as the quantile k / (B + 1), so that few samples do not narrow it.
    """
    checks.level(level)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(samples, [tail, 100 - tail], axis=0, method="weibull")
    return low, high


def unbiased(
    samples: Float[np.ndarray, "resamples *shape"], value: Float[np.ndarray, "*shape"] | float, clusters: int = 0
) -> Float[np.ndarray, "resamples *shape"]:
    """Resamples moved along their own distribution, so that their percentiles are bias-corrected ones (Efron 1981).

    A resample at quantile u goes to quantile Φ(Φ⁻¹(u) + 2 z₀), Φ(z₀) the share of resamples below the estimate
    `value`: where the estimate is not the median of its resamples, resampling a truth would miss it by as much. Where
    resamples pile up at the estimate, as at a bound, z₀ is the one nearest to 0 that the pile allows. Ranks are kept.
    |z₀| is at most MOST_BIAS, for an interval that left out the median of the resamples would say more than they do.

    Resamples of few clusters scatter less than estimates do: with G `clusters` Φ⁻¹(u) gives way to √(G / (G − 1)) times
    the same quantile of Student's t with G − 1 degrees of freedom (Hesterberg 2015, The American Statistician 69).
    Rows that are runs of their own need no such widening (benchmarks.calibration).
    """
    count = len(samples)
    order = np.argsort(samples, axis=0, kind="stable")
    ordered = np.take_along_axis(samples, order, axis=0)
    below, upto = np.sum(samples < value, axis=0), np.sum(samples <= value, axis=0)
    z = scipy.special.ndtri((np.clip(count / 2, below, upto) + 0.5) / (count + 1))
    z = np.clip(z, -MOST_BIAS, MOST_BIAS)
    ranks = np.arange(1, count + 1).reshape(-1, *([1] * (samples.ndim - 1)))
    normal = scipy.special.ndtri(ranks / (count + 1))
    if clusters > 1:
        normal = np.sqrt(clusters / (clusters - 1)) * scipy.special.stdtrit(clusters - 1, ranks / (count + 1))
    place = scipy.special.ndtr(normal + 2 * z) * (count + 1) - 1
    place = np.clip(place, 0, count - 1)
    first = np.minimum(place.astype(int), max(count - 2, 0))
    lower, upper = (np.take_along_axis(ordered, np.minimum(first + i, count - 1), axis=0) for i in (0, 1))
    moved = np.empty_like(ordered)
    np.put_along_axis(moved, order, lower + (place - first) * (upper - lower), axis=0)
    return moved


def estimate(value: float, samples: np.ndarray, level: float) -> Estimate:
    """`value` with the percentile interval of its resamples."""
    low, high = percentiles(samples, level)
    return Estimate(float(value), (float(low), float(high)), level)


def among(level: float, share: float) -> float:
    """The level of an interval among the `share` of resamples that are there, the others half below and half above."""
    tail = ((1 - level) / 2 - (1 - share) / 2) / share
    return max(level, 1 - 2 * max(tail, 1e-9)) if 0 < level < 1 else level


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits on resampled runs; `samples` has one row a resample, `converged` is the share that found its minimum.

    The others are missing from `samples`. Intervals count half of them below and half above all that are there, so
    they are wider than those of `samples` alone, up to the whole range of `samples`.
    """

    fit: "fitting.Fit"
    samples: pd.DataFrame
    converged: float
    seed: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say of resamples that are missing."""
        if self.converged == 1:
            return ()
        return (
            f"{1 - self.converged:.1%} of {len(self.samples) / self.converged:.0f} resamples reached no minimum, from "
            f"{RESTARTS} other starts either: intervals count half of them below and half above all others",
        )

    def level(self, level: float, share: float = 1.0) -> float:
        """The level among a `share` of `samples`, by default all, of an interval at `level` among all resamples."""
        return among(level, share * self.converged)

    def estimate(self, value: float, samples: np.ndarray, level: float, share: float = 1.0) -> Estimate:
        """`value` with the percentile interval of what a `share` of the resamples, by default all, makes of it."""
        low, high = percentiles(samples, self.level(level, share))
        return Estimate(float(value), (float(low), float(high)), level)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The bias-corrected percentile interval of a parameter."""
        if name not in self.samples:
            raise ValueError(f"{name!r} is no parameter of {self.fit.law.name!r}; name one of {list(self.samples)}")
        moved = unbiased(self.samples[name].to_numpy(), self.fit.params[name], self.fit.clusters)
        low, high = percentiles(moved, self.level(level))
        return float(low), float(high)

    def interval_text(self, name: str, level: float = 0.95) -> str:
        """A parameter's interval in words, or at which bound its resamples are: that is no interval of zero width."""
        low, high = self.interval(name, level)
        with solver.precise():
            ends = [solver.named(self.fit.law, end)[name] for end in solver.box(self.fit.law)]
        for side, bound in zip(("lower", "upper"), ends, strict=True):
            if low == high == bound:
                return f"at its {side} bound in {level:.0%} of resamples or more: no interval"
        return f"{level:.0%} interval {low:.5g} to {high:.5g}"

    def predictions(self, at: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """The law at `at` under every resample: an array of (resamples, rows)."""
        from analysis import fitting

        values = {name: np.atleast_1d(v)[None, :] for name, v in fitting.inputs(self.fit, at).items()}
        law = self.fit.law
        with solver.precise():
            predicted = law(values, {name: self.samples[name].to_numpy()[:, None] for name in law.names})
            return np.broadcast_to(
                np.asarray(predicted, dtype=np.float64), (len(self.samples), *np.shape(next(iter(values.values())))[1:])
            )

    def predict_interval(
        self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95, noise: bool = True
    ) -> tuple[Any, Any]:
        """Low and high of a new run's loss at `at`: the uncertainty of the fit and the scatter between runs.

        The scatter is a residual of the fit drawn at random, the same for all of `at`, times sqrt(n / (n − p)) for the
        p parameters fitted to the n runs; it holds what differs between seeds and what the law misses. `noise=False`
        gives the interval of the law itself: the bias-corrected percentiles of its resamples.
        """
        values = unbiased(self.predictions(at), np.atleast_1d(self.fit.predict(at)), self.fit.clusters)
        if noise:
            criterion, residuals = self.fit.criterion, self.fit.residuals
            free = len(self.fit.law.names) - len(self.fit.fixed)
            # every residual as often as any other, in random order: few resamples have no tails by chance
            place = np.random.default_rng(self.seed).permutation((np.arange(len(values)) + 0.5) / len(values))
            drawn = np.sort(residuals)[(place * len(residuals)).astype(int)].reshape(-1, *[1] * (values.ndim - 1))
            drawn *= np.sqrt(len(residuals) / max(len(residuals) - free, 1))
            values = criterion.invert(criterion.transform(values) + drawn)
        return percentiles(values, self.level(level))


def counts(runs: int, resamples: int, seed: int) -> np.ndarray:
    """How often each run is drawn in each resample: an array of (resamples, runs) with rows that sum to `runs`."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: must be at least 1; 1000 is usual")
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(np.float64)


def bootstrap(fit: "fitting.Fit", resamples: int, seed: int) -> Bootstrap:
    """Refit on runs drawn with replacement, every resample started from the optimum of the full sample.

    Rows of one cluster are drawn together. A resample that reaches no minimum goes on from where it stopped, then
    starts from RESTARTS other points; what reaches none from there either is left out of `samples` and counted in
    `converged`. `Refused` where that is more than half of them: not even the median of all is known then.
    """
    data = fit.points()
    runs = len(fit.runs)
    cluster = pd.factorize(fit.runs["cluster"])[0] if "cluster" in fit.runs else np.arange(runs)
    weights = np.zeros((resamples, len(data.weight)))
    weights[:, :runs] = counts(int(cluster.max()) + 1, resamples, seed)[:, cluster] * data.weight[:runs]
    with solver.precise():
        theta, converged = _refitted(fit, data, weights)
        params = {name: np.asarray(values) for name, values in solver.named(fit.law, theta).items()}
    share = float(converged.mean())
    if share < FEWEST:
        raise errors.Refused(
            f"only {share:.0%} of {resamples} resamples reached a minimum, from {RESTARTS} other starts either: {runs} "
            f"runs do not carry {len(fit.law.names)} parameters of {fit.law.name!r}; add runs or use a simpler law"
        )
    return Bootstrap(fit, pd.DataFrame(params)[converged].reset_index(drop=True), share, seed)


def _refitted(
    fit: "fitting.Fit", data: solver.Points, weights: Float[np.ndarray, "resamples points"]
) -> tuple[Float[np.ndarray, "resamples parameters"], np.ndarray]:
    """The parameters of every resample, and which of them are at a minimum."""
    low, high = solver.box(fit.law, fit.fixed)

    def refined(start: np.ndarray, rows: np.ndarray) -> solver.Refined:
        return solver.refine(fit.law, np.clip(start, low, high), data, weights[rows], fit.criterion, low, high)

    first = refined(np.tile(solver.coordinates(fit.law, fit.params), (len(weights), 1)), np.arange(len(weights)))
    theta, converged = first.theta, first.converged.copy()
    if len(left := np.flatnonzero(~converged)):
        again = refined(theta[left], left)
        theta[left], converged[left] = again.theta, again.converged
    if len(left := np.flatnonzero(~converged)):
        starts = solver.starts(fit.law, data, RESTARTS, fit.criterion, fit.fixed)
        again = refined(np.tile(starts, (len(left), 1)), np.repeat(left, len(starts)))
        value = np.where(again.converged, again.objective, np.inf).reshape(len(left), -1)
        best = value.argmin(axis=1) + np.arange(len(left)) * len(starts)
        theta[left], converged[left] = again.theta[best], again.converged[best]
    return theta, converged
