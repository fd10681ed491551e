"""Laws of numerical precision: Kumar et al."""

from typing import Any

import jax.numpy as jnp

from analysis.forms import Parameter, law


def _weights(
    params: Any, tokens: Any, weight_bits: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any, gamma_w: Any
) -> Any:
    """Loss in nats per token of N parameters whose weights were trained in `weight_bits` bits each, after D tokens.

    L = E + A / N_eff^α + B / D^β with N_eff = N (1 − exp(−P_w / γ_w)). Not validated on measurements.
    """
    effective = -params * jnp.expm1(-weight_bits / gamma_w)
    return E + A / effective**alpha + B / tokens**beta


def _all_parts(
    params: Any,
    tokens: Any,
    weight_bits: Any,
    activation_bits: Any,
    cache_bits: Any,
    *,
    E: Any,
    A: Any,
    B: Any,
    alpha: Any,
    beta: Any,
    gamma_w: Any,
    gamma_a: Any,
    gamma_kv: Any,
) -> Any:
    """Loss in nats per token where weights, activations and the key-value cache each have bits of their own.

    L = E + A / N_eff^α + B / D^β, N_eff = N (1 − exp(−P_w / γ_w)) (1 − exp(−P_a / γ_a)) (1 − exp(−P_kv / γ_kv)).
    Not validated on measurements.
    """
    effective = -params * jnp.expm1(-weight_bits / gamma_w)
    effective *= jnp.expm1(-activation_bits / gamma_a) * jnp.expm1(-cache_bits / gamma_kv)
    return E + A / effective**alpha + B / tokens**beta


def _after_training(
    params: Any, tokens: Any, weight_bits: Any, *, C_T: Any, gamma_D: Any, gamma_N: Any, gamma_post: Any
) -> Any:
    """Loss added, in nats per token, by rounding the weights to `weight_bits` bits after training.

    δ = C_T (D^γ_D / N^γ_N) exp(−P_post / γ_post): it grows with the tokens seen. Not validated on measurements.
    """
    return C_T * tokens**gamma_D / params**gamma_N * jnp.exp(-weight_bits / gamma_post)


_KUMAR = "Kumar et al. 2024, arXiv 2411.04330"
_positive = Parameter(0.0, log=True)
_exponent = Parameter(0.0, 3.0, start=(0.05, 0.12, 0.2, 0.3, 0.42, 0.58, 0.8, 1.1))
_few = Parameter(0.0, 3.0, start=(0.15, 0.3, 0.5, 0.8))
_bits = Parameter(0.05, 100.0, log=True, start=(0.5, 1.0, 2.0, 4.0))
_VARIES = ("precision",)

kumar_weights = law(
    _weights,
    name="kumar_weights",
    equation="L = E + A / N_eff^α + B / D^β, N_eff = N (1 − exp(−P_w / γ_w))",
    source=f"{_KUMAR}, section 4.1",
    parameters={
        "E": Parameter(0.0),
        "A": _positive,
        "B": _positive,
        "alpha": _exponent,
        "beta": _exponent,
        "gamma_w": _bits,
    },
    linear=("E", "A", "B"),
    varies=_VARIES,
)
kumar = law(
    _all_parts,
    name="kumar",
    equation="L = E + A / N_eff^α + B / D^β, N_eff = N Π_i (1 − exp(−P_i / γ_i)), i = w, a, kv",
    source=f"{_KUMAR}, section 4",
    parameters={
        "E": Parameter(0.0),
        "A": _positive,
        "B": _positive,
        "alpha": _few,
        "beta": _few,
        "gamma_w": _bits,
        "gamma_a": _bits,
        "gamma_kv": _bits,
    },
    linear=("E", "A", "B"),
    varies=_VARIES,
)
kumar_after_training = law(
    _after_training,
    name="kumar_after_training",
    equation="δ = C_T (D^γ_D / N^γ_N) exp(−P_post / γ_post)",
    source=f"{_KUMAR}, section 3",
    parameters={"C_T": _positive, "gamma_D": _exponent, "gamma_N": _exponent, "gamma_post": _bits},
    linear=("C_T",),
    varies=_VARIES,
    unit="nats per token of added loss",
)
