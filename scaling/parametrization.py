"""How initialisation, learning rates and multipliers follow a model's size, by the role of each weight. No JAX here."""

import math
from typing import Literal

import pydantic

from scaling import schema, tables


class Parametrization(schema.Variant):
    """Rules that turn a family's table of weights into scales; `Standard` and `MuP` are the two at hand.

    `init_scale` multiplies every standard deviation of the initial values.
    """

    init_scale: pydantic.PositiveFloat = schema.added(1.0)

    def init_std(self, weight: tables.Weight, model: tables.Family) -> float:
        """Standard deviation of the initial normal values of a weight that is not a vector."""
        raise NotImplementedError

    def learning_rate_multiplier(self, weight: tables.Weight, model: tables.Family) -> float:
        """What the run's learning rate is multiplied by for this weight (Adam-like optimizers)."""
        raise NotImplementedError

    def output_multiplier(self, model: tables.Family) -> float:
        """What the logits are multiplied by."""
        raise NotImplementedError

    def residual_multiplier(self, model: tables.Family) -> float:
        """What the output of each residual branch is multiplied by."""
        raise NotImplementedError

    def attention_scale(self, head_size: int) -> float:
        """What the product of query and key is multiplied by."""
        raise NotImplementedError


class Standard(Parametrization):
    """The usual rules: matrices of variance 1 / fan_in, residual ones divided by √(2 depth) (Radford et al. 2019).

    Embeddings have variance 1 / width, so that a tied head gives logits of order one.
    """

    kind: Literal["standard"] = "standard"

    def init_std(self, weight: tables.Weight, model: tables.Family) -> float:
        return self.init_scale * _init_std(weight, model.width, model.depth)

    def learning_rate_multiplier(self, weight: tables.Weight, model: tables.Family) -> float:
        return 1.0

    def output_multiplier(self, model: tables.Family) -> float:
        return 1.0

    def residual_multiplier(self, model: tables.Family) -> float:
        return 1.0

    def attention_scale(self, head_size: int) -> float:
        return 1.0 / math.sqrt(head_size)


class MuP(Parametrization):
    """Maximal update parametrization: with m = width / base_width and l = depth / base_depth, for Adam-like optimizers,

    hidden: variance ∝ 1 / fan_in, learning rate 1 / m; embeddings, vectors: no change with width; output: constant
    variance, logits times 1 / m; attention scores times √base_head_size / head_size (Yang et al. 2203.03466, table 8);
    residual branches times 1 / l, so that the learning rate also carries over depth (CompleteP, Dey et al. 2505.01618).
    At the base shape it is `Standard` exactly.
    """

    kind: Literal["mup"] = "mup"
    base_width: pydantic.PositiveInt
    base_depth: pydantic.PositiveInt
    base_head_size: pydantic.PositiveInt

    def init_std(self, weight: tables.Weight, model: tables.Family) -> float:
        return self.init_scale * _init_std(weight, self.base_width, self.base_depth)

    def learning_rate_multiplier(self, weight: tables.Weight, model: tables.Family) -> float:
        return self.base_width / model.width if weight.role == "hidden" else 1.0

    def output_multiplier(self, model: tables.Family) -> float:
        return self.base_width / model.width

    def residual_multiplier(self, model: tables.Family) -> float:
        return self.base_depth / model.depth

    def attention_scale(self, head_size: int) -> float:
        return math.sqrt(self.base_head_size) / head_size


def _init_std(weight: tables.Weight, width: int, depth: int) -> float:
    if weight.role in ("embedding", "position", "output"):
        return 1.0 / math.sqrt(width)
    scale = 1.0 / math.sqrt(weight.fan_in)
    return scale / math.sqrt(2 * depth) if weight.residual else scale
