"""What every family shares: parameters made from the table of weights, norms, stacked layers, the language model."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from scaling import families
from scaling import parametrization as parametrizations

Layers = Literal["scan", "unroll"]
Remat = Literal["none", "full", "dots"]
Tree = TypeVar("Tree")

# What the backward pass may keep of a layer: nothing, or its matmuls with weights (attention has batch dimensions).
_SAVEABLE = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Builder:
    """Makes the parameters of one model from its table of weights, and carries how the model is to run.

    `prefix` is the module being built: `builder.within("attention").param("query")` is `attention.query` in the table.
    """

    family: families.Family
    table: Mapping[str, families.Weight]
    parametrization: parametrizations.Parametrization
    key: jax.Array
    compute_dtype: DTypeLike
    parameter_dtype: DTypeLike
    layers: Layers
    remat: Remat
    prefix: str = ""

    @classmethod
    def of(
        cls, family: families.Family, *, vocabulary_size: int, context: int, seed: int | jax.Array, **settings: Any
    ) -> Self:
        """A builder for a family at one vocabulary and context; `settings` are the remaining fields."""
        table = {weight.name: weight for weight in family.weights(vocabulary_size, context)}
        key = jax.random.key(seed) if isinstance(seed, int) else seed
        return cls(family=family, table=table, key=key, **settings)

    def within(self, name: str) -> Self:
        """The same builder inside the submodule `name`."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """Whether the table holds a weight, or a module, of this name here."""
        full = self.prefix + name
        return full in self.table or any(other.startswith(full + ".") for other in self.table)

    def param(self, name: str) -> nnx.Param:
        """The parameter `name` of the table: normal values, or a vector's fill; all layers of a stack in one array.

        A layer's values depend on the seed, the weight's name and the layer's index alone: neither the order of
        creation nor the depth changes them. Raises ValueError for a name that the table lacks.
        """
        full = self.prefix + name
        if full not in self.table:
            raise ValueError(f"{full!r} is not in the table of weights; add it to {type(self.family).__name__}.weights")
        weight = self.table[full]
        if weight.role == "vector":
            return nnx.Param(jnp.full(weight.full_shape, weight.fill, self.parameter_dtype))
        key = jax.random.fold_in(self.key, zlib.crc32(full.encode()))
        std = self.parametrization.init_std(weight, self.family)
        return nnx.Param(_normal(key, weight.shape, weight.stack, std).astype(self.parameter_dtype))

    def optional(self, name: str) -> nnx.Param | None:
        """The parameter `name` where the table has it, else None."""
        return self.param(name) if self.has(name) else None


def _normal(key: jax.Array, shape: tuple[int, ...], stack: int, std: float) -> Float[Array, "..."]:
    if not stack:
        return std * jax.random.normal(key, shape, jnp.float32)
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(stack))
    return std * jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


class Layer(nnx.Module):
    """A module that computes in one dtype whatever its parameters are stored in."""

    def __init__(self, builder: Builder):
        self.dtype = jnp.dtype(builder.compute_dtype)

    def read(self, parameter: nnx.Param) -> Float[Array, "..."]:
        """The parameter's values in the compute dtype."""
        return parameter[...].astype(self.dtype)

    def add(self, x: Float[Array, "..."], bias: nnx.Param | None) -> Float[Array, "..."]:
        """x + bias, or x where the table has no bias."""
        return x if bias is None else x + self.read(bias)


class Norm(Layer):
    """RMSNorm x / √(mean x² + ε) · scale (Zhang and Sennrich 1910.07467), over the last axis.

    With a bias in the table it is LayerNorm (Ba et al. 1607.06450): the mean is taken off first and the bias added.
    Statistics in float32.
    """

    epsilon = 1e-6

    def __init__(self, builder: Builder):
        super().__init__(builder)
        self.scale = builder.param("scale")
        self.bias = builder.optional("bias")

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        x = x.astype(jnp.float32)
        if self.bias is not None:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        x = x * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            x = x + self.bias[...].astype(jnp.float32)
        return x.astype(self.dtype)


def unstack(tree: Tree, depth: int) -> list[Tree]:
    """The stacked arrays of a tree as one tree a layer.

    By `lax.split`, whose gradient is one concatenation: indexing layer by layer would give a sum of `depth` arrays of
    the full stack, mostly zeros.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, (1,) * depth, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[layer].squeeze(0) for part in parts]) for layer in range(depth)]


def stack(trees: list[Tree]) -> Tree:
    """The inverse of `unstack`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def apply_layers(
    module: nnx.Module, x: Float[Array, "..."], *arguments: Any, depth: int, layers: Layers, remat: Remat
) -> Float[Array, "..."]:
    """x through `depth` layers whose parameters are stacked in `module`: `x = layer(x, *arguments)` each.

    `layers` only says how the forward runs, in a loop or written out; the parameters are the same.
    """
    definition, state = nnx.split(module)

    def apply(x: Float[Array, "..."], state: nnx.State, *arguments: Any) -> Float[Array, "..."]:
        return nnx.merge(definition, state)(x, *arguments)

    if remat != "none":
        # Inside scan nothing can be merged across the boundary, so the barriers against that would only cost.
        apply = jax.checkpoint(apply, policy=_SAVEABLE[remat], prevent_cse=layers == "unroll")
    if layers == "scan":
        return jax.lax.scan(lambda x, state: (apply(x, state, *arguments), None), x, state)[0]
    for one in unstack(state, depth):
        x = apply(x, one, *arguments)
    return x


class LanguageModel(Layer):
    """Token embedding, the family's `features`, and the head; families subclass it and give `features`."""

    def __init__(self, builder: Builder):
        super().__init__(builder)
        self.family = builder.family
        self.layers_mode = builder.layers
        self.remat = builder.remat
        self.output_multiplier = builder.parametrization.output_multiplier(builder.family)
        self.embedding = builder.param("embedding")
        self.output = builder.optional("output")

    def embed(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """The embedding of each token."""
        return self.read(self.embedding)[tokens]

    def features(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """What the head reads: the last layer's output, normalised where the family has a final norm."""
        raise NotImplementedError

    def logits(self, features: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """The head alone, in float32, so that a loss may call it on a part of the positions at a time."""
        head, letters = (self.embedding, "vd") if self.output is None else (self.output, "dv")
        logits = jnp.einsum(f"...d,{letters}->...v", features, self.read(head), preferred_element_type=jnp.float32)
        return logits if self.output_multiplier == 1.0 else logits * self.output_multiplier

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context vocabulary"]:
        """Logits in float32 of the token after each position."""
        return self.logits(self.features(tokens))


def by_weight(state: Tree, table: Mapping[str, families.Weight], function: Callable[[families.Weight], Any]) -> Any:
    """A tree of the structure of `state` (parameters, their gradients) with `function(weight)` at each leaf.

    For learning-rate multipliers, decay masks and sharding axes. `table` maps names to weights, as `Builder.table`.
    Raises ValueError where the state holds a parameter that the table lacks.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    values = []
    for path, _ in paths:
        name = ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        if name not in table:
            raise ValueError(f"parameter {name!r} is not in the table of weights; add it to the family's `weights`")
        values.append(function(table[name]))
    return jax.tree.unflatten(structure, values)
