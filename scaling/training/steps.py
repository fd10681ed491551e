"""Many optimizer steps in one dispatch: what each needs from the host, and the loop over them on the device."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scaling import config
from scaling.training import gradients, states, updates
from scaling.training.setups import Setup


class Dispatch(NamedTuple):
    """What each member does in a dispatch: the first `steps` of the steps given, each with a batch of its own.

    `data` are the batches, by name, or the places of their examples in arrays that are on the device. `clip` bounds the
    norm of the gradient (infinity: no bound), `z_loss` weighs log²Z. `seed` and `first`, the number of the first step,
    are there for tasks that draw.
    """

    data: Any  # members × steps × batch × …
    rates: Any  # members × steps
    decays: Any  # members × steps
    clip: Any  # members
    z_loss: Any  # members
    steps: Any  # members
    seed: Any = None  # members
    first: Any = None  # members


def axes(dimensions: int) -> tuple[str | None, ...]:
    """What the dimensions of an array of a dispatch mean: members, steps, batch, and whatever an example has."""
    return (None, None, "batch", *(None,) * dimensions)[:dimensions]


def dispatch(
    run: config.Run, data: Any, rates: np.ndarray, decays: np.ndarray, length: int, first: int = 0
) -> Dispatch:
    """One run's share of a dispatch, without the axis of members: as many steps as `rates`, padded to `length`."""

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])

    draws = run.task.draws
    return Dispatch(
        data=jax.tree.map(pad, data) if isinstance(data, Mapping) else pad(data.astype(np.int32)),
        rates=pad(np.asarray(rates, np.float32)),
        decays=pad(np.asarray(decays, np.float32)),
        clip=np.float32(np.inf if run.clip is None else run.clip),
        z_loss=np.float32(run.z_loss),
        steps=np.int32(len(rates)),
        seed=np.uint32(run.seed) if draws else None,
        first=np.int32(first) if draws else None,
    )


def together(members: Sequence[Dispatch]) -> Dispatch:
    """The dispatch of a pack."""
    return jax.tree.map(lambda *parts: np.stack(parts), *members)


def step(
    setup: Setup,
    state: states.State,
    batch: gradients.Batch,
    rate: Array,
    decay: Array,
    clip: Array,
    z_loss: Array,
) -> tuple[states.State, updates.Metrics]:
    """One step on a batch."""
    return updates.update(setup, state, gradients.gradient(setup, state.params, batch, z_loss), rate, decay, clip)


def train(
    setup: Setup, state: states.State, resident: gradients.Batch, dispatch: Dispatch
) -> tuple[states.State, updates.Metrics]:
    """One member's steps; rows of the metrics beyond them are zero.

    Under vmap a member that has finished its steps is unchanged while others continue.
    """

    def body(index: Array, carry: tuple[states.State, updates.Metrics]) -> tuple[states.State, updates.Metrics]:
        state, metrics = carry
        batch = _drawn(setup, _read(setup, resident, jax.tree.map(lambda x: x[index], dispatch.data)), dispatch, index)
        numbers = (dispatch.rates[index], dispatch.decays[index], dispatch.clip, dispatch.z_loss)
        state, values = step(setup, state, batch, *numbers)
        return state, jax.tree.map(lambda column, value: column.at[index].set(value), metrics, values)

    optional = updates.Metrics._field_defaults
    measured = [name for name in updates.Metrics._fields if setup.execution.noise_scale or name not in optional]
    empty = updates.Metrics(**{name: jnp.zeros(len(dispatch.rates)) for name in measured})
    return jax.lax.fori_loop(0, dispatch.steps, body, (state, empty))


@jax.named_scope("data")
def _read(setup: Setup, resident: gradients.Batch, data: Any) -> gradients.Batch:
    """A batch: as given, or read from arrays on the device: rows, or windows of a ring of tokens."""
    layout = setup.layout
    if not layout.resident:
        return data
    if not layout.window:
        return {name: array[data] for name, array in resident.items()}
    tokens = resident["tokens"]
    return {"tokens": tokens[(data[:, None] + jnp.arange(layout.window)) % len(tokens)].astype(jnp.int32)}


@jax.named_scope("data")
def _drawn(setup: Setup, batch: gradients.Batch, dispatch: Dispatch, index: Array) -> gradients.Batch:
    """A batch with what the task draws, from (seed, step, place in the batch)."""
    if not setup.run.task.draws:
        return batch
    return draw(setup, batch, dispatch.seed, dispatch.first + index, jnp.arange(setup.run.batch_size))


DRAWS = 0x7461736B  # keeps the keys of draws apart from those of initial values, which follow from the same seed


def draw(setup: Setup, batch: gradients.Batch, seed: Array, turn: Array | int, places: Array) -> gradients.Batch:
    """A batch with what the task draws of each example, from (seed, turn, place)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DRAWS), turn)
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    return jax.vmap(setup.run.task.draw)(batch, keys)
