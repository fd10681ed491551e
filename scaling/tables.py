"""What a model family is to all that does not compute: fields, a table of weights, the work of a token. No JAX here.

The table of weights is the one declaration of shapes and roles: the module takes its parameters from it, `counting`
counts it, `parametrization` scales it, and the mesh shards it.
"""

import dataclasses
import math
from typing import Any, Literal, Self

import pydantic

from scaling import registry, schema

Role = Literal["embedding", "position", "hidden", "output", "vector"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter array of a model: `shape` of one layer, `stack` layers of it (0: not part of a stack).

    `axes` names each dimension for sharding. `fan_in` is the number of inputs summed into one output. `residual`
    marks projections that write into the residual stream. A `hidden` or `output` weight is one matmul a token.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: int = 1
    stack: int = 0
    residual: bool = False
    fill: float = 0.0  # initial value of a vector: 1 for gains, 0 for biases

    @property
    def size(self) -> int:
        """Parameters in it, all layers together."""
        return math.prod(self.shape) * max(self.stack, 1)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the array in the parameter tree: layers lead."""
        return (self.stack, *self.shape) if self.stack else self.shape


class Family(schema.Variant):
    """A kind of language model at one size. `width` is the residual (or state) size, `depth` the number of layers."""

    width: pydantic.PositiveInt
    depth: pydantic.PositiveInt
    tied: bool = False

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        """Every parameter array of the model."""
        raise NotImplementedError

    def mixing_flops(self, context: int) -> float:
        """Forward FLOPs a token spends on matmuls without weights (attention), averaged over a causal context."""
        raise NotImplementedError

    def mixing_flops_square(self, context: int) -> float:
        """The same where the hardware computes the whole attention square, masked half included."""
        raise NotImplementedError

    def activation_floats(self, context: int, scores: bool = True) -> int:
        """Numbers that the backward pass keeps of one token in one layer, without rematerialisation.

        `scores`: whether attention keeps its weights of every pair of positions (flash attention does not).
        """
        raise NotImplementedError

    def working_floats(self, context: int, scores: bool = True) -> int:
        """Numbers a token that the backward pass of one layer holds beside what is kept, at its peak."""
        raise NotImplementedError

    def resize(self, width: int, depth: int, heads: int | None) -> Self:
        """The same model at another size; `heads` where the family has heads."""
        raise NotImplementedError

    def build(self, builder: Any) -> Any:
        """The Flax NNX module, its parameters made by `builder` (`scaling.models.layers`) from the table of weights."""
        return registry.required(self, "build")(self, builder)

    def head(self, vocabulary_size: int) -> tuple[Weight, ...]:
        """The output matrix, absent where it is tied to the embedding."""
        if self.tied:
            return ()
        return (Weight("output", "output", (self.width, vocabulary_size), ("embed", "vocabulary"), fan_in=self.width),)
