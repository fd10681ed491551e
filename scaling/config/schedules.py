"""The learning rate over a run: a warm-up, then a shape.

Schedules are NumPy functions of the step: in JAX, each length of run would compile a dozen programs of its own (0.7 s
on CPU; 0.2 s where they are cached).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from scaling import schema

if TYPE_CHECKING:
    import numpy as np

Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class Warmup(schema.Variant):
    """How long the learning rate rises linearly from zero: a share of the run, or a number of tokens."""

    def steps(self, steps: int, batch_tokens: int) -> int:
        """Warm-up in optimizer steps, for a run of `steps` of `batch_tokens` tokens."""
        raise NotImplementedError


class WarmupFraction(Warmup):
    """A share of the run's steps."""

    kind: Literal["fraction"] = "fraction"
    fraction: Fraction

    def steps(self, steps: int, batch_tokens: int) -> int:
        return round(self.fraction * steps)


class WarmupTokens(Warmup):
    """A number of tokens, whatever the length of the run (Kaplan et al. 2001.08361 held it fixed)."""

    kind: Literal["tokens"] = "tokens"
    tokens: pydantic.NonNegativeInt

    def steps(self, steps: int, batch_tokens: int) -> int:
        return round(self.tokens / batch_tokens)


class Schedule(schema.Variant):
    """The learning rate over a run: a linear warm-up to the peak, then the shape of the subclass."""

    warmup: Warmup

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        """The multiplier after warm-up: a function of steps, from 0 at the peak to `steps` at the end, in float64."""
        raise NotImplementedError

    def warmup_steps(self, steps: int, batch_tokens: int) -> int:
        """Steps of warm-up. Raises ValueError where they leave no step at the peak."""
        warmup = self.warmup.steps(steps, batch_tokens)
        if warmup >= steps:
            raise ValueError(
                f"a warm-up of {warmup} steps does not end within a run of {steps} steps; shorten schedule.warmup or "
                "train on more tokens"
            )
        return warmup

    def branch_step(self, steps: int, batch_tokens: int) -> int:
        """Steps at the start of a run in which the rate does not depend on how long the run is, beyond the warm-up.

        Runs that differ only in length are the same up to there. 0 here: a schedule says more where it can.
        """
        return 0

    def values(self, peak: float, steps: int, batch_tokens: int) -> "np.ndarray":
        """The learning rate of every step, shape (steps,), float32.

        Raises ValueError where the warm-up leaves no step at the peak.
        """
        import numpy as np

        warmup = self.warmup_steps(steps, batch_tokens)
        rise = np.arange(1, warmup + 1) / (warmup + 1)
        after = self.shape(steps - warmup)(np.arange(steps - warmup, dtype=np.float64))
        return (peak * np.concatenate([rise, after])).astype(np.float32)


class Constant(Schedule):
    """The peak until the end."""

    kind: Literal["constant"] = "constant"

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        import numpy as np

        return np.ones_like


class Cosine(Schedule):
    """Half a cosine down to `floor` times the peak, its horizon the run's own length (Hoffmann et al. 2203.15556)."""

    kind: Literal["cosine"] = "cosine"
    floor: Fraction = 0.1

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        import numpy as np

        return lambda step: self.floor + (1.0 - self.floor) * (1.0 + np.cos(np.pi * step / steps)) / 2


class Linear(Schedule):
    """A straight line down to `floor` times the peak."""

    kind: Literal["linear"] = "linear"
    floor: Fraction = 0.0

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        return lambda step: 1.0 - (1.0 - self.floor) * step / steps


class Wsd(Schedule):
    """Warm-up, stable, decay: a cooldown to zero over the last share of the steps after warm-up, linear or as 1 − √t.

    Hägele et al. 2405.18392."""

    kind: Literal["wsd"] = "wsd"
    cooldown: Fraction = 0.2
    decay: Literal["linear", "sqrt"] = "sqrt"

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        import numpy as np

        length = self._cooldown_steps(steps)
        start = steps - length

        def multiplier(step: np.ndarray) -> np.ndarray:
            progress = np.clip((step - start) / length, 0.0, 1.0)
            return 1.0 - (np.sqrt(progress) if self.decay == "sqrt" else progress)

        return multiplier

    def branch_step(self, steps: int, batch_tokens: int) -> int:
        return steps - self._cooldown_steps(steps - self.warmup_steps(steps, batch_tokens))

    def _cooldown_steps(self, steps: int) -> int:
        return max(1, round(self.cooldown * steps))


class InverseSqrt(Schedule):
    """√(t₀ / (t + t₀)) t steps after warm-up, `timescale` = t₀ in steps (Vaswani et al. 1706.03762)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: pydantic.PositiveInt

    def shape(self, steps: int) -> "Callable[[np.ndarray], np.ndarray]":
        import numpy as np

        return lambda step: np.sqrt(self.timescale / (step + self.timescale))
