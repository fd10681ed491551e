"""The decoder-only transformer as a table of weights."""

import math
from typing import ClassVar, Literal, Self

import pydantic

from scaling import schema, tables
from scaling.tables import Weight


class Transformer(tables.Family):
    """A decoder-only transformer with pre-normalisation; `gpt2` and `modern` give the two usual forms.

    `head_size` None means width / heads, `kv_heads` None means heads, `mlp_width` None means
    4 width, or 8/3 width rounded up to a multiple of 8 for swiglu. `epsilon` is that of the norms. A subclass whose
    `causal` is False attends to later positions too.
    """

    kind: Literal["transformer"] = "transformer"
    causal: ClassVar[bool] = True

    heads: pydantic.PositiveInt
    norm: Literal["layernorm", "rmsnorm"]
    position: Literal["learned", "rotary", "alibi", "none"]
    mlp: Literal["gelu", "swiglu"]
    biases: bool
    qk_norm: bool
    head_size: pydantic.PositiveInt | None = None
    kv_heads: pydantic.PositiveInt | None = None
    mlp_width: pydantic.PositiveInt | None = None
    epsilon: pydantic.PositiveFloat = schema.added(1e-6)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.head_size is None and self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}; choose a divisor or set head_size")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} kv_heads do not divide {self.heads} heads; choose a divisor of heads")
        if self.position == "rotary" and self.size_of_head % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.size_of_head}; change heads or width")
        return self

    @classmethod
    def gpt2(cls, width: int, depth: int, heads: int, tied: bool = True) -> Self:
        """GPT-2, GPT-3 (Radford et al. 2019; Brown et al. 2005.14165): LayerNorm, learned positions, GELU, biases."""
        return cls(width=width, depth=depth, heads=heads, norm="layernorm", position="learned", mlp="gelu",
                   biases=True, qk_norm=False, tied=tied)  # fmt: skip

    @classmethod
    def modern(cls, width: int, depth: int, heads: int, tied: bool = False) -> Self:
        """The present-day form: RMSNorm, rotary positions, SwiGLU of 8/3 width (in steps of 8), qk-norm, no biases."""
        return cls(width=width, depth=depth, heads=heads, norm="rmsnorm", position="rotary", mlp="swiglu",
                   biases=False, qk_norm=True, tied=tied)  # fmt: skip

    @property
    def size_of_head(self) -> int:
        """Dimensions of one attention head."""
        return self.head_size or self.width // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        if self.mlp_width is not None:
            return self.mlp_width
        return _swiglu_width(self.width) if self.mlp == "swiglu" else 4 * self.width

    @property
    def attention_width(self) -> int:
        """Total width of all query heads."""
        return self.heads * self.size_of_head

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        width, hidden, size, projection = self.width, self.hidden, self.size_of_head, self._projection
        position = Weight("position", "position", (context, width), ("context", "embed"))
        heads, into_stream = ("embed", "heads", "head"), ("heads", "head", "embed")
        qk_norms = [self._vector(f"attention.{name}_norm.scale", (size,), ("head",), 1.0) for name in ("query", "key")]
        gate = projection("mlp.gate", (width, hidden), ("embed", "mlp"), width)
        return tables.in_stages(
            [self.embedding(vocabulary_size), *([position] if self.position == "learned" else [])],
            self._norm("layers.attention_norm", self.depth),
            [
                *projection("attention.query", (width, self.heads, size), heads, width),
                *projection("attention.key", (width, self.groups, size), heads, width),
                *projection("attention.value", (width, self.groups, size), heads, width),
            ],
            qk_norms if self.qk_norm else [],
            projection("attention.output", (self.heads, size, width), into_stream, self.attention_width, out=True),
            self._norm("layers.mlp_norm", self.depth),
            [
                *(gate if self.mlp == "swiglu" else []),
                *projection("mlp.up", (width, hidden), ("embed", "mlp"), width),
            ],
            projection("mlp.down", (hidden, width), ("mlp", "embed"), hidden, out=True),
            self._norm("norm", 0),
            self.head(vocabulary_size),
        )

    def _projection(
        self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, out: bool = False
    ) -> list[Weight]:
        """A matrix of every layer and its bias; `out`: it writes into the stream."""
        matrix = Weight(f"layers.{name}", "hidden", shape, axes, fan_in, self.depth, residual=out)
        inputs = len(shape) - 1 if out else 1
        return [matrix, *([self._vector(f"{name}_bias", shape[inputs:], axes[inputs:])] if self.biases else [])]

    def _vector(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fill: float = 0.0) -> Weight:
        """A vector of every layer."""
        return Weight(f"layers.{name}", "vector", shape, axes, stack=self.depth, fill=fill)

    def _norm(self, name: str, stack: int) -> list[Weight]:
        """The scale of a norm, and the bias of LayerNorm."""
        vectors = [Weight(f"{name}.scale", "vector", (self.width,), ("embed",), stack=stack, fill=1.0)]
        if self.norm == "layernorm":
            vectors.append(Weight(f"{name}.bias", "vector", (self.width,), ("embed",), stack=stack))
        return vectors

    def mixing_flops(self, context: int) -> float:
        """Scores and mixture: 2 matmuls of 2 FLOPs in every layer, over (context + 1) / 2 keys on average if causal."""
        if not self.causal:
            return self.mixing_flops_square(context)
        return 4.0 * self.depth * self.attention_width * (context + 1) / 2

    def mixing_flops_square(self, context: int) -> float:
        return 4.0 * self.depth * self.attention_width * context

    def activation_floats(self, context: int, scores: bool = True) -> int:
        """Numbers that a layer keeps for each token.

        The stream twice, both norms' results and normalised inputs (LayerNorm: one centred input more); queries, keys,
        values, the mixture before and after its division, and queries and keys before and inside their norms; a score
        a head and key; of the MLP its inner activations, the result of its nonlinearity, and an inner step of that.
        Counted in XLA's buffers on CPU over widths, depths, heads, contexts and hidden sizes, to about 8%.

        Without scores, so on an accelerator, fused kernels compute the normalised inputs, the division and the inner
        step again: with the rest of a step that is 5 to 12% above what XLA takes on an H200 for GPT-2s of 1 M (a pack
        of 64) to 1.3 B parameters, and a quarter above for a pack of 128 of 0.1 M.
        """
        keys = self.groups * self.size_of_head
        again = 1 if scores else 0
        norms = (4 + again * (3 if self.norm == "layernorm" else 2)) * self.width
        attention = (2 + again) * self.attention_width + 2 * keys
        if self.qk_norm:
            attention += (1 + again) * (self.attention_width + keys)
        inner = ((2 if self.mlp == "gelu" else 3) + again) * self.hidden
        return norms + attention + inner + (self.heads * context if scores else 0)

    def working_floats(self, context: int, scores: bool = True) -> int:
        """Gradients of the stream, and of what lies inside attention or the MLP, whichever are more."""
        attention = 4 * self.attention_width + (self.heads * context if scores else 0)
        return self.width + max(attention, (2 if self.mlp == "gelu" else 3) * self.hidden)

    def resize(self, width: int, depth: int, heads: int | None) -> Self:
        """Another size. Where set, `mlp_width`, `head_size` and `kv_heads` keep their ratios to width and heads."""
        heads = heads or self.heads
        changes: dict[str, object] = {"width": width, "depth": depth, "heads": heads}
        if self.mlp_width is not None:
            changes["mlp_width"] = max(1, round(self.mlp_width * width / self.width))
        if self.head_size is not None:
            changes["head_size"] = max(2, 2 * round(self.attention_width * width / self.width / heads / 2))
        if self.kv_heads is not None:
            changes["kv_heads"] = max(1, round(self.kv_heads * heads / self.heads))
        return self.edit(changes)


def _swiglu_width(width: int) -> int:
    """8/3 width, so that three matrices hold what two of 4 width do (Shazeer 2002.05202), up to a multiple of 8."""
    return 8 * math.ceil(8 * width / 3 / 8)
