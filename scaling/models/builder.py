"""How a module of any family gets its parameters: by name, from the family's table of weights."""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from scaling import parametrization as parametrizations
from scaling import tables
from scaling.models import initialisation, stacking
from scaling.models.ops import kernels, select

# Lays an array out over the mesh for its use, and its gradient as it is stored, given what each dimension means: an
# axis of the table of weights, "batch", or None where it is whole.
Place = Callable[[Array, tuple[str | None, ...]], Array]


class Builder:
    """Makes the parameters of one model from its table of weights, and carries how the model is to run.

    `within` gives the builder of a submodule: `builder.within("attention").param("query")` is `attention.query` of the
    table. Parameters are always stacked over layers, so `layers` and `remat` change neither the tree nor its values.
    """

    def __init__(
        self,
        family: tables.Family,
        *,
        vocabulary_size: int,
        context: int,
        parametrization: parametrizations.Parametrization,
        compute_dtype: DTypeLike,
        parameter_dtype: DTypeLike,
        layers: stacking.Layers,
        remat: stacking.Remat,
        seed: int | jax.Array,
        attend: kernels.Attend | None = None,
        place: Place | None = None,
    ):
        self.family = family
        self.parametrization = parametrization
        self.dtype = jnp.dtype(compute_dtype)
        self.parameter_dtype = jnp.dtype(parameter_dtype)
        self.layers: stacking.Layers = layers
        self.remat: stacking.Remat = remat
        self.attend = attend or kernels.Attend()
        self.ops = select.for_device(self.attend.chip, family.width)
        self.place: Place = place or _unplaced
        self.prefix = ""
        self.table = {weight.name: weight for weight in family.weights(vocabulary_size, context)}
        drawn = [weight for weight in self.table.values() if weight.role != "vector"]
        values = initialisation.normal(
            seed if isinstance(seed, jax.Array) else jax.random.key(seed),
            tuple(drawn),
            tuple(parametrization.init_std(weight, family) for weight in drawn),
        )
        # Every device draws whole weights and keeps its part: the blocks of random numbers lie across any other split.
        self.values = {name: self.place(value, (None,) * value.ndim) for name, value in values.items()}

    def within(self, name: str) -> "Builder":
        """The same builder inside the submodule `name`."""
        inner = copy.copy(self)
        inner.prefix = f"{self.prefix}{name}."
        return inner

    def has(self, name: str) -> bool:
        """Whether the table holds a weight, or a submodule, of this name here."""
        full = self.prefix + name
        return full in self.table or any(other.startswith(full + ".") for other in self.table)

    def param(self, name: str) -> nnx.Param:
        """The parameter `name`: normal values or a vector's fill. Raises ValueError for a name that the table lacks."""
        full = self.prefix + name
        if full not in self.table:
            raise ValueError(f"{full!r} is not in the table of weights; add it to {type(self.family).__name__}.weights")
        weight = self.table[full]
        if weight.role == "vector":
            values = jnp.full(weight.full_shape, weight.fill, self.parameter_dtype)
        else:
            values = self.values[full].astype(self.parameter_dtype)
        return nnx.Param(values, axes=weight.axes, learns=weight.learns)

    def optional(self, name: str) -> nnx.Param | None:
        """The parameter `name` where the table has it, else None."""
        return self.param(name) if self.has(name) else None


def _unplaced(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Where arrays lie when no one says: the compiler decides."""
    return x
