"""Laws of pretraining loss in parameters, tokens and compute: power laws, Kaplan et al., Hoffmann et al."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.forms import EXPONENTS, Parameter, Starts, law


def _power(x: Any, *, a: Any, b: Any) -> Any:
    return a * x**-b


def _power_offset(x: Any, *, E: Any, A: Any, alpha: Any) -> Any:
    return E + A / x**alpha


def _hoffmann(params: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    return E + A / params**alpha + B / tokens**beta


def _kaplan(params: Any, tokens: Any, *, N_c: Any, D_c: Any, alpha_N: Any, alpha_D: Any) -> Any:
    return ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D


def _kaplan_n(params: Any, *, N_c: Any, alpha_N: Any) -> Any:
    return (N_c / params) ** alpha_N


def _kaplan_d(tokens: Any, *, D_c: Any, alpha_D: Any) -> Any:
    return (D_c / tokens) ** alpha_D


def _kaplan_c(flops: Any, *, C_c: Any, alpha_C: Any) -> Any:
    return (C_c / flops) ** alpha_C


def _middle(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _kaplan_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """At the middle of the data L^(1/α_D) is the sum of both terms; give the first a share of it."""
    alpha_N, alpha_D, share = (
        grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, (0.05, 0.25, 0.5, 0.75, 0.95), indexing="ij")
    )
    total = np.log(_middle(loss)) / alpha_D
    log_N = np.log(_middle(inputs["params"])) + (total + np.log(share)) * alpha_D / alpha_N
    log_D = np.log(_middle(inputs["tokens"])) + total + np.log1p(-share)
    sane = (np.abs(log_N) < 600) & (np.abs(log_D) < 600)
    return {
        "N_c": np.exp(log_N[sane]),
        "D_c": np.exp(log_D[sane]),
        "alpha_N": alpha_N[sane],
        "alpha_D": alpha_D[sane],
    }


def _single_starts(scale: str, exponent: str) -> Starts:
    def starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
        (x,) = inputs.values()
        alpha = np.array(EXPONENTS)
        return {scale: np.exp(np.log(_middle(x)) + np.log(_middle(loss)) / alpha), exponent: alpha}

    return starts


_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
_positive = Parameter(0.0, log=True)
_offset = Parameter(0.0)
_exponent = Parameter(0.0, 3.0, start=EXPONENTS)

power = law(
    _power,
    name="power",
    equation="y = a · x^(-b)",
    source="power law",
    parameters={"a": _positive, "b": Parameter(-3.0, 3.0, start=tuple(np.linspace(-2.0, 2.0, 41).tolist()))},
    linear=("a",),
)
power_offset = law(
    _power_offset,
    name="power_offset",
    equation="L = E + A / x^α",
    source="power law with an irreducible loss (Henighan et al. 2020, arXiv 2010.14701, eq. 1.1)",
    parameters={"E": _offset, "A": _positive, "alpha": _exponent},
    linear=("E", "A"),
)
hoffmann = law(
    _hoffmann,
    name="hoffmann",
    equation="L = E + A / N^α + B / D^β",
    source="Hoffmann et al. 2022, arXiv 2203.15556, section 3.3",
    parameters={"E": _offset, "A": _positive, "B": _positive, "alpha": _exponent, "beta": _exponent},
    linear=("E", "A", "B"),
)
kaplan = law(
    _kaplan,
    name="kaplan",
    equation="L = ((N_c / N)^(α_N / α_D) + D_c / D)^α_D",
    source=f"{_KAPLAN}, eq. 1.5",
    parameters={"N_c": _positive, "D_c": _positive, "alpha_N": _exponent, "alpha_D": _exponent},
    starts=_kaplan_starts,
)
kaplan_n = law(
    _kaplan_n,
    name="kaplan_n",
    equation="L = (N_c / N)^α_N",
    source=f"{_KAPLAN}, eq. 1.1",
    parameters={"N_c": _positive, "alpha_N": _exponent},
    starts=_single_starts("N_c", "alpha_N"),
)
kaplan_d = law(
    _kaplan_d,
    name="kaplan_d",
    equation="L = (D_c / D)^α_D",
    source=f"{_KAPLAN}, eq. 1.2",
    parameters={"D_c": _positive, "alpha_D": _exponent},
    starts=_single_starts("D_c", "alpha_D"),
)
kaplan_c = law(
    _kaplan_c,
    name="kaplan_c",
    equation="L = (C_c / C)^α_C",
    source=f"{_KAPLAN}, eq. 1.3",
    parameters={"C_c": _positive, "alpha_C": _exponent},
    starts=_single_starts("C_c", "alpha_C"),
)
