"""Transfer from pre-training: what it is worth in data of the target distribution (Hernandez et al.).

N is parameters without embeddings; D_F, the fine-tuning data, and D_T, the effective data transferred, are in one
unit (characters in the paper; any will do, k takes it up).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.forms import EXPONENTS, Parameter, law


def _transferred(params: Any, finetune: Any, *, k: Any, alpha: Any, beta: Any) -> Any:
    return k * finetune**alpha * params**beta


def _transfer(
    params: Any,
    finetune: Any,
    pretrained: Any,
    *,
    N_c: Any,
    D_c: Any,
    alpha_N: Any,
    alpha_D: Any,
    k: Any,
    alpha: Any,
    beta: Any,
) -> Any:
    effective = finetune + pretrained * k * finetune**alpha * params**beta
    by_size, by_data = alpha_N / alpha_D * (jnp.log(N_c) - jnp.log(params)), jnp.log(D_c) - jnp.log(effective)
    return jnp.exp(alpha_D * jnp.logaddexp(by_size, by_data))  # the powers themselves overflow where α_D is small


def _transfer_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """At the middle of the data L^(1/α_D) is the sum of both terms; transfer is worth a multiple of the data there."""
    low = EXPONENTS[4:18:3]
    grids = np.meshgrid(low, low, (0.1, 0.5, 0.9), (1.0, 30.0), (0.1, 0.4), (0.1, 0.4, 0.8), indexing="ij")
    alpha_N, alpha_D, share, worth, alpha, beta = (grid.ravel() for grid in grids)
    middle = {name: np.mean(np.log(inputs[name])) for name in ("params", "finetune")}
    total = np.mean(np.log(loss)) / alpha_D
    log_N = middle["params"] + (total + np.log(share)) * alpha_D / alpha_N
    log_D = middle["finetune"] + total + np.log1p(-share) + np.log1p(worth) / 2
    sane = (np.abs(log_N) < 600) & (np.abs(log_D) < 600)
    starts = {
        "N_c": np.exp(np.clip(log_N, -600, 600)),
        "D_c": np.exp(np.clip(log_D, -600, 600)),
        "alpha_N": alpha_N,
        "alpha_D": alpha_D,
        "k": worth * np.exp((1 - alpha) * middle["finetune"] - beta * middle["params"]),
        "alpha": alpha,
        "beta": beta,
    }
    return {name: values[sane] for name, values in starts.items()}


_HERNANDEZ = "Hernandez et al. 2021, arXiv 2102.01293"
_positive = Parameter(0.0, log=True)
_scale = Parameter(1e-150, 1e150, log=True)  # whose square is still a float64: second derivatives need it
_exponent = Parameter(0.0, 3.0)

transferred = law(
    _transferred,
    name="transferred",
    equation="D_T = k · D_F^α · N^β",
    source=f"{_HERNANDEZ}, eq. 1.1 (text to Python: k 1.9e4, α 0.18, β 0.38)",
    parameters={
        "k": _positive,
        "alpha": Parameter(-3.0, 3.0, start=tuple(np.linspace(-0.5, 1.5, 9).tolist())),
        "beta": Parameter(-3.0, 3.0, start=tuple(np.linspace(-0.5, 1.5, 9).tolist())),
    },
    linear=("k",),
    unit="that of the fine-tuning data",
)
# `pretrained` is 1 for a run that starts from a pre-trained model and 0 for one from scratch: D_T is defined by both
transfer = law(
    _transfer,
    name="transfer",
    equation="L = ((N_c / N)^(α_N/α_D) + D_c / D_E)^α_D, D_E = D_F + p · k · D_F^α · N^β (p 1 if pre-trained, else 0)",
    source=f"{_HERNANDEZ}, eq. 1.1 in L(N, D) of Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, at D_E = D_F + D_T",
    parameters={
        "N_c": _scale,
        "D_c": _scale,
        "alpha_N": _exponent,
        "alpha_D": Parameter(1e-3, 3.0),
        "k": _positive,
        "alpha": _exponent,
        "beta": _exponent,
    },
    starts=_transfer_starts,
    real=("pretrained",),
)
