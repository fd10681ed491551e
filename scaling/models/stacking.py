"""Layers whose parameters are stacked: run in a loop or written out, with what the backward pass keeps of each."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from scaling.models.ops import kernels, plain

Layers = Literal["scan", "unroll"]
Remat = Literal["none", "gathers", "full", "dots"]
Tree = TypeVar("Tree")


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


def unstack(tree: Tree, depth: int, split: Callable[[Array, int], Sequence[Array]] = plain.split) -> list[Tree]:
    """The stacked arrays of a tree as one tree a layer, each split by a function of (stack, depth).

    Indexing layer by layer would add up gradients of the full stack, which costs 3% of a training step on CPU at ten
    layers.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [split(leaf, depth) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[layer] for part in parts]) for layer in range(depth)]


def apply_layers(
    module: nnx.Module,
    x: Float[Array, "..."],
    *arguments: Any,
    depth: int,
    layers: Layers,
    remat: Remat,
    split: Callable[[Array, int], Sequence[Array]] = plain.split,
) -> Float[Array, "..."]:
    """x through `depth` layers whose parameters are stacked in `module`: `x = layer(x, *arguments)` each.

    `layers` only says how the forward runs, in a loop or written out, there by `split`; the parameters are the same.
    """
    definition, state = nnx.split(module)

    def apply(x: Float[Array, "..."], state: nnx.State[Any, Any], *arguments: Any) -> Float[Array, "..."]:
        return nnx.merge(definition, state)(x, *arguments)

    if remat != "none":
        # Inside scan nothing can be merged across the boundary, so the barriers against that would only cost.
        apply = jax.checkpoint(apply, policy=_SAVEABLE[remat], prevent_cse=layers == "unroll")
    if layers == "scan":
        return jax.lax.scan(lambda x, state: (apply(x, state, *arguments), None), x, state)[0]
    for one in unstack(state, depth, split):
        x = apply(x, one, *arguments)
    return x
