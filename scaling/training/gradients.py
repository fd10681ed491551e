"""The loss of a batch and its gradient, a microbatch at a time."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from scaling.training import states
from scaling.training.setups import Setup

Batch = dict[str, Array]


class Gradient(NamedTuple):
    """Mean loss and gradient over a batch; the mean square of its microbatches' gradients where that is asked for."""

    loss: Array
    of: states.Params
    square: Array | None


def objective(setup: Setup, params: states.Params, batch: Batch, z_loss: Array) -> tuple[Array, Array]:
    """What is minimised over a microbatch, and the loss: means, or weighted sums where the batch has `weights`."""
    return setup.run.task.objective(setup.model(params), batch, setup.options(z_loss))


def gradient(setup: Setup, params: states.Params, batch: Batch, z_loss: Array) -> Gradient:
    """Mean loss and gradient of a batch: Σ w·loss / Σ w over all of it, however it is cut into microbatches."""
    whole, size = setup.run.batch_size, setup.execution.sequences(setup.run.batch_size)
    differentiate = jax.value_and_grad(functools.partial(objective, setup), has_aux=True)
    if size == whole:
        (_, loss), gradients = differentiate(params, batch, z_loss)
        if "weights" in batch:
            loss, gradients = _divided((loss, gradients), batch["weights"].sum())
        return Gradient(loss, gradients, None)
    # Parts take turns at the examples, so that a device's share of the batch has its share of every part.
    parts = jax.tree.map(lambda x: x.reshape(size, whole // size, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Gradient, part: Batch) -> tuple[Gradient, None]:
        (_, loss), gradients = differentiate(params, part, z_loss)
        square = _square(gradients, part) if setup.execution.noise_scale else None
        return jax.tree.map(jnp.add, total, Gradient(loss, gradients, square)), None

    zero = jnp.zeros(())
    sums = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)  # also where parameters are bfloat16
    start = Gradient(zero, sums, zero if setup.execution.noise_scale else None)
    total, _ = jax.lax.scan(add, start, parts)
    count = whole // size
    if "weights" not in batch:  # microbatches are of one size, so that their means count alike
        return _divided(total, count)
    loss, gradients = _divided((total.loss, total.of), batch["weights"].sum())
    return Gradient(loss, gradients, None if total.square is None else total.square / count)


def _square(gradients: states.Params, part: Batch) -> Array:
    """The square of the gradient of a microbatch's own mean."""
    if "weights" in part:
        gradients = _divided(gradients, part["weights"].sum())
    return states.squared_norm(gradients)


def _divided(sums: Any, weight: Array | int) -> Any:
    """Sums over their weight; where all weights are zero the sums, which are zero too."""
    if not isinstance(weight, int):
        weight = jnp.where(weight > 0, weight, 1.0)
    return jax.tree.map(lambda x: x / weight, sums)
