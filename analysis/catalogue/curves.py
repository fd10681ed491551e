"""Laws of one curve y(x): the estimators M1 to M4 of Alabdulmohsin et al., and broken power laws.

The input `x` is any positive scale (examples, tokens, parameters, FLOPs), y any positive measure that falls with it:
a loss, an error rate, a perplexity. Nothing here knows the units of either: scales are searched in logarithms or
solved for, and starts are made from the data.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from analysis.forms import EXPONENTS, UNVALIDATED, Law, Parameter, Starts, law

_UNIT = "that of the measurements"
_ADDITION = "the addition task of Caballero et al., Figure 4: their parameters, extrapolation RMSLE 0.0109"
NEWTON = 16  # steps to the root of M4's equation, from a side where they approach it without overshooting
BROKEN_STARTS = 12  # log2 of how many points of a Sobol sequence a broken law starts from


# What is searched is chosen so that a direction which data leave open is a straight line in it, not a curved valley.


def _m1(x: Any, *, a: Any, c: Any) -> Any:
    return a * x**-c


def _m2(x: Any, *, a: Any, c: Any, e: Any) -> Any:
    return a * x**-c + e


def _m3(x: Any, *, e: Any, c: Any, d: Any) -> Any:
    xp = _namespace(x, e, c, d)
    return e * xp.exp(c * xp.logaddexp(0.0, -xp.log(d) - xp.log(x)))


def _namespace(*values: Any) -> Any:
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def _step(u: Any, right: Any, alpha: Any, xp: Any) -> Any:
    log_s, log_rest = -xp.logaddexp(0.0, -u), -xp.logaddexp(0.0, u)
    return u - (log_s - alpha * log_rest - right) / (xp.exp(log_rest) + alpha * xp.exp(log_s))


@jax.custom_jvp
def _traced_logit(right: Any, alpha: Any) -> Any:
    start = jnp.where(right < 0, right, right / alpha)
    return jax.lax.fori_loop(0, NEWTON, lambda _, u: _step(u, right, alpha, jnp), start)


@_traced_logit.defjvp
def _slope(at: tuple[Any, Any], moved: tuple[Any, Any]) -> tuple[Any, Any]:
    """By the implicit function theorem; the root inside is differentiated by this rule again."""
    u = _traced_logit(*at)
    rise = jnp.exp(-jnp.logaddexp(0.0, u)) + at[1] * jnp.exp(-jnp.logaddexp(0.0, -u))
    return u, (moved[0] - moved[1] * jnp.logaddexp(0.0, u)) / rise


def logit_fraction(right: Any, alpha: Any) -> Any:
    """u = log(s/(1 − s)) of the s in (0, 1) that solves log s − α log(1 − s) = `right`, α > 0; shapes that broadcast.

    In u the left side is g = −softplus(−u) + α softplus(u): increasing, concave for α < 1 and convex for α > 1, and
    beyond its asymptotes (u for u < 0, αu for u > 0) on one side only. Newton's method from the asymptotes therefore
    nears the root from one side. Derivatives of every order come from the equation, not from the iteration.
    """
    if isinstance(right, jax.Array) or isinstance(alpha, jax.Array):
        return _traced_logit(*jnp.broadcast_arrays(right, alpha))
    u = np.where(right < 0, right, right / alpha)
    for _ in range(NEWTON):
        u = _step(u, right, alpha, np)
    return u


def _fraction(right: Any, alpha: Any) -> Any:
    u = logit_fraction(right, alpha)
    xp = _namespace(u)
    return xp.exp(-xp.logaddexp(0.0, -u))


def _m4(x: Any, *, e: Any, span: Any, alpha: Any, a: Any, c: Any) -> Any:
    xp = _namespace(x, e, span, alpha, a, c)
    return e + span * _fraction(xp.log(a) - xp.log(span) - c * xp.log(x), alpha)


def _m3_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """Bends (1/d) from a hundredth of the smallest x to a hundred times the largest."""
    scale = np.geomspace(inputs["x"].min() / 100, inputs["x"].max() * 100, 16)
    c, d = (grid.ravel() for grid in np.meshgrid(EXPONENTS, 1 / scale, indexing="ij"))
    return {"c": c, "d": d}


def _m4_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """The curve's middle from a hundredth of the smallest x to the largest, α from nearly M2 to a slow start.

    Given those, y = e + span · s is a line in s: its least squares relative to y, e ≥ 0, and falling curves only.
    """
    scale = np.geomspace(inputs["x"].min() / 100, inputs["x"].max(), 10)
    grids = np.meshgrid(np.geomspace(0.05, 2.0, 12), (0.02, 0.3, 1.0, 2.0, 4.0), scale, indexing="ij")
    c, alpha, x0 = (grid.ravel() for grid in grids)
    s = _fraction(c[:, None] * (np.log(x0)[:, None] - np.log(inputs["x"])), alpha[:, None])
    weight = 1 / loss**2 / np.sum(1 / loss**2)
    mean, level = s @ weight, loss @ weight
    span = ((s - mean[:, None]) * (loss - level)) @ weight / np.maximum((s - mean[:, None]) ** 2 @ weight, 1e-300)
    e = level - span * mean
    span = np.where(e > 0, span, (s * loss) @ weight / np.maximum(s**2 @ weight, 1e-300))
    span = np.where(span > 0, span, 1e-6 * level)  # a curve that rises has no fit by this law but a flat one
    e = np.where(span > 1e-6 * level, np.maximum(e, 0.0), level)
    return {"e": e, "span": span, "alpha": alpha, "a": span * x0**c, "c": c}


def _broken_starts(breaks: int) -> Starts:
    def starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
        """Exponents of either sign, sharpness from sudden to a decade, breaks inside the data in rising order."""
        point = scipy.stats.qmc.Sobol(1 + 3 * breaks, scramble=False).random_base2(BROKEN_STARTS)
        values = {"c0": -0.2 + 1.2 * point[:, 0]}
        log_d = np.quantile(np.log(inputs["x"]), np.sort(point[:, 1 : breaks + 1], axis=1))
        for i in range(breaks):
            size, sharp = point[:, 1 + breaks + i], point[:, 1 + 2 * breaks + i]
            values[f"c{i + 1}"] = np.where(size < 0.25, -(10.0 ** (1 - 8 * size)), 10.0 ** (-1.5 + 3.0 * (size - 0.25)))
            values[f"d{i + 1}"] = np.exp(log_d[:, i])
            values[f"f{i + 1}"] = 10.0 ** (-2 + 2.2 * sharp)
        return values

    return starts


# any unit will do; beyond this, second derivatives of a logarithm leave float64
_scale = Parameter(1e-100, 1e100, log=True)


@functools.cache
def broken(breaks: int) -> Law:
    """The broken power law with `breaks` breaks, y = a + b x^(−c0) Π_i (1 + (x/d_i)^(1/f_i))^(−c_i f_i).

    Caballero et al. 2022, arXiv 2210.14891, eq. 1. `a` is the limit, b the offset of the first segment on a log-log
    plot and c0 its slope; c_i is the change of slope at x = d_i, f_i its sharpness (smaller is more sudden). In units
    of y and x. It may rise and fall. Raises ValueError where `breaks` is below 1 (that law is m2).
    """
    if breaks < 1:
        raise ValueError(f"breaks = {breaks}: must be at least 1; without a break the law is m2")

    def function(x: Any, **given: Any) -> Any:
        xp = _namespace(x, *given.values())
        log_x = xp.log(x)
        bend = -given["c0"] * log_x
        for i in range(1, breaks + 1):
            f = given[f"f{i}"]
            bend = bend - given[f"c{i}"] * f * xp.logaddexp(0.0, (log_x - xp.log(given[f"d{i}"])) / f)
        return given["a"] + given["b"] * xp.exp(bend)

    parameters = {"a": Parameter(0.0), "b": Parameter(0.0, log=True), "c0": Parameter(-3.0, 3.0)}
    for i in range(1, breaks + 1):
        parameters |= {f"c{i}": Parameter(-10.0, 20.0), f"d{i}": _scale}
        parameters[f"f{i}"] = Parameter(1e-3, 10.0, log=True)
    keyword, first = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([first, *(inspect.Parameter(name, keyword) for name in parameters)])
    function.__signature__ = signature  # type: ignore[attr-defined]
    return law(
        function,
        name=f"broken{breaks}",
        equation="y = a + b · x^(-c0) · Π_i (1 + (x / d_i)^(1 / f_i))^(-c_i · f_i), i = 1"
        + f"..{breaks}" * (breaks > 1),
        source="Caballero et al. 2022, arXiv 2210.14891, eq. 1",
        parameters=parameters,
        linear=("a", "b"),
        starts=_broken_starts(breaks),
        unit=_UNIT,
        validated=_ADDITION if breaks == 1 else UNVALIDATED,
    )


_ALABDULMOHSIN = "Alabdulmohsin et al. 2022, arXiv 2209.06640, section 3"
_offset = Parameter(0.0)
_positive = Parameter(0.0, log=True)
_exponent = Parameter(0.0, 5.0, start=EXPONENTS)

m1 = law(
    _m1,
    name="m1",
    equation="y = a · x^(-c)",
    source=f"{_ALABDULMOHSIN}, M1 (their c is ours with its sign turned)",
    parameters={"a": _positive, "c": _exponent},
    linear=("a",),
    unit=_UNIT,
)
m2 = law(
    _m2,
    name="m2",
    equation="y = a · x^(-c) + e",
    source=f"{_ALABDULMOHSIN}, M2 (their c is ours with its sign turned)",
    parameters={"a": _positive, "c": _exponent, "e": _offset},
    linear=("a", "e"),
    unit=_UNIT,
)
m3 = law(
    _m3,
    name="m3",
    equation="y = e · (1 + 1 / (d · x))^c",
    source=f"{_ALABDULMOHSIN}, M3: y = a · (1 / x + d)^c with a = e / d^c",
    parameters={"e": _positive, "c": Parameter(1e-6, 20.0, log=True), "d": Parameter(1e-40, 1e40, log=True)},
    linear=("e",),
    starts=_m3_starts,
    unit=_UNIT,
    validated="20 language curves of Alabdulmohsin et al.: extrapolation RMSE below their best mean",
)
# With s = (y - e) / span the published equation is s / (1 - s)^α = (a / span) · x^(-c), which has no units. Far out
# y = e + a x^(-c), as in M2, and that is what data know best.
m4 = law(
    _m4,
    name="m4",
    equation="(y - e) / (e0 - y)^α = β · x^(-c), e0 = e + span, β = a / span^α",
    source=f"{_ALABDULMOHSIN}, M4 (their c is ours with its sign turned)",
    parameters={
        "e": _offset,
        "span": _scale,
        "alpha": Parameter(0.01, 20.0, log=True),
        "a": _scale,
        "c": Parameter(0.0, 5.0),
    },
    starts=_m4_starts,
    unit=_UNIT,
    validated="5 language-model curves of Alabdulmohsin et al.: extrapolation RMSE below 0.0009, as published",
)
broken1 = broken(1)
broken2 = broken(2)
