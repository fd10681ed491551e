"""Counts against hand counts, the real parameter tree, and every matmul of the real program."""

import dataclasses
import functools
import math
import time
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from scaling import counting
from scaling.config import families
from scaling.models import language, layers
from tests.models import small

SIZE = (small.VOCABULARY, small.CONTEXT)
GPT2 = families.Transformer.gpt2(width=768, depth=12, heads=12)


def test_gpt2_has_its_published_number_of_parameters() -> None:
    # 124,439,808: openai-community/gpt2 on the Hugging Face hub, the sum of its arrays.
    assert counting.params(GPT2, 50257, 1024) == 124_439_808
    assert counting.params_non_embedding(GPT2, 50257, 1024) == 124_439_808 - 50257 * 768 - 1024 * 768


@small.every_family
def test_conventions_differ_by_what_they_leave_out(family: families.Family) -> None:
    embedding = small.VOCABULARY * family.width
    positions = sum(weight.size for weight in family.weights(*SIZE) if weight.role == "position")
    total, core = counting.params(family, *SIZE), counting.params_non_embedding(family, *SIZE)
    assert total == core + positions + (1 if family.tied else 2) * embedding
    assert counting.params_with_head(family, *SIZE) == core + embedding
    assert counting.flops_6nd(family, *SIZE, 100) == 600 * core


def test_exact_flops_of_a_transformer_by_hand() -> None:
    # 3 · (2 · W + 4 · layers · attention width · (context + 1) / 2), W with the head.
    matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072) + 50257 * 768
    attention = 4 * 12 * 768 * 1025 / 2
    assert counting.flops_per_token(GPT2, 50257, 1024) == 3 * (2 * matrices + attention)
    assert counting.flops(GPT2, 50257, 1024, 1000) == 1000 * counting.flops_per_token(GPT2, 50257, 1024)


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of every dot_general in a program, bodies of loops as often as they run."""
    total = 0.0
    for times, equation in small.equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * times * inner * math.prod(equation.outvars[0].aval.shape)
    return total


def program(function: Any, parameters: Any) -> Any:
    """The jaxpr of a function of parameters and tokens, without what its result does not need."""
    closed = jax.make_jaxpr(function)(parameters, small.tokens())
    return jax.interpreters.partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[0]


@small.every_family
@pytest.mark.parametrize("mode", ["unroll", "scan"])
def test_flops_are_those_of_every_matmul_in_the_program(family: families.Family, mode: str) -> None:
    graph, parameters = small.split(nnx.eval_shape(lambda: small.create(family, layers=mode)))
    forward = program(lambda parameters, tokens: nnx.merge(graph, parameters)(tokens), parameters)
    tokens = small.tokens().size
    assert 3 * matmul_flops(forward) == counting.flops_hardware(family, *SIZE, tokens)
    # The ledger differs from the hardware by the masked half of the attention square alone.
    masked = 3 * (family.mixing_flops_square(small.CONTEXT) - family.mixing_flops(small.CONTEXT)) * tokens
    assert counting.flops(family, *SIZE, tokens) == counting.flops_hardware(family, *SIZE, tokens) - masked


def objective(graph: Any, parameters: Any, tokens: jax.Array) -> jax.Array:
    return jnp.square(nnx.merge(graph, parameters)(tokens)).mean()


@pytest.mark.parametrize("mode", ["unroll", "scan"])
@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("name", ["gpt2", "modern", "grouped keys, rotary", "lstm"])
def test_flops_of_a_training_step_under_remat(name: str, remat: Any, mode: str) -> None:
    family = small.FAMILIES[name]
    graph, parameters = small.split(nnx.eval_shape(lambda: small.create(family, layers=mode, remat=remat)))
    step = program(jax.grad(functools.partial(objective, graph)), parameters)
    assert matmul_flops(step) == counting.flops_hardware(family, *SIZE, small.tokens().size, remat)


class Part(families.Transformer):
    """A transformer of which weights whose names begin so do not learn."""

    kind: Any = "part"
    frozen: tuple[str, ...] = ()

    def weights(self, vocabulary_size: int, context: int) -> tuple[families.Weight, ...]:
        table = super().weights(vocabulary_size, context)
        return tuple(dataclasses.replace(one, learns=not one.name.startswith(self.frozen)) for one in table)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "frozen",
    [
        (),
        ("embedding", "position"),
        ("embedding", "position", "layers"),  # the final norm and the head learn
        ("embedding", "position", "layers", "norm"),  # the head alone
        ("embedding", "position", "layers.attention"),  # in the first layer nothing before the MLP
        ("embedding", "position", "layers.attention_norm", "layers.mlp"),
        ("layers", "norm", "output"),
        ("",),
    ],
)
def test_flops_of_a_training_step_in_which_a_part_learns(frozen: tuple[str, ...], tied: bool) -> None:
    plain = families.Transformer.gpt2(16, 2, 2, tied=tied).model_dump(exclude={"kind"})
    family = Part(**plain, frozen=frozen)
    graph, parameters = small.split(nnx.eval_shape(lambda: small.create(family)))
    found = matmul_flops(program(jax.value_and_grad(functools.partial(objective, graph)), parameters))
    assert found == counting.flops_hardware(family, *SIZE, small.tokens().size)


class Quarter(families.Family):
    """The embedding as a product with indicators, raw inputs, and layers that change every fourth position alone."""

    kind: Any = "quarter"

    def weights(self, vocabulary_size: int, context: int) -> tuple[families.Weight, ...]:
        width, axes = self.width, ("embed", "mlp")
        return (
            dataclasses.replace(self.embedding(vocabulary_size), used=1),
            families.Weight("layers.mix", "hidden", (width, width), axes, width, self.depth, used=1 / 4),
            *self.head(vocabulary_size),
        )

    def build(self, builder: Any) -> Any:
        return QuarterModel(builder, Fourth(builder.within("layers")))


class Fourth(layers.Layer):
    def __init__(self, builder: Any):
        super().__init__(builder)
        self.mix = builder.param("mix")

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.repeat(self.matmul(x[:, ::4], self.mix), 4, axis=1)


class QuarterModel(language.LanguageModel):
    def features(self, tokens: jax.Array) -> jax.Array:
        return self.blocks(self.matmul(jax.nn.one_hot(tokens, small.VOCABULARY), self.embedding))


def test_flops_of_weights_that_a_quarter_of_the_tokens_use() -> None:
    family = Quarter(width=12, depth=3)
    graph, parameters = small.split(nnx.eval_shape(lambda: small.create(family)))
    step = program(jax.grad(functools.partial(objective, graph)), parameters)
    vocabulary = small.VOCABULARY * 12
    # The embedding has no gradient of its input; its own, and that of all others, are counted.
    by_hand = 2 * (2 * vocabulary + 3 * (3 * 12 * 12 / 4 + vocabulary))
    assert counting.flops_per_token(family, *SIZE) == by_hand
    assert matmul_flops(step) == by_hand * small.tokens().size


@hypothesis.given(
    heads=st.integers(1, 4), groups=st.integers(1, 4), size=st.integers(1, 4), width=st.integers(1, 12),
    depth=st.integers(1, 3), mlp_width=st.none() | st.integers(1, 20), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    position=st.sampled_from(["learned", "rotary", "alibi", "none"]), mlp=st.sampled_from(["gelu", "swiglu"]),
    biases=st.booleans(), qk_norm=st.booleans(), tied=st.booleans(), vocabulary=st.integers(1, 9),
    context=st.integers(1, 9),
)  # fmt: skip
@hypothesis.settings(max_examples=15)
def test_counts_are_those_of_the_real_model(
    heads: int, groups: int, size: int, vocabulary: int, context: int, **fields: Any
) -> None:
    family = families.Transformer(heads=heads * groups, kv_heads=groups, head_size=2 * size, **fields)
    create = functools.partial(small.create, family, vocabulary_size=vocabulary, context=context)
    graph, parameters = small.split(nnx.eval_shape(create))
    held = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert held == counting.params(family, vocabulary, context)
    tokens = jnp.zeros((1, context), int)
    forward = jax.make_jaxpr(lambda parameters: nnx.merge(graph, parameters)(tokens))(parameters).jaxpr
    assert 3 * matmul_flops(forward) == counting.flops_hardware(family, vocabulary, context, context)


@hypothesis.given(share=st.floats(1.0, 1e6), batch=st.integers(1, 4096))
def test_tokens_for_flops_are_whole_batches_nearest_the_budget(share: float, batch: int) -> None:
    size = (families.Transformer.gpt2(64, 3, 4), 256, 128)
    one_batch = counting.flops(*size, batch)
    tokens = counting.tokens_for_flops(*size, share * one_batch, batch)
    assert tokens % batch == 0
    assert abs(counting.flops(*size, tokens) - share * one_batch) <= 0.5001 * one_batch


@pytest.mark.parametrize("flops", [0.0, -1.0, 1e3, math.nan, math.inf])
def test_a_budget_under_one_batch_is_refused(flops: float) -> None:
    with pytest.raises(ValueError, match=r"batch of 2048 tokens.*raise the budget"):
        counting.tokens_for_flops(families.Transformer.gpt2(64, 3, 4), 256, 128, flops, 2048)


def test_memory_grows_with_what_it_is_made_of() -> None:
    def estimate(**changes: Any) -> float:
        settings: dict[str, Any] = {"sequences": 8, "state_floats_per_param": 2.0}
        return counting.memory_bytes(GPT2, 50257, 1024, **{**settings, **changes})

    params = counting.params(GPT2, 50257, 1024)
    assert estimate(sequences=0) == 17 * params  # parameters, gradients, a quarter of them twice, and two moments
    assert estimate(sequences=0, accumulated=True) == 21 * params
    assert estimate(sequences=0, state_floats_per_param=0.0, parameter_bytes=2) == 4.5 * params
    assert estimate(remat="full") < 0.6 * estimate() < 0.6 * estimate(scanned=True)
    assert estimate(compute_bytes=2) < estimate() < estimate(sequences=9)
    scores = 4 * 12 * 8 * 1024 * (12 * 1024)  # kept of 12 layers, 12 heads over 1,024 keys
    assert estimate() - estimate(scores=False) >= scores
    logits = 2.5 * 4 * 8 * 1024 * 50257
    assert estimate() > 17 * params + logits
    assert estimate() - estimate(logits_chunk=1024) == logits * 7 / 8 - 4 * 50257 * 768


def test_a_thousand_runs_are_counted_in_a_second() -> None:
    start = time.process_time()
    for width in range(64, 64 + 4 * 1000, 4):
        size = (families.Transformer.gpt2(width, 12, 4), 50257, 1024)
        tokens = counting.tokens_for_flops(*size, 1e18, 2**19)
        counting.flops(*size, tokens), counting.params(*size), counting.params_non_embedding(*size)
    assert time.process_time() - start < 3.0  # 0.4 s on a quiet machine
