"""What a step changes: parameters and optimizer state, as dictionaries of arrays by weight name, and their layout."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from scaling.config import families
from scaling.training import mesh

Params = dict[str, Array]


class State(NamedTuple):
    """Parameters and optimizer state, keyed by weight name."""

    params: Params
    optimizer: Any


def flat(state: nnx.State) -> Params:
    """An NNX state as a dictionary keyed by dotted weight name."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def initial(model: nnx.Module) -> Params:
    """The parameters of a model as it was made."""
    return flat(nnx.state(model, nnx.Param))


def unflat(params: Mapping[str, Array]) -> nnx.State:
    """The inverse of `flat`."""
    return nnx.from_flat_state({tuple(name.split(".")): value for name, value in params.items()})


def sharding(shapes: State, weights: Mapping[str, families.Weight], devices: jax.sharding.Mesh) -> Any:
    """Shards of a state: a parameter and what the optimizer keeps in its shape go by the table, the rest is whole."""

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in weights]
        if names and leaf.shape == weights[names[-1]].full_shape:
            return mesh.weight_sharding(devices, weights[names[-1]])
        return mesh.replicated(devices)

    return jax.tree_util.tree_map_with_path(place, shapes)


def norm(tree: Any) -> Array:
    """The square root of the sum of squares of all arrays."""
    return jnp.sqrt(squared_norm(tree))


def squared_norm(tree: Any) -> Array:
    """The sum of squares of all arrays, in float32."""
    return sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))
