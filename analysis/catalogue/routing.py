"""Laws of routed models (mixtures of experts): Clark et al., Ludziejewski et al."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.catalogue.starting import grid, scales
from analysis.forms import Parameter, law


def _saturating(experts: Any, E_start: Any, E_max: Any) -> Any:
    """Ê: E_start for one expert, then about as many as there are, E_max at most (eq. 4 of arXiv 2202.01169)."""
    return 1 / (1 / (experts - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max)


def _clark(params_active: Any, experts: Any, *, a: Any, b: Any, c: Any, d: Any, E_start: Any, E_max: Any) -> Any:
    """Loss in nats per token of a routed model, all trained on one number of tokens.

    log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d, N the parameters that one token sees (those of the dense
    model of that size), Ê the experts after saturation: 1/Ê = 1/(E − 1 + 1/(1/E_start − 1/E_max)) + 1/E_max. Dense
    models are those with one expert. E_max is weakly identified.
    """
    size, routed = jnp.log10(params_active), jnp.log10(_saturating(experts, E_start, E_max))
    return 10 ** (a * size + b * routed + c * size * routed + d)


def _clark_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """Given both ends of Ê the logarithm of the law is linear in the other four: least squares."""
    E_start, E_max = grid(tuple(np.geomspace(0.5, 16, 11)), tuple(np.geomspace(20, 2e4, 13)))
    size = np.log10(inputs["params_active"])
    routed = np.log10(_saturating(inputs["experts"], E_start[:, None], E_max[:, None]))
    columns = [size + 0 * routed, routed, size * routed, 1 + 0 * routed]
    coefficients = np.linalg.pinv(np.stack(columns, axis=-1), rcond=1e-13) @ np.log10(loss)
    return dict(zip("abcd", coefficients.T, strict=True)) | {"E_start": E_start, "E_max": E_max}


def _joint(
    params_active: Any,
    tokens: Any,
    experts: Any,
    *,
    a: Any,
    b: Any,
    c: Any,
    alpha: Any,
    beta: Any,
    gamma: Any,
    delta: Any,
    omega: Any,
    zeta: Any,
    E_start: Any,
    E_max: Any,
) -> Any:
    """Loss in nats per token of N active parameters, D tokens and E experts; dense models have one expert.

    L = a Ê^δ N^(−α + γ ln Ê) + b Ê^ω D^(−β + ζ ln Ê) + c, Ê as in Clark's law. α and β are positive here: the paper
    writes their negatives. Not validated on measurements.
    """
    routed = jnp.log(_saturating(experts, E_start, E_max))
    size, data = jnp.log(params_active), jnp.log(tokens)
    return (
        a * jnp.exp(delta * routed - (alpha - gamma * routed) * size)
        + b * jnp.exp(omega * routed - (beta - zeta * routed) * data)
        + c
    )


def _joint_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """The effect of experts on either term is nothing or a power of Ê; the scales are solved for."""
    exponents = (0.1, 0.2, 0.35, 0.55, 0.8)
    alpha, beta, delta, omega, E_start, E_max = grid(
        exponents, exponents, (-0.4, -0.2, 0.0), (-0.2, 0.0, 0.2), (1.0, 2.5), (60.0, 500.0)
    )
    none = np.zeros_like(alpha)
    shape = {"alpha": alpha, "beta": beta, "delta": delta, "omega": omega, "E_start": E_start, "E_max": E_max}
    shape |= {"gamma": none, "zeta": none}
    routed = np.log(_saturating(inputs["experts"], E_start[:, None], E_max[:, None]))
    first = np.exp(delta[:, None] * routed - alpha[:, None] * np.log(inputs["params_active"]))
    second = np.exp(omega[:, None] * routed - beta[:, None] * np.log(inputs["tokens"]))
    factors, usable = scales(np.stack([first, second, np.ones_like(first)], axis=-1), loss)
    return {name: values[usable] for name, values in shape.items()} | dict(zip("abc", factors[usable].T, strict=True))


def _one_length(
    params_active: Any, experts: Any, *, a: Any, c: Any, alpha: Any, gamma: Any, delta: Any, E_start: Any, E_max: Any
) -> Any:
    """Loss in nats per token, all models trained on one number of tokens: the joint law with its last terms constant.

    L = a Ê^δ N^(−α + γ ln Ê) + c. With c = 0 it is Clark's law. Not validated on measurements.
    """
    routed = jnp.log(_saturating(experts, E_start, E_max))
    return a * jnp.exp(delta * routed - (alpha - gamma * routed) * jnp.log(params_active)) + c


def _one_length_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """As for the joint law, with both ends of Ê on a finer grid."""
    alpha, delta, E_start, E_max = grid(
        (0.05, 0.1, 0.2, 0.35, 0.55), (-0.5, -0.3, -0.15, -0.05), (1.0, 2.0, 4.0), (60.0, 250.0, 1000.0)
    )
    routed = np.log(_saturating(inputs["experts"], E_start[:, None], E_max[:, None]))
    first = np.exp(delta[:, None] * routed - alpha[:, None] * np.log(inputs["params_active"]))
    factors, usable = scales(np.stack([first, np.ones_like(first)], axis=-1), loss)
    shape = {"alpha": alpha, "delta": delta, "E_start": E_start, "E_max": E_max, "gamma": np.zeros_like(alpha)}
    return {name: values[usable] for name, values in shape.items()} | dict(zip("ac", factors[usable].T, strict=True))


_any = Parameter(-10.0, 10.0)
_positive = Parameter(0.0, log=True)
_exponent = Parameter(0.0, 3.0)
_ends = {"E_start": Parameter(0.1, 20.0, log=True), "E_max": Parameter(20.0, 1e6, log=True)}
_JOINT = "Ludziejewski et al. 2025, arXiv 2502.05172"

clark = law(
    _clark,
    name="clark",
    equation="log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d, 1/Ê = 1/(E−1+1/(1/E_start−1/E_max)) + 1/E_max",
    source="Clark et al. 2022, arXiv 2202.01169, eq. 1",
    parameters={"a": _any, "b": _any, "c": _any, "d": _any, **_ends},
    starts=_clark_starts,
    validated="clark2022_routing: a and c of the three routers as published",
)
ludziejewski = law(
    _joint,
    name="ludziejewski",
    equation="L = a Ê^δ N^(−α + γ ln Ê) + b Ê^ω D^(−β + ζ ln Ê) + c, Ê as in clark",
    source=f"{_JOINT}, the joint law",
    parameters={
        "a": _positive,
        "b": _positive,
        "c": Parameter(0.0),
        "alpha": _exponent,
        "beta": _exponent,
        "gamma": Parameter(-1.0, 1.0),
        "delta": Parameter(-5.0, 5.0),
        "omega": Parameter(-5.0, 5.0),
        "zeta": Parameter(-1.0, 1.0),
        **_ends,
    },
    starts=_joint_starts,
)
ludziejewski_one_length = law(
    _one_length,
    name="ludziejewski_one_length",
    equation="L = a Ê^δ N^(−α + γ ln Ê) + c, Ê as in clark",
    source=f"{_JOINT}, the joint law at one number of tokens",
    parameters={
        "a": _positive,
        "c": Parameter(0.0),
        "alpha": _exponent,
        "gamma": Parameter(-1.0, 1.0),
        "delta": Parameter(-5.0, 5.0),
        **_ends,
    },
    starts=_one_length_starts,
)
