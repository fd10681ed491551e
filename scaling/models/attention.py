"""Causal attention behind one function, and the positions that act inside it: rotary and ALiBi."""

import functools
import math
from typing import Any

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
    query = query * scale
    # The fifth axis costs a tenth of the training step on CPU where each head has keys of its own, so it is left out.
    shared = "" if heads == groups else "r"
    if shared:
        query = query.reshape(batch, time, groups, heads // groups, size)
    scores = einsum_float32(f"btg{shared}k,bsgk->bg{shared}ts", query, key)
    if bias is not None:
        scores += bias.reshape(*scores.shape[1:])
    causal = jnp.tril(jnp.ones((time, time), bool))
    scores += jnp.where(causal, 0.0, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Divided after the mixture: `size` divisions a query and not `time`: 5 to 17% off the step on CPU.
    total = jnp.moveaxis(weights.sum(axis=-1), -1, 1)[..., None]
    mixed = einsum_float32(f"bg{shared}ts,bsgk->btg{shared}k", weights.astype(value.dtype), value) / total
    return mixed.astype(value.dtype).reshape(batch, time, heads, size)


def einsum_float32(letters: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The einsum of two arrays of one dtype, its sums given in float32; gradients are computed in their own dtype.

    Left to itself the backward pass would multiply float32 by bfloat16, for which accelerators have no fast matmul.
    """
    return jnp.einsum(letters, a, b) if a.dtype == jnp.float32 else _einsum_float32(letters, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_float32(letters: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _forward(letters: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Float[Array, "..."], Any]:
    return _einsum_float32(letters, a, b), (a, b)


def _backward(letters: str, operands: Any, gradient: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    pull = jax.vjp(functools.partial(jnp.einsum, letters), *operands)[1]
    return pull(gradient.astype(operands[0].dtype))


_einsum_float32.defvjp(_forward, _backward)


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
