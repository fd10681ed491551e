"""Parts of a model as NVIDIA GPUs want them: time goes into memory traffic there, so gradients read and keep little.

Each equals what it stands for on other devices, beyond rounding. Ratios are of training steps on an H200.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import layout
from jaxtyping import Array, Float, Int

# Width from which norms and gradients are handled as below: narrower models wait for launches, and more, smaller
# kernels cost them more than memory traffic (0.97 ms a step of 0.1 M parameters with them, 0.55 without).
WIDE = 256
FEW_ROWS = 2048  # of a table; a scatter into it waits for itself (a pack of 128 models: 0.9 to 0.1 of 8.9 ms a step)


def in_rows(x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    """x, which lies in memory with the width innermost, as its gradient does.

    XLA would lay the sum of a gradient over sequences along the batch, and with it the stream of all layers.
    """
    return layout.with_layout_constraint(x, layout.Layout(tuple(range(x.ndim))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def split(stack: Float[Array, "depth ..."], depth: int) -> tuple[Float[Array, "..."], ...]:
    """The arrays of a stack, whose gradient is stacked before it is used.

    Else XLA picks it from the gradients of all layers within the optimizer's kernel, at a quarter of the memory's
    speed: 8.7 and 5.0 ms of a step at 350 M parameters.
    """
    return tuple(part.squeeze(0) for part in jax.lax.split(stack, (1,) * depth, axis=0))


def _split_forward(stack: Array, depth: int) -> tuple[tuple[Array, ...], None]:
    return split(stack, depth), None


def _split_backward(depth: int, kept: None, gradients: tuple[Array, ...]) -> tuple[Array]:
    return (jax.lax.optimization_barrier(jnp.stack(gradients)),)


split.defvjp(_split_forward, _split_backward)


def rows(table: Float[Array, "vocabulary width"], indices: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
    """table[indices], whose gradient is a product with indicators and no scatter where the table has few rows."""
    return _few_rows(table, indices) if len(table) <= FEW_ROWS else table[indices]


@jax.custom_vjp
def _few_rows(table: Float[Array, "vocabulary width"], indices: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
    return table[indices]


def _rows_forward(table: Array, indices: Array) -> tuple[Array, tuple[Array, int]]:
    return table[indices], (indices, len(table))


def _rows_backward(kept: tuple[Array, int], gradient: Array) -> tuple[Array, None]:
    indices, count = kept
    chosen = jax.nn.one_hot(indices.reshape(-1), count, dtype=gradient.dtype)
    return jnp.einsum("nv,nd->vd", chosen, gradient.reshape(-1, gradient.shape[-1])), None


_few_rows.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def norm(
    x: Float[Array, "*batch features"], scale: Float[Array, " features"], centred: bool, epsilon: float
) -> Float[Array, "*batch features"]:
    """x / √(mean x² + ε) · scale in float32, after the mean is taken off where `centred`.

    The variance is mean x² − mean² x, both sums in one pass over x.
    """
    return _norm(x, scale, centred, epsilon)[0]


def _norm(x: Array, scale: Array, centred: bool, epsilon: float) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    sums = wide.sum(axis=-1, keepdims=True), jnp.square(wide).sum(axis=-1, keepdims=True)
    # Kept behind a barrier: else XLA reads x for them wherever they are used, and writes float32 arrays of its size.
    total, squares = jax.lax.optimization_barrier(sums)
    mean = total / x.shape[-1] if centred else jnp.zeros_like(total)
    inverse = jax.lax.rsqrt(jnp.maximum(squares / x.shape[-1] - jnp.square(mean), 0.0) + epsilon)
    return (wide - mean) * inverse * scale, (x, scale, mean, inverse)


def _norm_backward(
    centred: bool, epsilon: float, kept: tuple[Array, Array, Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, scale, mean, inverse = kept
    unit = (x.astype(jnp.float32) - mean) * inverse
    of_scale = (gradient * unit).sum(axis=tuple(range(x.ndim - 1)))
    of_unit = gradient * scale
    along = (of_unit * unit).mean(axis=-1, keepdims=True)
    level = of_unit.mean(axis=-1, keepdims=True) if centred else 0.0
    return (inverse * (of_unit - level - along * unit)).astype(x.dtype), of_scale


norm.defvjp(_norm, _norm_backward)


def apart(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, computed by itself: a product that adds to a stream needs a copy of it, since its gradient needs it too."""
    return jax.lax.optimization_barrier(x)


_SLOPE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jax.nn.gelu` in its tanh form, computed in float32 as x · σ(2u): 0.88 of its time with tanh."""
    wide = x.astype(jnp.float32)
    return (wide * _gate(wide)).astype(x.dtype)


def _gate(x: Array) -> Array:
    return jax.nn.sigmoid(_SLOPE * (x + _CUBIC * x * x * x))


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    gate = _gate(wide)
    slope = gate + wide * gate * (1 - gate) * _SLOPE * (1 + 3 * _CUBIC * wide * wide)
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
