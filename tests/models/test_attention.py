"""The attention seam against arithmetic in float64, and the two positions that act inside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.ops import attention
from tests.models import small


def inputs(groups: int, time: int = 7, heads: int = 4, size: int = 6) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (heads, groups, groups)
    return tuple(jax.random.normal(key, (2, time, n, size)) for key, n in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("block", "causal"), [(7, True), (3, True), (3, False)], ids=["one block", "three, the last short", "all keys"]
)
def test_attention_is_the_formula(
    groups: int, biased: bool, block: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    query, key, value = inputs(groups)
    bias = attention.alibi_bias(4, 7, causal) if biased else None
    result = attention.attention(query, key, value, scale=0.3, bias=bias, causal=causal)

    exact = np.zeros(query.shape)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    slopes = attention.alibi_slopes(4) if biased else [0.0] * 4
    for batch, time, head in np.ndindex(*query.shape[:3]):
        group = head // (4 // groups)  # neighbouring queries share a group of keys
        seen = time + 1 if causal else 7
        distance = np.abs(time - np.arange(seen))
        scores = 0.3 * k[batch, :seen, group] @ q[batch, time, head] - slopes[head] * distance
        weights = np.exp(scores) / np.exp(scores).sum()
        exact[batch, time, head] = weights @ v[batch, :seen, group]
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-5)


def test_long_sequences_are_computed_in_few_blocks() -> None:
    query, key, value = (jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32) for _ in range(3))
    attend = functools.partial(attention.attention, scale=1.0, bias=None, causal=True)
    products = [
        one.outvars[0].aval.shape
        for _, one in small.equations(jax.make_jaxpr(attend)(query, key, value).jaxpr)
        if one.primitive.name == "dot_general"
    ]
    scores = [shape for shape in products if shape[-1] != 8]
    assert scores == [(1, 1, 512, 512 * number) for number in range(1, 9)]  # 9/16 of the square


def test_scores_too_large_for_exp_are_survived() -> None:
    query, key, value = inputs(4)
    result = attention.attention(1e4 * query, key, value, scale=1.0, bias=None, causal=True)
    assert jnp.all(jnp.isfinite(result))
    np.testing.assert_allclose(result[:, 0], value[:, 0], rtol=1e-6)  # the first position sees itself alone


def test_bfloat16_is_multiplied_as_bfloat16_in_both_passes() -> None:
    arrays = tuple(x.astype(jnp.bfloat16) for x in inputs(2))

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attention.attention(query, key, value, scale=0.3, bias=None, causal=True).astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(*arrays)
    products = [one for _, one in small.equations(program.jaxpr) if one.primitive.name == "dot_general"]
    assert len(products) >= 6  # scores and mixture, and two products backward for each
    assert all(operand.aval.dtype == jnp.bfloat16 for product in products for operand in product.invars)
    gradient = small.jit(jax.grad(total, argnums=(0, 1, 2)))
    exact = gradient(*(x.astype(jnp.float32) for x in arrays))
    for one, other in zip(gradient(*arrays), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        assert jnp.linalg.norm(one - other) < 0.03 * jnp.linalg.norm(other)


def test_alibi_slopes_are_the_papers() -> None:
    # Press et al. 2108.12409, section 3: 8 heads 1/2, 1/4, … 1/256; 16 heads start at 1/√2.
    assert attention.alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    np.testing.assert_allclose(attention.alibi_slopes(16), [2 ** (-i / 2) for i in range(1, 17)])
    # 12 heads in their released code: those of 8, then every other one of 16.
    twelve = [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(attention.alibi_slopes(12), twelve)
    assert attention.alibi_slopes(1) == [2.0**-8]


def test_alibi_falls_with_distance() -> None:
    bias = attention.alibi_bias(2, 4, causal=True)
    np.testing.assert_allclose(bias[0, 3], [-3 / 16, -2 / 16, -1 / 16, 0])


def test_rotated_scores_depend_on_distance_alone() -> None:
    size, time = 8, 12
    angles = attention.rotary_angles(time, size)
    query, key = (jax.random.normal(jax.random.key(i), (size,)) for i in range(2))
    everywhere = jnp.ones((1, time, 1, 1))
    turned = [attention.rotate(everywhere * x, angles)[0, :, 0] for x in (query, key)]
    scores = np.asarray(turned[0] @ turned[1].T)
    for distance in range(-time + 1, time):
        along = np.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(scores[0]) > 0.1  # and do depend on it
    np.testing.assert_allclose(scores[0, 0], query @ key, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(turned[0], axis=-1), jnp.linalg.norm(query), rtol=1e-5)


def test_rotary_angles_are_the_papers() -> None:
    # Su et al. 2104.09864, equation 15: θ_i = 10000^(−2(i − 1)/d), position m turned by m·θ_i.
    np.testing.assert_allclose(attention.rotary_angles(3, 4), [[0, 0], [1, 0.01], [2, 0.02]], rtol=1e-6)
