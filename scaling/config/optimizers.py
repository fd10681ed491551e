"""Optimizers: each a config that builds its optax object; optax is imported only then.

An optimizer builds the *direction* of a step; the training step applies learning rate, multipliers and weight decay:

    w ← w − lr(t) · multiplier · direction − decay(t) · w        (decay for matrices, not for gains and biases)

so that one compiled program serves every learning rate, schedule and decay. Schedules are NumPy functions of the step:
in JAX, each length of run would compile a dozen programs of its own (0.7 s on CPU; 0.2 s where they are cached).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from scaling import schema
from scaling.config import families

if TYPE_CHECKING:
    import numpy as np
    import optax

Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Beta = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]


class Optimizer(schema.Variant):
    """What all optimizers share: the peak learning rate and the weight decay λ.

    Independent decay takes λ·s(t)·w off each step, s the schedule's shape; otherwise it is coupled: lr(t)·λ·w.
    """

    learning_rate: pydantic.PositiveFloat
    weight_decay: pydantic.NonNegativeFloat = 0.0
    independent: bool = True

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        """The transformation of gradients into a step of unit learning rate, over a tree keyed by weight name."""
        raise NotImplementedError

    @property
    def state_floats_per_param(self) -> float:
        """Optimizer state per parameter, in numbers (for memory estimates)."""
        raise NotImplementedError

    @property
    def adam_like(self) -> bool:
        """Whether the step's size does not depend on the gradient's scale, as µP's table for Adam assumes."""
        return False

    def decay(self, learning_rates: "np.ndarray") -> "np.ndarray":
        """The share of a weight taken off at each step, given the learning rate of each step."""
        return learning_rates * (self.weight_decay / self.learning_rate if self.independent else self.weight_decay)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    epsilon: pydantic.PositiveFloat = 1e-8

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        import optax

        return optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.epsilon)

    @property
    def state_floats_per_param(self) -> float:
        return 2.0

    @property
    def adam_like(self) -> bool:
        return True


class Lion(Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2302.06675)."""

    kind: Literal["lion"] = "lion"
    beta1: Beta = 0.9
    beta2: Beta = 0.99

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        import optax

        return optax.scale_by_lion(b1=self.beta1, b2=self.beta2)

    @property
    def state_floats_per_param(self) -> float:
        return 1.0

    @property
    def adam_like(self) -> bool:
        return True


class Adafactor(Optimizer):
    """Second moments factored over rows and columns, updates clipped to unit RMS (Shazeer and Stern 1804.04235)."""

    kind: Literal["adafactor"] = "adafactor"
    decay_exponent: Fraction = 0.8
    smallest_factored: pydantic.PositiveInt = 128

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        import optax

        second_moment = optax.scale_by_factored_rms(
            decay_rate=self.decay_exponent, min_dim_size_to_factor=self.smallest_factored
        )
        return optax.chain(second_moment, optax.clip_by_block_rms(1.0))

    @property
    def state_floats_per_param(self) -> float:
        return 1.0  # an upper bound: small matrices and vectors are not factored


class Sgd(Optimizer):
    """Stochastic gradient descent with heavy-ball momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Beta = 0.9

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        import optax

        return optax.trace(decay=self.momentum)

    @property
    def state_floats_per_param(self) -> float:
        return 1.0


class Muon(Optimizer):
    """Orthogonalised momentum for hidden matrices, Adam for all else (Jordan et al. 2024; Liu et al. 2502.16982).

    The orthogonal step is scaled to the RMS of Adam's, 0.2 √max(rows, columns) (Liu et al. 2502.16982, eq. 4), so
    that one learning rate serves both.
    """

    kind: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    epsilon: pydantic.PositiveFloat = 1e-8

    def direction(self, weights: Mapping[str, families.Weight]) -> "optax.GradientTransformation":
        import optax
        from optax import contrib

        dimensions = {
            name: contrib.MuonDimensionNumbers(*matrix_axes(weight))
            for name, weight in weights.items()
            if weight.role == "hidden"
        }
        descent = contrib.muon(
            1.0, beta=self.momentum, eps=self.epsilon, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2
        )
        # optax's own Adam for the rest takes Nesterov's step with Muon, so that the rest is given to plain Adam here.
        rest = optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.epsilon)
        parts = (
            (optax.chain(descent, optax.scale(-1.0)), tuple(dimensions)),
            (rest, tuple(name for name in weights if name not in dimensions)),
        )

        def pick(tree: Any, names: tuple[str, ...]) -> dict[str, Any]:
            return {name: tree[name] for name in names}

        def init(params: Any) -> Any:
            return tuple(part.init(pick(params, names)) for part, names in parts)

        def update(gradients: Any, states: Any, params: Any) -> tuple[Any, Any]:
            steps: dict[str, Any] = {}
            new = []
            for (part, names), state in zip(parts, states, strict=True):
                step, after = part.update(pick(gradients, names), state, pick(params, names))
                steps |= step
                new.append(after)
            return steps, tuple(new)

        return optax.GradientTransformation(init, update)

    @property
    def state_floats_per_param(self) -> float:
        return 2.0  # an upper bound: hidden matrices keep one


def matrix_axes(weight: families.Weight) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(input axes, output axes) of a hidden weight's full array: leading axes whose sizes multiply to fan_in go in."""
    offset = 1 if weight.stack else 0
    inputs, product = 0, 1
    while product < weight.fan_in:
        product *= weight.shape[inputs]
        inputs += 1
    axes = range(offset, offset + len(weight.shape))
    return tuple(axes[:inputs]), tuple(axes[inputs:])


def check_parametrization(optimizer: Optimizer, kind: str) -> None:
    """Refuse µP with an optimizer whose rules differ from Adam's (Yang et al. 2203.03466, table 8 is for Adam)."""
    if kind == "mup" and not optimizer.adam_like:
        allowed = ", ".join(sorted(k for k, v in Optimizer.group.items() if v.__dict__.get("adam_like")))
        raise ValueError(
            f"parametrization 'mup' has learning rates for Adam-like optimizers ({allowed}), not for "
            f"{optimizer.kind!r}; use one of them or parametrization 'standard'"
        )
