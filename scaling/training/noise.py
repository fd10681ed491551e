"""The gradient noise scale: how large a batch must be before more of it only averages noise away. No JAX here.

McCandlish et al. 1812.06162: with G the gradient of the whole distribution and Σ the covariance of the gradient of
one example, B_simple = tr Σ / |G|² (eq. 2.9) is the batch at which noise and signal weigh the same. Its two parts are
estimated without bias from squared norms of gradients at two batch sizes (appendix A.1), and averaged over steps
before they are divided: a mean of ratios would be biased, and has no mean where |G|² is small.

An example is a sequence here, since its tokens are correlated; the scale is in tokens, sequences times context. It is
that of the gradient as backpropagation gives it, before clipping and before the optimizer's rescaling.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float


def moments(small_squared: Any, big_squared: Any, small: int, big: int) -> tuple[Any, Any]:
    """Unbiased estimates of |G|² and tr Σ from squared norms of gradients (means over `small` and `big` sequences).

    E|G_B|² = |G|² + tr Σ / B for each batch size B: these two equations solved (McCandlish et al., appendix A.1).
    `small_squared` may be a mean over several small batches. Either estimate may be negative. Arrays or numbers.
    """
    squared = (big * big_squared - small * small_squared) / (big - small)
    variance = (small_squared - big_squared) / (1 / small - 1 / big)
    return squared, variance


@dataclasses.dataclass(frozen=True)
class Scale:
    """B_simple in tokens with its standard error; None where the estimate of |G|² is not positive."""

    noise_scale_tokens: float | None
    noise_scale_tokens_se: float | None
    noise_scale_steps: int


def scale(squared: Float[np.ndarray, "steps"], variance: Float[np.ndarray, "steps"], context: int) -> Scale:
    """The noise scale over steps whose `moments` are given: the ratio of their means.

    The standard error is that of a ratio of means by linearisation (Cochran, Sampling Techniques, chapter 6), steps
    taken as independent; what drifts within the steps counts as noise.
    """
    steps = len(squared)
    total = float(np.sum(squared, dtype=np.float64))
    if not total > 0:
        return Scale(None, None, steps)
    ratio = float(np.sum(variance, dtype=np.float64)) / total
    rest = np.asarray(variance, np.float64) - ratio * np.asarray(squared, np.float64)
    error = math.sqrt(float(rest @ rest) * steps / (steps - 1)) / total * context if steps > 1 else None
    return Scale(ratio * context, error, steps)
