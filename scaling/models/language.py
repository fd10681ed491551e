"""A language model: an embedder makes a stream of the tokens, blocks change it, and a head makes logits of it."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.models import builder as builders
from scaling.models import layers, stacking
from scaling.models.ops import products


class Embedder(layers.Layer):
    """The stream that the blocks read: the embedding of each token, plus that of its position where learned."""

    def __init__(self, like: layers.Layer, embedding: nnx.Param, position: nnx.Param | None):
        super().__init__(like)
        self.embedding = embedding
        self.position = position

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        x = self.place(self.ops.rows(self.read(self.embedding), tokens), ("batch", None, None))
        if self.position is None:
            return x
        time, positions = tokens.shape[1], self.position.shape[0]
        if time > positions:
            raise ValueError(f"{time} tokens in a sequence, {positions} learned positions; cut the sequence")
        return self.ops.in_rows(x + self.read(self.position)[:time])


class Head(layers.Layer):
    """Logits, features times a matrix: the embedding (vocabulary, width) where `tied`, else one of its own, turned."""

    def __init__(self, like: layers.Layer, parameter: nnx.Param, tied: bool, multiplier: float):
        super().__init__(like)
        self.parameter = parameter
        self.tied = tied
        self.multiplier = multiplier

    @property
    def matrix(self) -> Float[Array, "..."]:
        """Its values as they are stored: (vocabulary, width) where tied, else (width, vocabulary)."""
        return self.read(self.parameter, self.parameter.dtype)

    def __call__(
        self, matrix: Float[Array, "..."], features: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch vocabulary"]:
        """Logits in float32 of any part of the positions, by `matrix` or a part of it, in any dtype."""
        letters = "vd" if self.tied else "dv"
        flat = features.reshape(-1, features.shape[-1])
        logits = products.einsum_float32(f"nd,{letters}->nv", flat, matrix.astype(self.dtype))
        logits = logits.reshape(*features.shape[:-1], -1)
        return logits if self.multiplier == 1.0 else logits * self.multiplier


class LanguageModel(layers.Layer):
    """head(norm(blocks(embedder(tokens)))), of a family with an `embedding` and, unless it is tied, an `output`.

    `stack` is one layer with the parameters of all, and `norm` the final norm, None where the family has none. The
    parameters of embedder and head lie beside those of the layers, as the table of weights names them.
    """

    def __init__(self, builder: builders.Builder, stack: nnx.Module, norm: layers.Norm | None = None):
        super().__init__(builder)
        self.family = builder.family
        self.run_layers, self.remat = builder.layers, builder.remat
        self.output_multiplier = builder.parametrization.output_multiplier(builder.family)
        self.embedding = builder.param("embedding")
        self.position = builder.optional("position")
        self.layers = stack
        self.norm = norm
        self.output = builder.optional("output")

    @property
    def embedder(self) -> Embedder:
        """From tokens to the stream."""
        return Embedder(self, self.embedding, self.position)

    def block_arguments(self, time: int) -> tuple[Any, ...]:
        """What every layer is given beside the stream, for sequences of some length: by default nothing."""
        return ()

    def blocks(self, x: Float[Array, "batch context width"]) -> Float[Array, "batch context width"]:
        """The stream after all layers."""
        return stacking.apply_layers(
            self.layers, x, *self.block_arguments(x.shape[1]),
            depth=self.family.depth, layers=self.run_layers, remat=self.remat, split=self.ops.split,
        )  # fmt: skip

    def features(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """What the head reads: the last layer's output, normalised where the family has a final norm."""
        x = self.blocks(self.embedder(tokens))
        return x if self.norm is None else self.norm(x)

    @property
    def to_logits(self) -> Head:
        """From features to logits."""
        tied = self.output is None
        return Head(self, self.embedding if tied else self.output, tied, self.output_multiplier)

    @property
    def head(self) -> Float[Array, "..."]:
        """The matrix of the head, which a loss may give `logits` whole or in parts."""
        return self.to_logits.matrix

    def logits(
        self, head: Float[Array, "..."], features: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch vocabulary"]:
        """The head alone, in float32, on any part of the positions; `head` is `self.head`, in any dtype."""
        return self.to_logits(head, features)

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context vocabulary"]:
        """Logits in float32 of the token after each position."""
        return self.logits(self.head, self.features(tokens))
