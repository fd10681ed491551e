"""The decoder-only transformer of `families.Transformer`, pre-normalised (Xiong et al. 2002.04745)."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.config import families
from scaling.models import layers
from scaling.models.ops import attention, lean


class Attention(layers.Layer):
    """Multi-head causal attention with grouped keys, optional biases, per-head query and key norms, and rotation."""

    def __init__(self, builder: layers.Builder, family: families.Transformer):
        super().__init__(builder)
        self.attend = builder.attend
        self.scale = builder.parametrization.attention_scale(family.size_of_head)
        for name in ("query", "key", "value", "output"):
            setattr(self, name, builder.param(name))
            setattr(self, f"{name}_bias", builder.optional(f"{name}_bias"))
        # Wortsman et al. 2309.14322: norms of queries and keys keep the scores from growing.
        self.query_norm = layers.Norm(builder.within("query_norm")) if builder.has("query_norm") else None
        self.key_norm = layers.Norm(builder.within("key_norm")) if builder.has("key_norm") else None

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
        mixed = self.attend(query, key, value, scale=self.scale, bias=bias)
        return self.matmul(mixed, self.output, self.output_bias, summed=2)


class Mlp(layers.Layer):
    """down · gelu(up · x), or down · (silu(gate · x) · (up · x)) where the table has a gate (Shazeer 2002.05202)."""

    def __init__(self, builder: layers.Builder):
        super().__init__(builder)
        self.gpu = builder.gpu
        for name in ("gate", "up", "down"):
            setattr(self, name, builder.optional(name))
            setattr(self, f"{name}_bias", builder.optional(f"{name}_bias"))

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        hidden = self.matmul(x, self.up, self.up_bias)
        if self.gate is None:
            # The tanh form, as in GPT-2.
            hidden = lean.gelu(hidden) if self.gpu else jax.nn.gelu(hidden, approximate=True)
        else:
            gate = self.matmul(x, self.gate, self.gate_bias)
            hidden = jax.nn.silu(gate) * hidden
        return self.matmul(hidden, self.down, self.down_bias)


class Block(nnx.Module):
    """One layer: x + m · attention(norm(x)), then x + m · mlp(norm(x)), m the residual multiplier."""

    def __init__(self, builder: layers.Builder, family: families.Transformer):
        self.multiplier = builder.parametrization.residual_multiplier(family)
        self.place, self.wide = builder.place, builder.wide
        self.attention_norm = layers.Norm(builder.within("attention_norm"))
        self.attention = Attention(builder.within("attention"), family)
        self.mlp_norm = layers.Norm(builder.within("mlp_norm"))
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
        if self.wide:
            branch = lean.apart(branch)
        return branch if self.multiplier == 1.0 else branch * self.multiplier


class Transformer(layers.LanguageModel):
    """Embedding, `depth` blocks, a final norm and the head."""

    family: families.Transformer

    def __init__(self, builder: layers.Builder, family: families.Transformer):
        super().__init__(builder)
        self.position = builder.optional("position")
        self.layers = Block(builder.within("layers"), family)
        self.norm = layers.Norm(builder.within("norm"))

    def features(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        family, time = self.family, tokens.shape[1]
        x = self.embed(tokens)
        if self.position is not None:
            if time > self.position.shape[0]:
                raise ValueError(
                    f"{time} tokens in a sequence, {self.position.shape[0]} learned positions; cut the sequence"
                )
            x = x + self.read(self.position)[:time]
            if self.gpu:
                x = lean.in_rows(x)
        angles = attention.rotary_angles(time, family.size_of_head) if family.position == "rotary" else None
        bias = attention.alibi_bias(family.heads, time) if family.position == "alibi" else None
        x = layers.apply_layers(
            self.layers, x, angles, bias, depth=family.depth, layers=self.layers_mode, remat=self.remat, wide=self.wide
        )
        return self.norm(x)


def build(family: families.Transformer, builder: layers.Builder) -> Transformer:
    """The module of a family."""
    return Transformer(builder, family)
