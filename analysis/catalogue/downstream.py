"""Laws of over-training, and of task error and accuracy as functions of a loss: Gadre et al., Bhagia et al."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.catalogue.starting import grid
from analysis.forms import EXPONENTS, Parameter, law


def _over_training(flops: Any, tokens_per_parameter: Any, *, E: Any, a: Any, b: Any, eta: Any) -> Any:
    """Loss in nats per token after C FLOPs at M tokens a parameter.

    L = E + (a M^η + b M^−η) C^−η: Hoffmann's law with α = β = 2η and C = 6ND, where a = A 6^η and b = B 6^η.
    """
    return E + (a * tokens_per_parameter**eta + b * tokens_per_parameter**-eta) * flops**-eta


def _error(validation_loss: Any, *, epsilon: Any, k: Any, gamma: Any) -> Any:
    """Top-1 error (0 to 1), averaged over tasks, of a model with that validation loss in nats per token.

    Err = ε − k exp(−γ L), ε the error of guessing.
    """
    return epsilon - k * jnp.exp(-gamma * validation_loss)


def _accuracy(task_loss: Any, *, a: Any, b: Any, k: Any, L_0: Any) -> Any:
    """Accuracy on one task (0 to 1) of a model with that loss on the task's right answers.

    Acc = a / (1 + exp(k (L − L_0))) + b: b that of guessing, a + b that of a perfect model. k is positive here; the
    paper writes its negative. The second of two stages: the first is any law of the task's loss in N and D.
    """
    return a / (1 + jnp.exp(k * (task_loss - L_0))) + b


def _error_starts(inputs: Mapping[str, np.ndarray], error: np.ndarray) -> dict[str, np.ndarray]:
    """Decays from a fortieth of the losses' range to forty ranges; the linear parameters are solved for."""
    return {"gamma": np.geomspace(0.025, 40, 64) / max(np.ptp(inputs["validation_loss"]), 1e-12)}


def _accuracy_starts(inputs: Mapping[str, np.ndarray], accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """The middle from half a range below the losses to half above, the width from a thirtieth of it to two of it."""
    loss = inputs["task_loss"]
    reach = max(np.ptp(loss), 1e-12)
    middle, width = grid(tuple(np.linspace(-0.5, 1.5, 17)), tuple(np.geomspace(0.03, 2.0, 12)))
    return {"L_0": loss.min() + reach * middle, "k": 1 / (reach * width)}


_share = Parameter(0.0, 1.0)
_GADRE = "Gadre et al. 2024, arXiv 2403.08540"

gadre = law(
    _over_training,
    name="gadre",
    equation="L = E + (a M^η + b M^(-η)) C^(-η)",
    source=f"{_GADRE}, eq. 4",
    parameters={
        "E": Parameter(0.0),
        "a": Parameter(0.0, log=True),
        "b": Parameter(0.0, log=True),
        "eta": Parameter(0.0, 1.5, start=EXPONENTS),
    },
    linear=("E", "a", "b"),
    validated="besiroglu2024: equals the law of Hoffmann with one exponent on its 240 rows",
)
gadre_error = law(
    _error,
    name="gadre_error",
    equation="Err = ε − k exp(−γ L)",
    source=f"{_GADRE}, eq. 5",
    parameters={"epsilon": _share, "k": Parameter(0.0), "gamma": Parameter(1e-6, 1e3, log=True)},
    linear=("epsilon", "k"),
    starts=_error_starts,
    scale="linear",
    unit="top-1 error, 0 to 1",
    validated="brandfonbrener2024: R² 0.99 of the mean error on 89 runs; no constants of it are published",
)
bhagia_accuracy = law(
    _accuracy,
    name="bhagia_accuracy",
    equation="Acc = a / (1 + exp(k (L − L_0))) + b",
    source="Bhagia et al. 2024, arXiv 2412.04403, section 3.2",
    parameters={"a": _share, "b": _share, "k": Parameter(1e-6, 1e4, log=True), "L_0": Parameter(-100.0, 100.0)},
    linear=("a", "b"),
    starts=_accuracy_starts,
    scale="linear",
    unit="accuracy, 0 to 1",
    validated="brandfonbrener2024: R² 0.98 of the mean accuracy on 89 runs; no constants of it are published",
)
