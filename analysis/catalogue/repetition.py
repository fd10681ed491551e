"""The law of repeated data and of excess parameters: Muennighoff et al."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.catalogue.starting import grid, scales
from analysis.forms import Parameter, law


def _worth(seen: Any, base: Any, half: Any) -> Any:
    """What `seen` is worth where only `base` of it is fresh: base · (1 + R* (1 − exp(−R / R*))), R = seen/base − 1.

    Section 3.1 of arXiv 2305.16264; R* is the number of repetitions after which a further one is worth 1/e of fresh.
    """
    return base * (1 - half * jnp.expm1(-(seen / base - 1) / half))


def _effective(params: Any, tokens: Any, unique: Any, ratio: Any, alpha: Any, beta: Any, R_D: Any, R_N: Any) -> Any:
    """N′ and D′: `ratio` is G, so that U_N = G · (U G)^(β/α) parameters are optimal for U unique tokens."""
    fresh = jnp.minimum(unique, tokens)
    sufficient = jnp.minimum(params, ratio * (fresh * ratio) ** (beta / alpha))
    return _worth(params, sufficient, R_N), _worth(tokens, fresh, R_D)


def _muennighoff(
    params: Any,
    tokens: Any,
    unique_tokens: Any,
    *,
    E: Any,
    A: Any,
    B: Any,
    alpha: Any,
    beta: Any,
    R_D: Any,
    R_N: Any,
) -> Any:
    """Loss in nats per token of N parameters after D tokens, of which U are different.

    L = E + A / N′^α + B / D′^β with D′ = U + U R*_D (1 − exp(−R_D / R*_D)), R_D = D/U − 1 the repetitions,
    N′ = U_N + U_N R*_N (1 − exp(−R_N / R*_N)), R_N = N/U_N − 1 the excess, U_N = min(N, G (U G)^(β/α)) and
    G = (αA / (βB))^(1/(α+β)). Without repetition and excess it is Hoffmann's law. The two R* are not determined well:
    on the authors' 182 runs the minimum that they print (15.39, 5.31) is one of three, all within 0.14% of each other
    in the objective; the least is at (95.4, 1.71).
    """
    ratio = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    size, data = _effective(params, tokens, unique_tokens, ratio, alpha, beta, R_D, R_N)
    return E + A / size**alpha + B / data**beta


def _starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """A grid of exponents and of both R*; E, A and B are solved for, given G, and G is made of them, five times."""
    exponents = (0.15, 0.25, 0.35, 0.5, 0.8)
    alpha, beta, R_D, R_N = grid(exponents, exponents, (2.0, 6.0, 18.0, 54.0, 160.0), (0.5, 2.0, 6.0, 20.0))
    params, tokens, unique = (inputs[name] for name in ("params", "tokens", "unique_tokens"))
    ratio = np.full(len(alpha), np.exp(np.mean(np.log(params)) - np.mean(np.log(tokens)) * alpha.mean() / beta.mean()))
    for _ in range(5):
        wide = [values[:, None] for values in (ratio, alpha, beta, R_D, R_N)]
        size, data = _effective(params, tokens, unique, *wide)
        terms = np.stack([np.ones_like(size), size ** -alpha[:, None], data ** -beta[:, None]], axis=-1)
        factors, usable = scales(terms, loss)
        sound = np.where(usable[:, None], factors, 1.0)
        ratio = np.where(usable, (alpha * sound[:, 1] / (beta * sound[:, 2])) ** (1 / (alpha + beta)), ratio)
    E, A, B = factors[usable].T
    kept = {"alpha": alpha, "beta": beta, "R_D": R_D, "R_N": R_N}
    return {"E": E, "A": A, "B": B} | {name: values[usable] for name, values in kept.items()}


_positive = Parameter(0.0, log=True)
_exponent = Parameter(0.01, 3.0)

muennighoff = law(
    _muennighoff,
    name="muennighoff",
    equation="L = E + A / N'^α + B / D'^β, D' = U (1 + R*_D (1 − exp(−(D/U − 1) / R*_D))), N' likewise from U_N",
    source="Muennighoff et al. 2023, arXiv 2305.16264, section 3.1 and appendix A",
    parameters={
        "E": Parameter(0.0),
        "A": _positive,
        "B": _positive,
        "alpha": _exponent,
        "beta": _exponent,
        "R_D": Parameter(1e-3, 1e6, log=True),
        "R_N": Parameter(1e-3, 1e6, log=True),
    },
    starts=_starts,
    validated="muennighoff2023_datablations: the published minimum from the published values, and two lower ones",
)
