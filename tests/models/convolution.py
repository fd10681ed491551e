"""A family of one's own in one file: causal convolutions over time, each followed by a matrix."""

from typing import Any, ClassVar, Literal

import pydantic

from scaling.config import families
from scaling.config.families import Weight


class Convolution(families.Family):
    """Layers of x + gelu(Σ_i taps_i · x_{t − i}) · mix, a final RMSNorm and the head; `taps` positions are read."""

    kind: Literal["convolution"] = "convolution"
    causal: ClassVar[bool] = True
    taps: pydantic.PositiveInt = 4

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        width, depth = self.width, self.depth
        return (
            self.embedding(vocabulary_size),
            Weight("layers.taps", "vector", (self.taps, width), ("taps", "embed"), stack=depth, fill=1 / self.taps),
            Weight("layers.mix", "hidden", (width, width), ("embed", "mlp"), fan_in=width, stack=depth, residual=True),
            Weight("norm.scale", "vector", (width,), ("embed",), fill=1.0),
            *self.head(vocabulary_size),
        )

    def build(self, builder: Any) -> Any:
        import jax.numpy as jnp
        from jaxtyping import Array, Float

        from scaling.models import language, layers

        class Convolve(layers.Layer):
            """One layer; `builder` makes the parameters of all of them, and each call is given its own."""

            def __init__(self, builder: Any, taps: int):
                super().__init__(builder)
                self.count = taps
                self.taps = builder.param("taps")
                self.mix = builder.param("mix")

            def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
                taps, time = self.read(self.taps), x.shape[1]
                padded = jnp.pad(x, ((0, 0), (self.count - 1, 0), (0, 0)))
                mixed = jnp.stack([taps[i] * padded[:, i : i + time] for i in range(self.count)]).sum(axis=0)
                return x + self.matmul(self.ops.gelu(mixed), self.mix)

        norm = layers.Norm(builder.within("norm"), epsilon=1e-6)
        return language.LanguageModel(builder, Convolve(builder.within("layers"), self.taps), norm)
