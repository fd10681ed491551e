"""Laws of what to train with: the best learning rate and batch size, the critical batch size, and loss after S steps.

What is fitted is the optimum of a sweep, one row for each sweep: take the minimum inside the grid, and leave out one
at its edge (it is a bound, not an optimum). Pass the measured column as `loss`:
fit("best_rate", optima, loss="learning_rate"). Batch sizes are in tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.forms import EXPONENTS, Parameter, law


def _best_rate(params: Any, tokens: Any, *, a: Any, b: Any, c: Any) -> Any:
    return a * params**b * tokens**c


def _best_batch(tokens: Any, *, a: Any, b: Any) -> Any:
    return a * tokens**b


def _of_compute(flops: Any, *, a: Any, b: Any) -> Any:
    return a * flops**b


def _critical_batch(reached: Any, *, B_star: Any, alpha_B: Any) -> Any:
    return B_star * reached ** (-1 / alpha_B)


def _kaplan_s(params: Any, steps: Any, *, N_c: Any, S_c: Any, alpha_N: Any, alpha_S: Any) -> Any:
    return (N_c / params) ** alpha_N + (S_c / steps) ** alpha_S


def _kaplan_s_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """At the middle of the data the loss is the sum of both terms; give the first a share of it."""
    grids = np.meshgrid(EXPONENTS[::2], EXPONENTS[::2], (0.1, 0.3, 0.5, 0.7, 0.9), indexing="ij")
    alpha_N, alpha_S, share = (grid.ravel() for grid in grids)
    middle = {name: np.exp(np.mean(np.log(values))) for name, values in {**inputs, "loss": loss}.items()}
    log_N = np.log(middle["params"]) + np.log(share * middle["loss"]) / alpha_N
    log_S = np.log(middle["steps"]) + np.log((1 - share) * middle["loss"]) / alpha_S
    sane = (np.abs(log_N) < 600) & (np.abs(log_S) < 600)
    return {
        "N_c": np.exp(log_N[sane]),
        "S_c": np.exp(log_S[sane]),
        "alpha_N": alpha_N[sane],
        "alpha_S": alpha_S[sane],
    }


_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
_STEPLAW = "StepLaw, Li et al. 2025, arXiv 2503.04715"
_DEEPSEEK = "DeepSeek-AI 2024, arXiv 2401.02954"
_signed = tuple(np.linspace(-1.5, 1.5, 13).tolist())
_positive = Parameter(0.0, log=True)
_scale = Parameter(1e-150, 1e150, log=True)  # whose square is still a float64: second derivatives need it
_slope = Parameter(-4.0, 4.0, start=_signed)
_alpha = Parameter(1e-3, 5.0, start=EXPONENTS)

best_rate = law(
    _best_rate,
    name="best_rate",
    equation="η* = a · N^b · D^c",
    source=f"{_STEPLAW}: 1.79 · N^-0.713 · D^0.307, N without embeddings, peak rate of AdamW with cosine decay",
    parameters={"a": _positive, "b": _slope, "c": _slope},
    linear=("a",),
    unit="learning rate",
    validated="17 sweeps of StepLaw's dense table: 95% intervals of the exponents hold the published ones",
)
best_batch = law(
    _best_batch,
    name="best_batch",
    equation="B* = a · D^b",
    source=f"{_STEPLAW}: 0.58 · D^0.571",
    parameters={"a": _positive, "b": _slope},
    linear=("a",),
    unit="tokens",
    validated="17 sweeps of StepLaw's dense table: 95% intervals of the exponents hold the published ones",
)
best_rate_compute = law(
    _of_compute,
    name="best_rate_compute",
    equation="η* = a · C^b",
    source=f"{_DEEPSEEK}, section 3.1: 0.3118 · C^-0.1250; C = M · D, M = 72 · layers · d² + 12 · layers · d · context",
    parameters={"a": _positive, "b": _slope},
    linear=("a",),
    unit="learning rate",
)
best_batch_compute = law(
    _of_compute,
    name="best_batch_compute",
    equation="B* = a · C^b",
    source=f"{_DEEPSEEK}, section 3.1: 0.2920 · C^0.3271; C as in best_rate_compute",
    parameters={"a": _positive, "b": _slope},
    linear=("a",),
    unit="tokens",
)
critical_batch = law(
    _critical_batch,
    name="critical_batch",
    equation="B_crit = B* · L^(-1 / α_B), L the loss that is reached",
    source=f"{_KAPLAN}, eq. 5.3 (B* 2e8 tokens, α_B 0.21), after McCandlish et al. 2018, arXiv 1812.06162",
    parameters={"B_star": _positive, "alpha_B": _alpha},
    linear=("B_star",),
    unit="tokens",
)
# S_min = S / (1 + B_crit / B), the steps that a batch far above the critical one would have taken (their eq. 5.4)
kaplan_s = law(
    _kaplan_s,
    name="kaplan_s",
    equation="L = (N_c / N)^α_N + (S_c / S_min)^α_S",
    source=f"{_KAPLAN}, eq. 1.6 (α_N 0.077, N_c 6.5e13, α_S 0.76, S_c 2.1e3); S_min = S / (1 + B_crit / B), eq. 5.4",
    parameters={"N_c": _scale, "S_c": _scale, "alpha_N": _alpha, "alpha_S": _alpha},
    starts=_kaplan_s_starts,
)
