"""Products of matrices whose gradients are multiplied in the order that is fastest on each device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def product(x: Float[Array, "n inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "n outputs"]:
    """x @ weight, whose gradient for the weight is multiplied on CPU in the order that is fastest there."""
    return x @ weight


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _product_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = operands
    of_weight = jax.lax.platform_dependent(x, gradient, cpu=_weight_gradient_on_cpu, default=lambda x, g: x.T @ g)
    return gradient @ weight.T, of_weight


product.defvjp(_product_forward, _product_backward)


def _weight_gradient_on_cpu(
    x: Float[Array, "n inputs"], gradient: Float[Array, "n outputs"]
) -> Float[Array, "inputs outputs"]:
    """xᵀ @ gradient, multiplied with the wider of the two on the right; the barrier keeps XLA from turning it again."""
    if x.shape[1] > gradient.shape[1]:  # 81–106 GFLOP/s where xᵀ @ gradient has 51–91, at widths 64 to 512 (Zen 4)
        return jax.lax.optimization_barrier(gradient.T @ x).T
    return x.T @ gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(letters: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The einsum of two arrays of one dtype, its sums given in float32; gradients are computed in their own dtype.

    Left to itself the backward pass would multiply float32 by bfloat16, for which accelerators have no fast matmul; and
    on CPU it would make narrow results of wide products.
    """
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _forward(letters: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Float[Array, "..."], Any]:
    return einsum_float32(letters, a, b), (a, b)


def _backward(letters: str, operands: Any, gradient: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    a, b = operands
    given, result = letters.split("->")
    of_a, of_b = given.split(",")
    gradient = gradient.astype(a.dtype)
    left = jnp.einsum(f"{result},{of_b}->{of_a}", gradient, b)
    (first, x), (second, y) = sorted([(of_a, a), (result, gradient)], key=lambda pair: of_b[-1] not in pair[0])
    product = functools.partial(jnp.einsum, f"{first},{second}->{of_b}")
    if a.dtype != jnp.float32 or b.shape[-1] >= b.shape[-2]:
        return left, product(x, y)
    # The transpose of b's gradient, which is wider, takes half the time on CPU for 64 queries and 256 keys of size 32.
    wide = functools.partial(jnp.einsum, f"{first},{second}->{of_b[:-2]}{of_b[-1]}{of_b[-2]}")

    def turned(x: Array, y: Array) -> Array:
        return jax.lax.optimization_barrier(wide(x, y)).swapaxes(-1, -2)

    return left, jax.lax.platform_dependent(x, y, cpu=turned, default=product)


einsum_float32.defvjp(_forward, _backward)
