"""Devices, the mesh, and the one table from what a dimension means to the mesh axis it is sharded over."""

import functools
import math

import jax
import numpy as np
from jax.typing import DTypeLike

from scaling import config, families

AXES = ("data", "fsdp", "tensor")

# What each logical dimension is sharded over. Dimensions not named here are whole on every device.
TABLE: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "gates": "tensor",
}
# Dimensions that are split where a weight is stored, and whole where it is used. Gates split over devices would have to
# meet in every time step of an LSTM; each device computes them all instead.
GATHERED = ("embed", "gates")


def make(settings: config.Mesh) -> jax.sharding.Mesh:
    """The mesh over all devices of all processes.

    Raises ValueError where the axes' product is not the number of devices.
    """
    devices = jax.device_count()
    fixed = settings.fsdp * settings.tensor
    data = settings.data or max(1, devices // fixed)
    if data * fixed != devices:
        raise ValueError(
            f"a mesh of data {data} × fsdp {settings.fsdp} × tensor {settings.tensor} needs {data * fixed} devices and "
            f"there are {devices}; make fsdp × tensor a divisor of that and leave mesh.data out to use all of them"
        )
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, settings.fsdp, settings.tensor), AXES, axis_types=auto)


def sharding(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> jax.sharding.NamedSharding:
    """The sharding of an array whose dimensions mean `axes`; a dimension that does not divide stays whole."""
    used: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        target = TABLE.get(axis) if axis else None
        names = (target,) if isinstance(target, str) else target or ()
        used.append(target if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*used))


def weight_sharding(mesh: jax.sharding.Mesh, weight: families.Weight) -> jax.sharding.NamedSharding:
    """The sharding of a weight's full array: layers are never split."""
    return sharding(mesh, weight.full_shape, ((None,) if weight.stack else ()) + weight.axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def place(mesh: jax.sharding.Mesh, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """x as the forward pass needs it, inside a compiled program: what `fsdp` splits is gathered, all else as stored.

    Its gradient is laid out as it is stored, so that no device holds or sums up the whole.
    """
    used = tuple(None if axis in GATHERED else axis for axis in axes)
    return jax.lax.with_sharding_constraint(x, sharding(mesh, x.shape, used))


def _place_forward(mesh: jax.sharding.Mesh, x: jax.Array, axes: tuple[str | None, ...]) -> tuple[jax.Array, None]:
    return place(mesh, x, axes), None


def _place_backward(
    mesh: jax.sharding.Mesh, axes: tuple[str | None, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharding(mesh, gradient.shape, axes)),)


place.defvjp(_place_forward, _place_backward)


def stacked(one: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    """The sharding of a stack of arrays that each have the sharding `one`: the stack itself is not split."""
    return jax.sharding.NamedSharding(one.mesh, jax.sharding.PartitionSpec(None, *one.spec))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Whole on every device."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def shape_of(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: DTypeLike
) -> jax.ShapeDtypeStruct:
    """The abstract global array that `put` makes."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, shape, axes))


def put(mesh: jax.sharding.Mesh, local: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
    """A global array from this process's part of it: split over `batch`, whole along the other dimensions."""
    processes = jax.process_count()
    shape = tuple(n * processes if axis == "batch" else n for n, axis in zip(local.shape, axes, strict=True))
    return jax.make_array_from_process_local_data(sharding(mesh, shape, axes), local, shape)


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
