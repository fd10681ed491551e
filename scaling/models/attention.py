"""Causal attention behind one function, and the positions that act inside it: rotary and ALiBi."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(
    query: Float[Array, "batch time heads size"],
    key: Float[Array, "batch time groups size"],
    value: Float[Array, "batch time groups size"],
    *,
    scale: float,
    bias: Float[Array, "heads time time"] | None,
) -> Float[Array, "batch time heads size"]:
    """softmax(scale · query · keyᵀ + bias) · value over the keys up to each query (Vaswani et al. 1706.03762).

    Each group of keys and values serves heads / groups queries (Ainslie et al. 2305.13245). Softmax in float32.
    The one place to put another implementation.
    """
    batch, time, heads, size = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, time, groups, heads // groups, size)
    scores = jnp.einsum("btgrk,bsgk->bgrts", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores += bias.reshape(groups, heads // groups, time, time)
    causal = jnp.tril(jnp.ones((time, time), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1).astype(value.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, value).reshape(batch, time, heads, size)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(−8 i / heads), i = 1 … heads, where heads is a power of two (Press et al. 2108.12409).

    Else those of the power of two below, followed by every other one of the power above (their released code).
    """
    below = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2 ** (-8 * i / (2 * below)) for i in range(1, 2 * below + 1, 2)]
    return slopes + between[: heads - below]


def alibi_bias(heads: int, time: int) -> Float[Array, "heads time time"]:
    """−slope · distance between query and key, to be added to the scores (Press et al. 2108.12409)."""
    positions = jnp.arange(time, dtype=jnp.float32)
    distance = positions[:, None] - positions[None, :]
    return -jnp.asarray(alibi_slopes(heads), jnp.float32)[:, None, None] * distance


def rotary_angles(time: int, size: int, base: float = 10000.0) -> Float[Array, "time half"]:
    """position · base^(−2 i / size), i < size / 2 (Su et al. 2104.09864, section 3.2.2)."""
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.arange(time, dtype=jnp.float32)[:, None] * frequencies


def rotate(
    x: Float[Array, "batch time heads size"], angles: Float[Array, "time half"]
) -> Float[Array, "batch time heads size"]:
    """Each pair (x_i, x_{i + size/2}) turned by its angle, so that scores depend on distances alone.

    The paper pairs neighbours; halves are the same up to a fixed permutation of the coordinates and need no strides.
    """
    cosine = jnp.cos(angles)[None, :, None, :].astype(x.dtype)
    sine = jnp.sin(angles)[None, :, None, :].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
