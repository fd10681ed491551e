"""From a gradient to the next state: clipping, the optimizer's direction, learning rates, weight decay."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scaling.training import gradients, noise, states
from scaling.training.setups import Setup


class Metrics(NamedTuple):
    """One value a step: the loss, and norms over all parameters; `update_ratio` is the update's over the parameters'.

    With `execution.noise_scale` also unbiased estimates of |G|² and tr Σ of the gradient of an example, see `noise`.
    """

    loss: Float[Array, "members steps"]
    gradient_norm: Float[Array, "members steps"]
    param_norm: Float[Array, "members steps"]
    update_ratio: Float[Array, "members steps"]
    gradient_squared: Float[Array, "members steps"] | None = None
    gradient_variance: Float[Array, "members steps"] | None = None


@jax.named_scope("optimizer")
def update(
    setup: Setup, state: states.State, gradient: gradients.Gradient, rate: Array, decay: Array, clip: Array
) -> tuple[states.State, Metrics]:
    """The state after a step: p − rate · multiplier · direction − decay · p, of a gradient clipped to norm `clip`."""
    norm = states.norm(gradient.of)
    squared, variance = None, None
    if gradient.square is not None:
        sizes = setup.execution.sequences(setup.run.batch_size), setup.run.batch_size
        squared, variance = noise.moments(gradient.square, states.squared_norm(gradient.of), *sizes)
    scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
    clipped = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), gradient.of, state.params)
    directions, optimizer = setup.direction.update(clipped, state.optimizer, state.params)
    updates = {
        name: -(rate * setup.multipliers[name]) * step - (decay * state.params[name] if setup.decayed(name) else 0.0)
        for name, step in directions.items()
    }
    params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
    size = states.norm(state.params)
    ratio = states.norm(updates) / size
    return states.State(params, optimizer), Metrics(gradient.loss, norm, size, ratio, squared, variance)
