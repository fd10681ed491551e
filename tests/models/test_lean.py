"""What is written for GPUs against what it stands for, values and gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.ops import kernels, lean, select
from scaling.tasks import cross_entropy
from tests.models import small


def both(first: Callable[..., Any], second: Callable[..., Any], *arrays: jax.Array) -> None:
    """Hold two functions of arrays to each other, and their gradients."""

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(function: Callable[..., Any], *arrays: jax.Array) -> Any:
        value, pull = jax.vjp(function, *arrays)
        return value, pull(jax.random.normal(jax.random.key(9), value.shape))

    (value, gradients), (expected, expected_gradients) = (with_gradients(f, *arrays) for f in (first, second))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("centred", [True, False])
def test_norms(centred: bool) -> None:
    def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True) if centred else x
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale

    both(lambda x, scale: lean.norm(x, scale, centred, 1e-6), plain, 3 + normal(2, 5, 16), 1 + normal(16, seed=1))


def test_gelu() -> None:
    both(lean.gelu, lambda x: jax.nn.gelu(x, approximate=True), 3 * normal(50))


def test_rows() -> None:
    indices = jax.random.randint(jax.random.key(1), (4, 6), 0, 10)
    both(lambda table: lean.rows(table, indices), lambda table: table[indices], normal(10, 8))


def test_the_logarithm_of_the_partition_function() -> None:
    shifts = jnp.array([0.0, 1e4, -1e4])[:, None, None]
    both(cross_entropy.log_partition, lambda x: jax.nn.logsumexp(x, axis=-1), shifts + 5 * normal(7, 33))


def test_split() -> None:
    stack = normal(3, 4, 5)
    both(lambda x: sum(part * i for i, part in enumerate(lean.split(x, 3))), lambda x: x[1] + 2 * x[2], stack)


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_a_wide_model_on_a_gpu_is_the_model(family: str) -> None:
    """All parts together, traced as for a GPU and run here."""
    wide = small.FAMILIES[family].edit({"width": lean.WIDE})
    plain = small.create(wide)
    other = small.create(wide, attend=kernels.Attend("xla", kernels.Chip("cuda", 9.0)))
    assert other.ops is select.WIDE_ON_CUDA
    assert plain.ops is select.PLAIN
    results = []
    for model in (plain, other):
        graph, parameters = small.split(model)
        gradient = small.jit(jax.value_and_grad(functools.partial(small.loss, graph)))
        results.append(gradient(parameters, small.tokens()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *results)
