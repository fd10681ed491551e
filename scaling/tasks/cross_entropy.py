"""Losses in nats a token: pure functions of logits and targets, or of features and a head whose logits never all exist.

A head is a function `head(matrix, features)` that gives float32 logits; what it multiplies by comes as an argument so
that its gradient can be summed over chunks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Head = Callable[[Array, Array], Array]


def cross_entropy(
    logits: Float[Array, "*batch vocabulary"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """−log p(target) of every token in nats, and log Z, the logarithm of the softmax's denominator."""
    log_z = log_partition(logits) if jax.default_backend() == "gpu" else jax.nn.logsumexp(logits, axis=-1)
    # A comparison and not a gather, whose gradient is a scatter over the logits; as fast on CPU.
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    return log_z - jnp.where(hit, logits, 0.0).sum(axis=-1), log_z


@jax.custom_vjp
def log_partition(logits: Float[Array, "*batch vocabulary"]) -> Float[Array, "*batch"]:
    """`jax.nn.logsumexp` over the last axis, for GPUs, where XLA reads the logits twice for it and once for this.

    A maximum and a sum of exponentials relative to it can be joined with another pair (Milakov and Gimelshein
    1805.02867).
    """
    return _log_partition(logits)[0]


def _log_partition(logits: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (most, total), (other, more) = a, b
        larger, factor = most > other, jnp.exp(-jnp.abs(most - other))
        return jnp.maximum(most, other), jnp.where(larger, total, more) + factor * jnp.where(larger, more, total)

    start = jnp.asarray(jnp.finfo(logits.dtype).min), jnp.zeros((), logits.dtype)
    most, total = jax.lax.reduce((logits, jnp.ones_like(logits)), start, join, (logits.ndim - 1,))
    return most + jnp.log(total), (logits, most, total)


def _log_partition_backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array]:
    logits, most, total = kept
    return ((gradient / total)[..., None] * jnp.exp(logits - most[..., None]),)


log_partition.defvjp(_log_partition, _log_partition_backward)


def token_losses(
    head: Head,
    matrix: Float[Array, "..."],
    features: Float[Array, "batch context width"],
    targets: Int[Array, "batch context"],
    chunk: int | None,
) -> Float[Array, "batch context"]:
    """Nats of every token; the logits of about `chunk` tokens exist at once (None: of all)."""
    parts = _parts(targets.shape, chunk)
    if parts == 1:
        return cross_entropy(head(matrix, features), targets)[0]
    nats = jax.lax.map(
        lambda part: cross_entropy(head(matrix, part[0]), part[1])[0], _split(parts, features, targets, None)
    )
    return _join(nats, targets.shape[1])


def mean_loss(
    head: Head,
    matrix: Float[Array, "..."],
    features: Float[Array, "batch context width"],
    targets: Int[Array, "batch context"],
    z_loss: Float[Array, ""] | float,
    chunk: int | None,
    weights: Float[Array, "batch context"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What a step lowers, mean nats + z_loss · mean log²Z, and mean nats, which has no gradient.

    With `weights` both are weighted sums in place of means.
    The logits of about `chunk` tokens exist at once (None: of all). Then the gradient is taken in the forward pass, as
    each chunk passes, so that no logits are computed twice (Hsu et al. 2410.10989, section 3.2), and the gradient of
    the matrix is summed over chunks in float32. `z_loss` is a constant of the run and gets no gradient.
    """
    parts = _parts(targets.shape, chunk)
    if parts == 1:
        nats, log_z = cross_entropy(*_in_one_row(head, matrix, features, targets))
        mean, square = _reduced(nats, weights), _reduced(jnp.square(log_z), weights)
        return mean + z_loss * square, jax.lax.stop_gradient(mean)
    rest = features, targets, weights, jnp.asarray(z_loss)
    objective, mean = _chunked(head, parts, matrix.astype(jnp.float32), *rest)
    return objective, jax.lax.stop_gradient(mean)


def _reduced(values: Float[Array, " tokens"], weights: Float[Array, "batch context"] | None) -> Float[Array, ""]:
    return values.mean() if weights is None else (values * weights.reshape(-1)).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    head: Head, parts: int, matrix: Array, features: Array, targets: Array, weights: Array | None, z_loss: Array
) -> tuple[Array, Array]:
    def add(total: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, total, _terms(head, targets.size, z_loss, matrix, *part)), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), _split(parts, features, targets, weights))[0]


def _forward(
    head: Head, parts: int, matrix: Array, features: Array, targets: Array, weights: Array | None, z_loss: Array
) -> tuple[tuple[Array, Array], Any]:
    terms = functools.partial(_terms, head, targets.size, z_loss)
    gradient = jax.value_and_grad(terms, argnums=(0, 1), has_aux=True)
    low = matrix.astype(features.dtype)  # once, and not for every chunk

    def add(carry: Any, part: Any) -> tuple[Any, Array]:
        values, (of_matrix, of_features) = gradient(low, *part)
        return jax.tree.map(jnp.add, carry, (values, of_matrix)), of_features

    zero = ((jnp.zeros(()), jnp.zeros(())), jnp.zeros_like(matrix))
    (values, of_matrix), of_features = jax.lax.scan(add, zero, _split(parts, features, targets, weights))
    return values, (of_matrix, _join(of_features, targets.shape[1]))


def _backward(
    head: Head, parts: int, gradients: tuple[Array, Array], upstream: tuple[Array, Array]
) -> tuple[Array, Array, None, None, None]:
    of_matrix, of_features = gradients
    return of_matrix * upstream[0], of_features * upstream[0].astype(of_features.dtype), None, None, None


_chunked.defvjp(_forward, _backward)


def _terms(
    head: Head,
    tokens: int,
    z_loss: Array,
    matrix: Array,
    features: Array,
    targets: Array,
    weights: Array | None,
) -> tuple[Array, Array]:
    """A chunk's share of the objective and of the mean. Positions that fill up the last chunk have target −1."""
    nats, log_z = cross_entropy(*_in_one_row(head, matrix, features, targets))
    real = targets.reshape(-1) >= 0

    def share(values: Array) -> Array:
        if weights is None:
            return jnp.where(real, values, 0.0).sum() / tokens
        return jnp.where(real, weights.reshape(-1) * values, 0.0).sum()

    mean = share(nats)
    return mean + z_loss * share(jnp.square(log_z)), mean


def _in_one_row(head: Head, matrix: Array, features: Array, targets: Array) -> tuple[Array, Array]:
    """Logits and targets with all tokens along one axis, or XLA on GPUs reads the logits once more for every shape."""
    return head(matrix, features.reshape(-1, features.shape[-1])), targets.reshape(-1)


def _parts(shape: tuple[int, ...], chunk: int | None) -> int:
    """Into how many chunks of positions a batch is cut. All sequences take part in each, since devices share them."""
    batch, context = shape
    return 1 if chunk is None else math.ceil(context / max(1, min(context, chunk // batch)))


def _split(parts: int, features: Array, targets: Array, weights: Array | None) -> tuple[Array, Array, Array | None]:
    """(parts, batch, positions, …) of each, the end filled with zeros and targets of −1."""
    batch, context = targets.shape
    positions = math.ceil(context / parts)
    fill = parts * positions - context

    def split(array: Array, value: int) -> Array:
        if fill:
            array = jnp.pad(array, ((0, 0), (0, fill), *((0, 0),) * (array.ndim - 2)), constant_values=value)
        return jnp.moveaxis(array.reshape(batch, parts, positions, *array.shape[2:]), 1, 0)

    return split(features, 0), split(targets, -1), None if weights is None else split(weights, 0)


def _join(chunks: Array, context: int) -> Array:
    """The inverse of `_split` for one array."""
    chunks = jnp.moveaxis(chunks, 0, 1)
    return chunks.reshape(chunks.shape[0], -1, *chunks.shape[3:])[:, :context]
