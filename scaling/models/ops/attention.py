"""Attention behind one function, and the positions that act inside it: rotary and ALiBi."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scaling.models.ops import products


def attention(
    query: Float[Array, "batch time heads size"],
    key: Float[Array, "batch time groups size"],
    value: Float[Array, "batch time groups size"],
    *,
    scale: float,
    bias: Float[Array, "heads time time"] | None,
    causal: bool,
) -> Float[Array, "batch time heads size"]:
    """softmax(scale · query · keyᵀ + bias) · value over all keys (Vaswani et al. 1706.03762).

    If `causal`, over those up to each query. Each group of keys and values serves heads / groups queries (Ainslie et
    al. 2305.13245). Softmax in float32.
    Causal attention takes a block of queries at a time, against the keys up to its end alone: what is masked is for the
    greater part not computed. At context 256 on CPU forward and backward take 0.6–0.7 of the time of the whole square
    (heads of 32 to 64), less than PyTorch's flash attention there (33 to its 37 ms, 59 to its 61, a core of a Zen 3).
    """
    batch, time, heads, size = query.shape
    groups = key.shape[2]
    # A fifth axis costs a tenth of the training step on CPU where each head has keys of its own, so it is left out.
    shared = (heads // groups,) if heads > groups else ()
    # Heads before time: copied once here, or else by XLA for every product, 0.8 of the time at one block.
    query = jnp.moveaxis((query * scale).reshape(batch, time, groups, *shared, size), 1, -2)
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    size_of_block = max(BLOCK, math.ceil(time / BLOCKS)) if causal else time
    mixed = []
    for start in range(0, time, size_of_block):
        end = min(start + size_of_block, time)
        part = None if bias is None else bias[:, start:end, :end].reshape(groups, *shared, end - start, end)
        mixed.append(_block(query[..., start:end, :], key[:, :, :end], value[:, :, :end], part, causal))
    return jnp.moveaxis(jnp.concatenate(mixed, axis=-2), -2, 1).reshape(batch, time, heads, size)


BLOCK = 64  # queries of a block: with 32 or 128 attention takes 1.1 to 1.2 times as long on CPU
BLOCKS = 8  # at most, since each is compiled by itself


def _block(
    query: Float[Array, "batch groups *shared queries size"],
    key: Float[Array, "batch groups keys size"],
    value: Float[Array, "batch groups keys size"],
    bias: Float[Array, "groups *shared queries keys"] | None,
    causal: bool,
) -> Float[Array, "batch groups *shared queries size"]:
    """What the last queries of a sequence, already scaled, take from its keys and values; if `causal` up to each."""
    queries, keys = query.shape[-2], key.shape[-2]
    letters = "bgrt" if query.ndim > key.ndim else "bgt"
    scores = products.einsum_float32(f"{letters}k,bgsk->{letters}s", query, key)
    if bias is not None:
        scores += bias
    if causal:
        seen = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
        scores += jnp.where(seen, 0.0, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = products.einsum_float32(f"{letters}s,bgsk->{letters}k", weights.astype(value.dtype), value)
    # Divided after the mixture: `size` divisions a query and not `time`: 5 to 17% off the step on CPU.
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(−8 i / heads), i = 1 … heads, where heads is a power of two (Press et al. 2108.12409).

    Else those of the power of two below, followed by every other one of the power above (their released code).
    """
    below = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2 ** (-8 * i / (2 * below)) for i in range(1, 2 * below + 1, 2)]
    return slopes + between[: heads - below]


def alibi_bias(heads: int, time: int, causal: bool) -> Float[Array, "heads time time"]:
    """−slope · distance between query and key, to be added to the scores (Press et al. 2108.12409).

    Of later keys the distance is negative if `causal`, where a mask hides them, else as that of earlier ones.
    """
    positions = jnp.arange(time, dtype=jnp.float32)
    distance = positions[:, None] - positions[None, :]
    if not causal:
        distance = jnp.abs(distance)
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
