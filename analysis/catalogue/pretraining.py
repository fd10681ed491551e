"""Laws of pretraining loss in parameters, tokens and compute: power laws, Kaplan et al., Hoffmann et al., Farseer.

N is a count of parameters (`params`), D of training tokens (`tokens`), C of FLOPs; losses are nats per token.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from analysis.catalogue.starting import grid, scales
from analysis.forms import EXPONENTS, Parameter, Powers, Starts, law


def _power(x: Any, *, a: Any, b: Any) -> Any:
    return a * x**-b


def _power_offset(x: Any, *, E: Any, A: Any, alpha: Any) -> Any:
    return E + A / x**alpha


def _hoffmann(params: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    return E + A / params**alpha + B / tokens**beta


def _shared(params: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any) -> Any:
    """L = E + A / N^α + B / D^α: N and D of a compute-optimal run are in one ratio at any C.

    Not validated on measurements.
    """
    return E + A / params**alpha + B / tokens**alpha


def _interaction(params: Any, tokens: Any, *, E: Any, A: Any, B: Any, H: Any, alpha: Any, beta: Any) -> Any:
    """L = E + A / N^α + B / D^β + H / (N^α D^β): the first term that Hoffmann's sum leaves out. H may be negative.

    No paper states it: it is here to test the sum against.
    """
    size, data = params**-alpha, tokens**-beta
    return E + A * size + B * data + H * size * data


def _kaplan_offset(params: Any, tokens: Any, *, E: Any, N_c: Any, D_c: Any, alpha: Any, beta: Any) -> Any:
    """L = E + ((N_c / N)^(α / β) + D_c / D)^β: Kaplan's law and an irreducible loss; it is not a sum of N and D."""
    return E + ((N_c / params) ** (alpha / beta) + D_c / tokens) ** beta


def stretched(size: Any, u: Any, s: Any, p: Any) -> Any:
    """u + s ((N/10⁹)^p − 1)/p: u the value and s the slope in log N at N = 10⁹, p the bend; straight in log N at 0.

    The barriers keep XLA from computing logarithm and exponential anew in each of 81 second derivatives: the compiled
    derivatives of the law are ten times as fast with them, and compile in half the time.
    """
    log_size = lax.optimization_barrier(jnp.log(size / 1e9))
    z = lax.optimization_barrier(p * log_size)
    small = jnp.abs(z) < 1e-2
    away = jnp.where(small, 1.0, z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6))))
    return u + s * log_size * lax.optimization_barrier(jnp.where(small, series, jnp.expm1(away) / away))


def _farseer(
    params: Any, tokens: Any, *, u1: Any, s1: Any, p1: Any, u2: Any, s2: Any, p2: Any, u3: Any, s3: Any, p3: Any
) -> Any:
    """L = exp(f3(N)) + exp(f2(N)) D^(−exp(f1(N))): floor, scale and exponent of L(D) all change with N.

    The paper writes each f as a N^p + b, with p = α, β, γ and a, b that grow without bound as p nears 0. The same
    family is written here by u = a 10^9p + b, s = a p 10^9p: f = u + s ((N/10⁹)^p − 1)/p, which stays sane there.
    The authors' losses are bits per character.
    """
    exponent = jnp.exp(stretched(params, u1, s1, p1))
    return jnp.exp(stretched(params, u3, s3, p3)) + jnp.exp(stretched(params, u2, s2, p2) - exponent * jnp.log(tokens))


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
    alpha_N, alpha_D, share = grid(EXPONENTS, EXPONENTS, (0.05, 0.25, 0.5, 0.75, 0.95))
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


def _offset_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """As for Kaplan's law, of what is left above an irreducible loss below the least loss; the exponents are larger."""
    exponents = tuple(np.geomspace(0.08, 1.2, 12).tolist())
    alpha, beta, share, part = grid(exponents, exponents, (0.2, 0.5, 0.8), (0.4, 0.6, 0.75, 0.85, 0.93))
    E = part * loss.min()
    total = np.log(_middle(loss) - E) / beta
    log_N = np.log(_middle(inputs["params"])) + (total + np.log(share)) * beta / alpha
    log_D = np.log(_middle(inputs["tokens"])) + total + np.log1p(-share)
    return {"E": E, "N_c": np.exp(log_N), "D_c": np.exp(log_D), "alpha": alpha, "beta": beta}


def _farseer_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """Each function of N straight in log N through its values at the smallest and the largest N.

    The exponent of D there, the ratio of both floors, and the ratio of both second terms at the middle D are on grids;
    the scales of the two terms are solved for.
    """
    low, high = np.log(inputs["params"].min() / 1e9), np.log(inputs["params"].max() / 1e9)
    middle = np.log(_middle(inputs["tokens"]))
    first, last, fall, drop = grid((0.24, 0.4, 0.6, 0.8), (0.2, 0.33, 0.5, 0.7), (-0.8, -0.3, -0.1), (-1.5, -0.6, -0.1))
    starts = {"p1": 0 * fall, "p2": 0 * fall, "p3": 0 * fall}
    ends = (np.log(first), np.log(last)), (first * middle, last * middle + drop), (0 * fall, fall)
    for i, (start, end) in enumerate(ends, 1):
        starts[f"s{i}"] = (end - start) / max(high - low, 1e-12)
        starts[f"u{i}"] = start - starts[f"s{i}"] * low
    wide = {name: values[:, None] for name, values in starts.items()}
    floor = np.exp(wide["u3"] + wide["s3"] * np.log(inputs["params"] / 1e9))
    factors, usable = scales(np.stack([floor, np.asarray(_farseer(**inputs, **wide)) - floor], axis=-1), loss)
    starts = {name: values[usable] for name, values in starts.items()}
    return {**starts, "u3": starts["u3"] + np.log(factors[usable, 0]), "u2": starts["u2"] + np.log(factors[usable, 1])}


def _single_starts(scale: str, exponent: str) -> Starts:
    def starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
        (x,) = inputs.values()
        alpha = np.array(EXPONENTS)
        return {scale: np.exp(np.log(_middle(x)) + np.log(_middle(loss)) / alpha), exponent: alpha}

    return starts


def _sum(params: Mapping[str, Any]) -> Powers:
    beta = params.get("beta", params["alpha"])
    return Powers(params["E"], np.log(params["A"]), np.log(params["B"]), params["alpha"], beta, np.ones_like(beta))


def _power_of_sum(E: Any, N_c: Any, D_c: Any, alpha: Any, beta: Any) -> Powers:
    """E + ((N_c/N)^(α/β) + D_c/D)^β."""
    ratio = np.asarray(alpha / beta)
    return Powers(E, ratio * np.log(N_c), np.log(D_c), ratio, np.ones_like(ratio), beta)


_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
_positive = Parameter(0.0, log=True)
_offset = Parameter(0.0)
_exponent = Parameter(0.0, 3.0, start=EXPONENTS)
_stretch = {"u": Parameter(-200.0, 200.0), "s": Parameter(-20.0, 20.0), "p": Parameter(-2.0, 2.0)}

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
    validated="besiroglu2024: the least objective known on its 240 rows; brandfonbrener2024: published constants",
    powers=_sum,
)
hoffmann_shared = law(
    _shared,
    name="hoffmann_shared",
    equation="L = E + A / N^α + B / D^α",
    source="Hoffmann et al. 2022, arXiv 2203.15556, with α = β as in Muennighoff et al. 2023, arXiv 2305.16264",
    parameters={"E": _offset, "A": _positive, "B": _positive, "alpha": _exponent},
    linear=("E", "A", "B"),
    powers=_sum,
)
hoffmann_interaction = law(
    _interaction,
    name="hoffmann_interaction",
    equation="L = E + A / N^α + B / D^β + H / (N^α D^β)",
    source="Hoffmann et al. 2022, arXiv 2203.15556, and the product of its two terms (no paper)",
    validated="scalebench's Farseer table: 2.5 times less than Hoffmann's objective; no constants of it are published",
    parameters={
        "E": _offset,
        "A": _positive,
        "B": _positive,
        "H": Parameter(-np.inf),
        "alpha": _exponent,
        "beta": _exponent,
    },
    linear=("E", "A", "B", "H"),
)
farseer = law(
    _farseer,
    name="farseer",
    equation="L = exp(f3(N)) + exp(f2(N)) D^(−exp(f1(N))), f_i(N) = u_i + s_i ((N / 10⁹)^p_i − 1) / p_i",
    source="Li et al. 2025, arXiv 2506.10972 (Predictable Scale, part II: Farseer)",
    parameters={f"{name}{i}": bound for i in (1, 2, 3) for name, bound in _stretch.items()},
    starts=_farseer_starts,
    validated="scalebench's Farseer table: half the objective of the published constants",
)
kaplan_offset = law(
    _kaplan_offset,
    name="kaplan_offset",
    equation="L = E + ((N_c / N)^(α / β) + D_c / D)^β",
    source="Brandfonbrener et al. 2024, arXiv 2411.12925, eq. 3",
    parameters={"E": _offset, "N_c": _positive, "D_c": _positive, "alpha": _exponent, "beta": _exponent},
    starts=_offset_starts,
    validated="brandfonbrener2024: published constants of two sets",
    powers=lambda p: _power_of_sum(p["E"], p["N_c"], p["D_c"], p["alpha"], p["beta"]),
)
kaplan = law(
    _kaplan,
    name="kaplan",
    equation="L = ((N_c / N)^(α_N / α_D) + D_c / D)^α_D",
    source=f"{_KAPLAN}, eq. 1.5",
    parameters={"N_c": _positive, "D_c": _positive, "alpha_N": _exponent, "alpha_D": _exponent},
    starts=_kaplan_starts,
    powers=lambda p: _power_of_sum(0.0 * p["N_c"], p["N_c"], p["D_c"], p["alpha_N"], p["alpha_D"]),
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
