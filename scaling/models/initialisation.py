"""Initial values of the weights: normal numbers that depend on the seed and on each weight's name alone."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from scaling import tables

_BLOCK = 1024  # normal values drawn from one key
_DRAWN_TOGETHER = (
    2**28
)  # above it, weights are drawn one by one: sharded compilers do better, compile time matters less


@functools.partial(jax.jit, static_argnums=(1, 2))
def normal(key: jax.Array, weights: tuple[tables.Weight, ...], stds: tuple[float, ...]) -> dict[str, Array]:
    """Initial float32 values by weight name; each block depends on key, name, layer and its place in the layer alone.

    So neither the other weights, nor the depth, nor the order of creation change a value, beyond its last bit. All
    blocks are drawn at once because each random generator takes 0.5 s to compile on CPU, and eight weights are few.
    """
    values: dict[str, Array] = {}
    together = sum(weight.size for weight in weights) <= _DRAWN_TOGETHER
    for group in (weights,) if together else tuple((weight,) for weight in weights):
        blocks = [math.ceil(math.prod(weight.shape) / _BLOCK) for weight in group]
        places = np.concatenate([_places(weight, count) for weight, count in zip(group, blocks, strict=True)])
        drawn = jax.vmap(lambda place: _block(key, place))(places)
        start = 0
        for weight, count in zip(group, blocks, strict=True):
            layers, size = max(weight.stack, 1), math.prod(weight.shape)
            part = drawn[start : start + layers * count].reshape(layers, count * _BLOCK)[:, :size]
            values[weight.name] = stds[weights.index(weight)] * part.reshape(weight.full_shape)
            start += layers * count
    return values


def _places(weight: tables.Weight, blocks: int) -> np.ndarray:
    """(name, layer, block) of every block of a weight, as unsigned integers; names by CRC-32."""
    layers = np.repeat(np.arange(max(weight.stack, 1)), blocks)
    names = np.full_like(layers, zlib.crc32(weight.name.encode()))
    return np.stack([names, layers, np.tile(np.arange(blocks), max(weight.stack, 1))], axis=1).astype(np.uint32)


def _block(key: jax.Array, place: UInt[Array, "3"]) -> Float[Array, " block"]:
    for part in range(3):
        key = jax.random.fold_in(key, place[part])
    return jax.random.normal(key, (_BLOCK,), jnp.float32)
