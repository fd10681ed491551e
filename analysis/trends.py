"""How fast something grows: doubling times, with intervals, from fits of the laws of calendar time."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from analysis import errors, fitting
from analysis.uncertainty import Bootstrap, Estimate

Rates = Mapping[str, Callable[[Mapping[str, Any]], Any]]


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Years in which `of` doubles, negative where it halves, and the rate (doublings per year) that it comes from.

    Where the rate's interval holds zero, neither growth nor decline is established and the end of the interval of
    `years` on that side is infinite.
    """

    of: str
    years: Estimate
    rate: Estimate

    def __str__(self) -> str:
        low, high = (f"{12 * end:.3g}" for end in self.years.interval)
        return f"{self.of} doubles in {12 * self.years.value:.3g} months ({self.years.level:.0%}: {low} to {high})"


def _growth(exponent: str, yearly: str) -> Callable[[Mapping[str, Any]], Any]:
    """exp(-α_year t) / N^α falls as if N grew by exp(α_year t / α): Ho et al. 2024, arXiv 2403.05812, section 2."""
    return lambda params: params[yearly] / params[exponent] / np.log(2)


_RATES: dict[str, Rates] = {
    "trend": {"y": lambda params: params["doublings"]},
    "trend_break": {
        "y before the break": lambda params: params["before"],
        "y after the break": lambda params: params["after"],
    },
    "progress": {
        "effective compute": lambda params: (
            _growth("alpha", "alpha_year")(params) + _growth("beta", "beta_year")(params)
        ),
        "effective parameters": _growth("alpha", "alpha_year"),
        "effective data": _growth("beta", "beta_year"),
    },
}


def doubling_time(fit: fitting.Fit, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Doubling, ...]:
    """What doubles in how many years by a fit of "trend", "trend_break" or "progress", with bootstrap intervals.

    The interval is that of the rate, turned over: percentiles of doubling times themselves are meaningless where some
    resamples decline. Effective compute is 6 N D, so its rate is the sum of those of N and D (Ho et al. 2024, arXiv
    2403.05812, section 2). Raises `Refused` for a fit of another law.
    """
    if fit.law.name not in _RATES:
        raise errors.Refused(f"{fit.law.name!r} has no doubling time; fit one of {', '.join(_RATES)}")
    boot = fit.bootstrap(resamples, seed)
    samples = {name: boot.samples[name].to_numpy() for name in boot.samples.columns}
    return tuple(_turned(of, boot, rate(fit.params), rate(samples), level) for of, rate in _RATES[fit.law.name].items())


def _turned(of: str, boot: Bootstrap, value: float, samples: np.ndarray, level: float) -> Doubling:
    rate = boot.estimate(value, samples, level)
    low, high = rate.interval
    settled = low > 0 or high < 0
    first = 1 / high if settled or value > 0 else -np.inf
    last = 1 / low if settled or value < 0 else np.inf
    return Doubling(of, Estimate(1 / value if value else np.inf, (first, last), level), rate)
