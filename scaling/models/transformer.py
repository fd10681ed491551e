"""The transformer of `families.Transformer`, pre-normalised (Xiong et al. 2002.04745)."""

import jax
from jaxtyping import Array, Float

from scaling.config import families
from scaling.models import builder as builders
from scaling.models import language, layers
from scaling.models.ops import attention


class Attention(layers.Layer):
    """Multi-head attention with grouped keys; optional biases, per-head query and key norms, mask and rotation."""

    def __init__(self, builder: builders.Builder, family: families.Transformer):
        super().__init__(builder)
        self.attend = builder.attend
        self.causal = family.causal
        self.scale = builder.parametrization.attention_scale(family.size_of_head)
        for name in ("query", "key", "value", "output"):
            setattr(self, name, builder.param(name))
            setattr(self, f"{name}_bias", builder.optional(f"{name}_bias"))
        # Wortsman et al. 2309.14322: norms of queries and keys keep the scores from growing.
        for name in ("query_norm", "key_norm"):
            setattr(self, name, layers.Norm(builder.within(name), family.epsilon) if builder.has(name) else None)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        angles: Float[Array, "time half"] | None,
        bias: Float[Array, "heads time time"] | None,
    ) -> Float[Array, "batch time width"]:
        query = self.matmul(x, self.query, self.query_bias)
        key = self.matmul(x, self.key, self.key_bias)
        value = self.matmul(x, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = attention.rotate(query, angles), attention.rotate(key, angles)
        mixed = self.attend(query, key, value, scale=self.scale, bias=bias, causal=self.causal)
        return self.matmul(mixed, self.output, self.output_bias, summed=2)


class Mlp(layers.Layer):
    """down · gelu(up · x), or down · (silu(gate · x) · (up · x)) where the table has a gate (Shazeer 2002.05202)."""

    def __init__(self, builder: builders.Builder):
        super().__init__(builder)
        for name in ("gate", "up", "down"):
            setattr(self, name, builder.optional(name))
            setattr(self, f"{name}_bias", builder.optional(f"{name}_bias"))

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        hidden = self.matmul(x, self.up, self.up_bias)
        if self.gate is None:
            hidden = self.ops.gelu(hidden)
        else:
            gate = self.matmul(x, self.gate, self.gate_bias)
            hidden = jax.nn.silu(gate) * hidden
        return self.matmul(hidden, self.down, self.down_bias)


class TransformerBlock(layers.Layer):
    """One layer: x + m · attention(norm(x)), then x + m · mlp(norm(x)), m the residual multiplier."""

    def __init__(self, builder: builders.Builder, family: families.Transformer):
        super().__init__(builder)
        self.multiplier = builder.parametrization.residual_multiplier(family)
        self.attention_norm = layers.Norm(builder.within("attention_norm"), family.epsilon)
        self.attention = Attention(builder.within("attention"), family)
        self.mlp_norm = layers.Norm(builder.within("mlp_norm"), family.epsilon)
        self.mlp = Mlp(builder.within("mlp"))

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        angles: Float[Array, "time half"] | None,
        bias: Float[Array, "heads time time"] | None,
    ) -> Float[Array, "batch time width"]:
        x = x + self._scale(self.attention(self.attention_norm(x), angles, bias))
        return self.place(x + self._scale(self.mlp(self.mlp_norm(x))), ("batch", None, None))

    def _scale(self, branch: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        branch = self.ops.apart(branch)
        return branch if self.multiplier == 1.0 else branch * self.multiplier


class TransformerModel(language.LanguageModel):
    """A language model of `depth` blocks and a final norm."""

    family: families.Transformer

    def __init__(self, builder: builders.Builder, family: families.Transformer):
        stack = TransformerBlock(builder.within("layers"), family)
        super().__init__(builder, stack, layers.Norm(builder.within("norm"), family.epsilon))

    def block_arguments(
        self, time: int
    ) -> tuple[Float[Array, "time half"] | None, Float[Array, "heads time time"] | None]:
        """Angles of rotary positions, and the bias of ALiBi."""
        family = self.family
        angles = attention.rotary_angles(time, family.size_of_head) if family.position == "rotary" else None
        bias = attention.alibi_bias(family.heads, time, family.causal) if family.position == "alibi" else None
        return angles, bias


def build(family: families.Transformer, builder: builders.Builder) -> TransformerModel:
    """The module of a family."""
    return TransformerModel(builder, family)
