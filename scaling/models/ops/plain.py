"""The operations of `select.Ops` as XLA compiles them well wherever nothing better is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def norm(
    x: Float[Array, "*batch features"], scale: Float[Array, " features"], centred: bool, epsilon: float
) -> Float[Array, "*batch features"]:
    """x / √(mean x² + ε) · scale in float32, after the mean is taken off where `centred`."""
    x = x.astype(jnp.float32)
    if centred:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon) * scale


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its tanh form, as in GPT-2 (Hendrycks and Gimpel 1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def rows(table: Float[Array, "vocabulary width"], indices: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
    """table[indices]."""
    return table[indices]


def split(stack: Float[Array, "depth ..."], depth: int) -> list[Float[Array, "..."]]:
    """The arrays of a stack. The gradient is one concatenation, where indexing adds up arrays of the full stack."""
    return [part.squeeze(0) for part in jax.lax.split(stack, (1,) * depth, axis=0)]


def same(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x."""
    return x
