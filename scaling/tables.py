"""What a model family is to all that does not compute: fields, a table of weights, the work of a token. No JAX here.

The table of weights is the one declaration of shapes and roles: the module takes its parameters from it, `counting`
counts it, `parametrization` scales it, and the mesh shards it.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import pydantic

from scaling import registry, schema

Role = Literal["embedding", "position", "hidden", "output", "vector"]

_STAGES: dict[Role, int] = {"embedding": 0, "position": 0, "hidden": 1, "vector": 1, "output": 2}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter array of a model: `shape` of one layer, `stack` layers of it (0: not part of a stack).

    `axes` names each dimension for sharding. `fan_in` is the number of inputs summed into one output. `residual`
    marks projections that write into the residual stream. `fill` is the initial value of a vector: 1 for gains, 0 for
    biases.

    `stage` is its order from input to output, that of a stack within one layer; by default 0 for embeddings and
    positions, 1 for hidden weights and vectors, 2 for the output. `used` is the share of it that multiplies each token
    in a matmul: by default 1 for hidden and output weights and 0 for the others, k / E for E experts of which a token
    takes k. A weight that does not learn keeps its initial values: it has no gradient.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: int = 1
    stack: int = 0
    residual: bool = False
    fill: float = 0.0
    stage: int = None  # type: ignore[assignment]  # set from the role
    used: float = None  # type: ignore[assignment]  # set from the role
    learns: bool = True

    def __post_init__(self) -> None:
        if self.stage is None:
            object.__setattr__(self, "stage", _STAGES[self.role])
        if self.used is None:
            object.__setattr__(self, "used", 1 if self.role in ("hidden", "output") else 0)

    @property
    def size(self) -> int:
        """Parameters in it, all layers together."""
        return math.prod(self.shape) * max(self.stack, 1)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the array in the parameter tree: layers lead."""
        return (self.stack, *self.shape) if self.stack else self.shape


def in_stages(*stages: Iterable[Weight]) -> tuple[Weight, ...]:
    """One table of the weights of each stage, the stage nearest the input first."""
    return tuple(dataclasses.replace(weight, stage=stage) for stage, weights in enumerate(stages) for weight in weights)


class Family(schema.Variant):
    """A kind of model at one size. `width` is the residual (or state) size, `depth` the number of layers.

    A family gives `weights` and, in `build`, its module. All else has a default: nothing is mixed over time without
    weights, memory is a generous bound from the table, and another size is an edit of width and depth.

    `causal` says that no position sees a later one. It is checked before such a family trains
    (`scaling.models.checks`); False claims nothing. `tied`: the matrix of the head is the embedding.
    """

    causal: ClassVar[bool] = False

    width: pydantic.PositiveInt
    depth: pydantic.PositiveInt
    tied: bool = False

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        """Every parameter array of the model."""
        raise NotImplementedError(
            f"{type(self).__qualname__} has no table of weights; give it "
            "`def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]`"
        )

    def build(self, builder: Any) -> Any:
        """The Flax NNX module, whose parameters `builder` (`scaling.models.builder`) makes from the table."""
        return registry.required(self, "build")(self, builder)

    def mixing_flops(self, context: int) -> float:
        """Forward FLOPs a token spends on matmuls without weights (attention), over the keys that a query meets."""
        return 0.0

    def mixing_flops_square(self, context: int) -> float:
        """The same where the hardware computes the whole attention square, masked part included."""
        return self.mixing_flops(context)

    def activation_floats(self, context: int, scores: bool = True) -> int:
        """Numbers that the backward pass keeps of one token in one layer, without rematerialisation.

        `scores`: whether attention keeps its weights of every pair of positions (flash attention does not).
        By default a bound: the stream and the inputs and outputs of every matmul twice, every vector once, the scores.
        """
        layer, vectors = _layer_floats(self)
        return 2 * (self.width + layer) + vectors + (_score_floats(self, context) if scores else 0)

    def working_floats(self, context: int, scores: bool = True) -> int:
        """Numbers a token that the backward pass of one layer holds beside what is kept, at its peak.

        By default a bound: the stream, the inputs and outputs of every matmul, and the scores.
        """
        layer, _ = _layer_floats(self)
        return self.width + layer + (_score_floats(self, context) if scores else 0)

    def resize(self, width: int, depth: int, heads: int | None) -> Self:
        """The same model at another size; `heads` where the family has heads."""
        changes = {"width": width, "depth": depth}
        return self.edit(changes | ({"heads": heads} if heads and "heads" in type(self).model_fields else {}))

    def embedding(self, vocabulary_size: int) -> Weight:
        """The table of the tokens' embeddings."""
        return Weight("embedding", "embedding", (vocabulary_size, self.width), ("vocabulary", "embed"))

    def head(self, vocabulary_size: int) -> tuple[Weight, ...]:
        """The output matrix, absent where it is tied to the embedding."""
        if self.tied:
            return ()
        return (Weight("output", "output", (self.width, vocabulary_size), ("embed", "vocabulary"), fan_in=self.width),)


def _layer_floats(family: Family) -> tuple[int, int]:
    """Of one layer, for a token: inputs and outputs of all its matmuls, and the sizes of its vectors."""
    table = family.weights(1, 1)  # neither vocabulary nor context changes the weights of a layer
    matmuls = sum(
        max(weight.stack, 1) * (weight.fan_in + weight.size * weight.used / max(weight.stack, 1) / weight.fan_in)
        for weight in table
        if weight.role == "hidden"
    )
    vectors = sum(weight.size for weight in table if weight.role == "vector")
    return math.ceil(matmuls / family.depth), math.ceil(vectors / family.depth)


def _score_floats(family: Family, context: int) -> int:
    """A score for every head and key where a family mixes over time: heads by the table's axis of that name, else 1."""
    if not family.mixing_flops_square(context):
        return 0
    heads = (
        size for weight in family.weights(1, 1) for size, axis in zip(weight.shape, weight.axes, strict=True)
        if axis == "heads"
    )  # fmt: skip
    return max(heads, default=1) * context
