"""Laws of calendar time: exponential trends, a trend that breaks, and algorithmic progress.

The input `time` is a date in years (2022.5 is the middle of 2022). Rates are per year and may be negative; they pass
through zero where a doubling time would pass through infinity, so the rate is what is fitted, and
`analysis.trends.doubling_time` turns it into years with an interval.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.forms import EXPONENTS, Parameter, law

YEAR = 2010.0  # constants are those of this date, the start of the deep-learning era (arXiv 2202.05924, section 3)


def _trend(time: Any, *, a: Any, doublings: Any) -> Any:
    return a * 2.0 ** (doublings * (time - YEAR))


def _trend_break(time: Any, *, a: Any, before: Any, after: Any, moment: Any) -> Any:
    since = time - moment
    return a * 2.0 ** (jnp.where(since < 0, before, after) * since)


def _progress(
    params: Any,
    tokens: Any,
    time: Any,
    *,
    E: Any,
    A: Any,
    B: Any,
    alpha: Any,
    beta: Any,
    alpha_year: Any,
    beta_year: Any,
) -> Any:
    years = time - YEAR
    return (
        E
        + A * jnp.exp(-alpha_year * years - alpha * jnp.log(params))
        + B * jnp.exp(-beta_year * years - beta * jnp.log(tokens))
    )


def _trend_starts(inputs: Mapping[str, np.ndarray], y: np.ndarray) -> dict[str, np.ndarray]:
    """The line through log2 y."""
    slope, level = np.polyfit(inputs["time"] - YEAR, np.log2(y), 1)
    return {"a": np.array([2.0**level]), "doublings": np.array([slope])}


def _trend_break_starts(inputs: Mapping[str, np.ndarray], y: np.ndarray) -> dict[str, np.ndarray]:
    """The two lines through log2 y that meet at each of 64 dates inside the data."""
    time = inputs["time"]
    moment = np.linspace(time.min(), time.max(), 66)[1:-1]
    since = time - moment[:, None]
    design = np.stack([np.ones_like(since), np.minimum(since, 0), np.maximum(since, 0)], axis=-1)
    level, before, after = (np.linalg.pinv(design) @ np.log2(y)).T
    return {"a": 2.0**level, "before": before, "after": after, "moment": moment}


_EXPONENTS = EXPONENTS[3::3]
_rate = Parameter(-20.0, 20.0)
_yearly = Parameter(-2.0, 5.0, start=(-0.02, 0.02, 0.1, 0.3))
_exponent = Parameter(0.0, 3.0, start=_EXPONENTS)
_positive = Parameter(0.0, log=True)

trend = law(
    _trend,
    name="trend",
    equation=f"y = a · 2^(r · (t - {YEAR:g})), t in years, r doublings per year",
    source="exponential trend (Moore 1965; Sevilla et al. 2022, arXiv 2202.05924: training compute)",
    parameters={"a": _positive, "doublings": _rate},
    starts=_trend_starts,
    real=("time",),
    unit="that of the measurements",
)
trend_break = law(
    _trend_break,
    name="trend_break",
    equation="y = a · 2^(r · (t - t1)), t in years, r = r_before doublings per year before t1, r_after from then on",
    source="piecewise exponential, continuous at its break, after the eras of Sevilla et al. 2022, arXiv 2202.05924",
    parameters={"a": _positive, "before": _rate, "after": _rate, "moment": Parameter(1800.0, 2200.0)},
    starts=_trend_break_starts,
    real=("time",),
    unit="that of the measurements",
)
progress = law(
    _progress,
    name="progress",
    equation=(f"L = E + A · exp(-α_year · (t - {YEAR:g})) / N^α + B · exp(-β_year · (t - {YEAR:g})) / D^β, t in years"),
    source=(
        "Ho et al. 2024, arXiv 2403.05812: their model 7 for one benchmark (model 19 where E is not 0), "
        "from github.com/epoch-research/lm-algorithmic-progress"
    ),
    parameters={
        "E": Parameter(0.0),
        "A": _positive,
        "B": _positive,
        "alpha": _exponent,
        "beta": _exponent,
        "alpha_year": _yearly,
        "beta_year": _yearly,
    },
    linear=("E", "A", "B"),
    real=("time",),
)
