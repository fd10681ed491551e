"""What every family shares: parameters made from the table of weights, norms, stacked layers, the language model."""

import copy
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt

from scaling import families
from scaling import parametrization as parametrizations
from scaling.models import attention, kernels, lean

Layers = Literal["scan", "unroll"]
Remat = Literal["none", "gathers", "full", "dots"]
Tree = TypeVar("Tree")

# Lays an array out over the mesh for its use, and its gradient as it is stored, given what each dimension means: an
# axis of the table of weights, "batch", or None where it is whole.
Place = Callable[[Array, tuple[str | None, ...]], Array]


def _all_but_gathers(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Saves what a layer computes, but no weight gathered from other devices, and no other shape of one."""
    inner = parameters.get("call_jaxpr")  # of a call of `Place`, nothing but a constraint
    names = {primitive.name} if inner is None else {equation.primitive.name for equation in inner.eqns}
    return not names <= {"sharding_constraint", "reshape", "transpose", "squeeze", "broadcast_in_dim"}


def _dots(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
    """Whether "dots" keeps a result: of matmuls with weights, and of flash attention, which are as small."""
    if primitive.name in kernels.PRIMITIVES:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)


# What the backward pass may keep of a layer: all but gathered weights, which it gathers again, nothing, or its large
# matmuls (scores have batch dimensions and are left).
_SAVEABLE = {"gathers": _all_but_gathers, "full": jax.checkpoint_policies.nothing_saveable, "dots": _dots}


class Builder:
    """Makes the parameters of one model from its table of weights, and carries how the model is to run.

    `within` gives the builder of a submodule: `builder.within("attention").param("query")` is `attention.query` of the
    table. Parameters are always stacked over layers, so `layers` and `remat` change neither the tree nor its values.
    """

    def __init__(
        self,
        family: families.Family,
        *,
        vocabulary_size: int,
        context: int,
        parametrization: parametrizations.Parametrization,
        compute_dtype: DTypeLike,
        parameter_dtype: DTypeLike,
        layers: Layers,
        remat: Remat,
        seed: int | jax.Array,
        attend: kernels.Attend | None = None,
        place: Place | None = None,
    ):
        self.family = family
        self.parametrization = parametrization
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.parameter_dtype = jnp.dtype(parameter_dtype)
        self.layers: Layers = layers
        self.remat: Remat = remat
        self.attend = attend or kernels.Attend()
        self.place: Place = place or _leave
        self.gpu = self.attend.chip.platform == "cuda"  # see `lean`
        self.wide = self.gpu and family.width >= lean.WIDE
        self.prefix = ""
        self.table = {weight.name: weight for weight in family.weights(vocabulary_size, context)}
        drawn = [weight for weight in self.table.values() if weight.role != "vector"]
        values = _normal(
            seed if isinstance(seed, jax.Array) else jax.random.key(seed),
            tuple(drawn),
            tuple(parametrization.init_std(weight, family) for weight in drawn),
        )
        # Every device draws whole weights and keeps its part: the blocks of `_normal` lie across any other split.
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
        return nnx.Param(values, axes=weight.axes)

    def optional(self, name: str) -> nnx.Param | None:
        """The parameter `name` where the table has it, else None."""
        return self.param(name) if self.has(name) else None


def _leave(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Where arrays lie when no one says: the compiler decides."""
    return x


_BLOCK = 1024  # normal values drawn from one key
_DRAWN_TOGETHER = (
    2**28
)  # above it, weights are drawn one by one: sharded compilers do better, compile time matters less


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, weights: tuple[families.Weight, ...], stds: tuple[float, ...]) -> dict[str, Array]:
    """Initial float32 values by weight name; each block depends on key, name, layer and its place in the layer alone.

    So neither the other weights, nor the depth, nor the order of creation change a value, beyond its last bit. All
    blocks are drawn at once because each random generator takes 0.5 s to compile on CPU, and eight weights are few.
    """
    values: dict[str, Array] = {}
    together = sum(weight.size for weight in weights) <= _DRAWN_TOGETHER
    for group in (weights,) if together else tuple((weight,) for weight in weights):
        blocks = [math.ceil(math.prod(weight.shape) / _BLOCK) for weight in group]
        places = np.concatenate([_places(weight, count) for weight, count in zip(group, blocks, strict=True)])
        drawn = jax.vmap(lambda place: _block(key, place))(places)
        start = 0
        for weight, count in zip(group, blocks, strict=True):
            layers, size = max(weight.stack, 1), math.prod(weight.shape)
            part = drawn[start : start + layers * count].reshape(layers, count * _BLOCK)[:, :size]
            values[weight.name] = stds[weights.index(weight)] * part.reshape(weight.full_shape)
            start += layers * count
    return values


def _places(weight: families.Weight, blocks: int) -> np.ndarray:
    """(name, layer, block) of every block of a weight, as unsigned integers; names by CRC-32."""
    layers = np.repeat(np.arange(max(weight.stack, 1)), blocks)
    names = np.full_like(layers, zlib.crc32(weight.name.encode()))
    return np.stack([names, layers, np.tile(np.arange(blocks), max(weight.stack, 1))], axis=1).astype(np.uint32)


def _block(key: jax.Array, place: UInt[Array, "3"]) -> Float[Array, " block"]:
    for part in range(3):
        key = jax.random.fold_in(key, place[part])
    return jax.random.normal(key, (_BLOCK,), jnp.float32)


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


class Layer(nnx.Module):
    """A module that computes in one dtype whatever its parameters are stored in."""

    def __init__(self, builder: Builder):
        self.dtype = builder.compute_dtype
        self.place = builder.place

    def read(self, parameter: nnx.Param, dtype: DTypeLike | None = None) -> Float[Array, "..."]:
        """The parameter's values in the compute dtype, or in another, as they are needed on each device."""
        return self.place(parameter[...].astype(dtype or self.dtype), parameter.axes)

    def matmul(
        self, x: Float[Array, "..."], weight: nnx.Param, bias: nnx.Param | None = None, summed: int = 1
    ) -> Float[Array, "..."]:
        """x times a weight over the last `summed` axes of x, as one product of two matrices.

        Batch and time are one axis for it: XLA on CPU would else copy whole activations into another layout for the
        gradient of the weight (6–22% of a step at 0.4 M parameters).
        """
        batch, outputs = x.shape[: x.ndim - summed], weight.shape[summed:]
        inputs = math.prod(weight.shape[:summed])
        flat, matrix = x.reshape(-1, inputs), self.read(weight).reshape(inputs, -1)
        found = product(flat, matrix) if x.dtype == jnp.float32 else flat @ matrix
        if bias is not None:
            found = found + self.read(bias).reshape(-1)
        return found.reshape(*batch, *outputs)


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
        self.wide = builder.wide

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        scale = self.read(self.scale, jnp.float32)
        if self.wide:
            x = lean.norm(x, scale, self.bias is not None, self.epsilon)
        else:
            x = x.astype(jnp.float32)
            if self.bias is not None:
                x = x - jnp.mean(x, axis=-1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon) * scale
        if self.bias is not None:
            x = x + self.read(self.bias, jnp.float32)
        return x.astype(self.dtype)


def unstack(tree: Tree, depth: int, split: Callable[[Array, int], Sequence[Array]] | None = None) -> list[Tree]:
    """The stacked arrays of a tree as one tree a layer, split by `lax.split` or by a function of (stack, depth).

    Its gradient is one concatenation; indexing layer by layer adds up arrays of the full stack, which costs 3% of a
    training step on CPU at ten layers.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [(split or _split)(leaf, depth) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[layer] for part in parts]) for layer in range(depth)]


def _split(stack: Array, depth: int) -> list[Array]:
    return [part.squeeze(0) for part in jax.lax.split(stack, (1,) * depth, axis=0)]


def apply_layers(
    module: nnx.Module,
    x: Float[Array, "..."],
    *arguments: Any,
    depth: int,
    layers: Layers,
    remat: Remat,
    wide: bool = False,
) -> Float[Array, "..."]:
    """x through `depth` layers whose parameters are stacked in `module`: `x = layer(x, *arguments)` each.

    `layers` only says how the forward runs, in a loop or written out; the parameters are the same. `wide`: of a model
    on a GPU that `lean.split` serves.
    """
    definition, state = nnx.split(module)

    def apply(x: Float[Array, "..."], state: nnx.State[Any, Any], *arguments: Any) -> Float[Array, "..."]:
        return nnx.merge(definition, state)(x, *arguments)

    if remat != "none":
        # Inside scan nothing can be merged across the boundary, so the barriers against that would only cost.
        apply = jax.checkpoint(apply, policy=_SAVEABLE[remat], prevent_cse=layers == "unroll")
    if layers == "scan":
        return jax.lax.scan(lambda x, state: (apply(x, state, *arguments), None), x, state)[0]
    for one in unstack(state, depth, lean.split if wide else None):
        x = apply(x, one, *arguments)
    return x


class LanguageModel(Layer):
    """Token embedding, the family's `features`, and the head; families subclass it and give `features`."""

    def __init__(self, builder: Builder):
        super().__init__(builder)
        self.family = builder.family
        self.gpu, self.wide = builder.gpu, builder.wide
        self.layers_mode = builder.layers
        self.remat = builder.remat
        self.output_multiplier = builder.parametrization.output_multiplier(builder.family)
        self.embedding = builder.param("embedding")
        self.output = builder.optional("output")

    def embed(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """The embedding of each token."""
        table = self.read(self.embedding)
        rows = lean.rows(table, tokens) if self.gpu and len(table) <= lean.FEW_ROWS else table[tokens]
        return self.place(rows, ("batch", None, None))

    def features(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        """What the head reads: the last layer's output, normalised where the family has a final norm."""
        raise NotImplementedError

    @property
    def head(self) -> Float[Array, "..."]:
        """The matrix of the head: the embedding (vocabulary, width) where tied, else the output (width, vocabulary)."""
        parameter = self.embedding if self.output is None else self.output
        return self.place(parameter[...], parameter.axes)

    def logits(
        self, head: Float[Array, "..."], features: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch vocabulary"]:
        """The head alone, in float32, on any part of the positions: a loss may give it these, and the matrix, in parts.

        `head` is `self.head`, in any dtype.
        """
        letters = "vd" if self.output is None else "dv"
        flat = features.reshape(-1, features.shape[-1])
        logits = attention.einsum_float32(f"nd,{letters}->nv", flat, head.astype(self.dtype))
        logits = logits.reshape(*features.shape[:-1], -1)
        return logits if self.output_multiplier == 1.0 else logits * self.output_multiplier

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context vocabulary"]:
        """Logits in float32 of the token after each position."""
        return self.logits(self.head, self.features(tokens))
