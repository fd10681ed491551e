"""Small models of every option, and how the tests of this folder build and run them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling import models, parametrization
from scaling.config import families
from tests import conftest

VOCABULARY = 11
CONTEXT = 8

_PLAIN: dict[str, Any] = {
    "width": 12, "depth": 2, "heads": 2, "norm": "rmsnorm", "position": "none", "mlp": "gelu", "biases": False,
    "qk_norm": False,
}  # fmt: skip

# Every value of every option at least once, and the combinations that people use.
FAMILIES: dict[str, families.Family] = {
    "gpt2": families.Transformer.gpt2(16, 2, 2),
    "modern": families.Transformer.modern(16, 2, 2),
    "alibi, three heads": families.Transformer(**{**_PLAIN, "position": "alibi", "heads": 3}),
    "grouped keys, rotary": families.Transformer(
        **{**_PLAIN, "position": "rotary", "heads": 4, "kv_heads": 2, "head_size": 6, "qk_norm": True}
    ),
    "one key head, alibi": families.Transformer(**{**_PLAIN, "position": "alibi", "heads": 4, "kv_heads": 1}),
    "layernorm, swiglu, biases": families.Transformer(
        **{**_PLAIN, "norm": "layernorm", "mlp": "swiglu", "biases": True, "mlp_width": 20}
    ),
    "lstm": families.Lstm(width=8, depth=2),
    "lstm, tied": families.Lstm(width=8, depth=2, tied=True),
}

every_family = pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))

# Tests wait for the compiler and not for the arithmetic: a seventh of the compile time, and a slower program.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if conftest.FUSION_EMITTERS:
    FAST["xla_cpu_use_fusion_emitters"] = False


def jit(function: Callable[..., Any]) -> Any:
    """`jax.jit` that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options=FAST)


def create(family: families.Family, **changes: Any) -> Any:
    """The family at the tests' vocabulary and context."""
    settings: dict[str, Any] = {
        "vocabulary_size": VOCABULARY, "context": CONTEXT, "parametrization": parametrization.Standard(),
        "compute_dtype": "float32", "parameter_dtype": "float32", "layers": "unroll", "remat": "none", "seed": 0,
    }  # fmt: skip
    return models.create(family, **{**settings, **changes})


def split(model: Any) -> tuple[Any, Any]:
    """(graph, parameters) of a model."""
    return nnx.split(model, nnx.Param)


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """Every equation of a program with how often it runs, those inside loops and calls too.

    Of branches the first: those here are of one product in the order of one platform.
    """
    for equation in jaxpr.eqns:
        yield times, equation
        inside = times * equation.params["length"] if equation.primitive.name == "scan" else times
        inside_it = list(jax.extend.core.jaxprs_in_params(equation.params))
        for inner in inside_it[:1] if equation.primitive.name == "cond" else inside_it:
            yield from equations(inner, inside)


def tokens(batch: int = 2, time: int = CONTEXT) -> Int[Array, "batch time"]:
    """Random tokens, the same every time."""
    return jax.random.randint(jax.random.key(7), (batch, time), 0, VOCABULARY)


def run(model: Any) -> Float[Array, "batch time vocabulary"]:
    """Logits of `tokens()`."""
    graph, parameters = split(model)
    return jit(lambda parameters: nnx.merge(graph, parameters)(tokens()))(parameters)


def loss(graph: Any, parameters: Any, tokens: Int[Array, "batch time"]) -> Float[Array, ""]:
    """Mean cross-entropy of the next token."""
    logits = jax.nn.log_softmax(nnx.merge(graph, parameters)(tokens[:, :-1]))
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1).mean()
