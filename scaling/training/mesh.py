"""Devices, the mesh, and the one table from what a dimension means to the mesh axis it is sharded over."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from scaling import config
from scaling.config import families
from scaling.training import processes

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
        target = TABLE.get(axis or "")
        used.append(target if size % math.prod(mesh.shape[name] for name in _names(target)) == 0 else None)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*used))


def weight_sharding(mesh: jax.sharding.Mesh, weight: families.Weight) -> jax.sharding.NamedSharding:
    """The sharding of a weight's full array: layers are never split."""
    spec = stored(mesh, weight.shape, weight.axes).spec
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*([None] if weight.stack else []), *spec))


def stored(mesh: jax.sharding.Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> jax.sharding.NamedSharding:
    """The sharding of a weight while it is not in use.

    By the table; what splits a dimension that does not divide splits the largest that does, if any, in its stead.
    """
    spec = [_names(target) for target in sharding(mesh, shape, axes).spec]
    for name in _missing(spec, axes):
        for place in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[place] % (mesh.shape[name] * math.prod(mesh.shape[other] for other in spec[place])) == 0:
                spec[place] += (name,)
                break
    whole = [names[0] if len(names) == 1 else names or None for names in spec]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*whole))


def _names(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target or ()


def _missing(spec: Sequence[tuple[str, ...]], axes: tuple[str | None, ...]) -> list[str]:
    """Axes of the mesh that should split one of these dimensions and split none."""
    return [name for axis in axes for name in _names(TABLE.get(axis or "")) if name not in sum(spec, ())]


def check(mesh: jax.sharding.Mesh, weights: Iterable[families.Weight]) -> None:
    """Raise ValueError for a large weight that every device would hold whole; warn of one that each would use whole."""
    for weight in weights:
        if weight.size < LARGE:
            continue
        shape = " × ".join(map(str, weight.shape))
        held = [_names(target) for target in stored(mesh, weight.shape, weight.axes).spec]
        if missing := _missing(held, weight.axes):
            raise ValueError(
                f"{weight.name} ({shape}) has no dimension that divides by {missing[0]} {mesh.shape[missing[0]]}, so "
                "that every device would hold it whole; choose a size of the mesh that divides one, or another model"
            )
        used = sharding(mesh, weight.shape, weight.axes).spec
        for size, axis, target in zip(weight.shape, weight.axes, used, strict=True):
            wanted = _names(TABLE.get(axis))
            if target is None and axis not in GATHERED and any(mesh.shape[name] > 1 for name in wanted):
                warnings.warn(
                    f"{weight.name} ({shape}): {axis} {size} does not divide by {wanted[0]} {mesh.shape[wanted[0]]}, "
                    "so that every device gathers the whole of it and does all its work",
                    stacklevel=2,
                )


LARGE = 2**20  # numbers in a weight, all layers together, that must not lie whole on every device


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
    return (jax.lax.with_sharding_constraint(gradient, stored(mesh, gradient.shape, axes)),)


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
    """A global array from this process's part of it: its `rows` along `batch`, all along the other dimensions."""
    parts = batch_shards(mesh), len(_shards_here(mesh))
    shape = tuple(n * parts[0] // parts[1] if axis == "batch" else n for n, axis in zip(local.shape, axes, strict=True))
    return jax.make_array_from_process_local_data(sharding(mesh, shape, axes), local, shape)


def rows(mesh: jax.sharding.Mesh, size: int) -> np.ndarray:
    """Which rows of a batch of `size`, a multiple of `batch_shards`, this process's devices hold, in order.

    Processes whose devices split the weights, and not the batch, hold the same ones.
    """
    width = size // batch_shards(mesh)
    return (_shards_here(mesh)[:, None] * width + np.arange(width)).ravel()


@functools.lru_cache(maxsize=8)
def _shards_here(mesh: jax.sharding.Mesh) -> np.ndarray:
    """Which parts of a batch this process's devices hold."""
    here = np.vectorize(lambda device: device.process_index == jax.process_index(), otypes=[bool])(mesh.devices)
    return np.flatnonzero(here.any(axis=AXES.index("tensor")))


@functools.lru_cache(maxsize=8)
def _any(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda values: values.any(axis=0), out_shardings=replicated(mesh))


class AnyReduce:
    """A logical or over processes, polled once a dispatch by all of them, with as many values each time.

    The values of several processes are reduced on the devices, after the work that they were given, and `poll` returns
    the result of the poll before: then nobody waits for it. A process alone has its result at once.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self.mesh = mesh
        self._reduced: jax.Array | None = None

    def poll(self, mine: Sequence[bool]) -> list[bool]:
        """Which values were true in any process, at this poll or at the one before; none at the first."""
        if not processes.several():
            return list(mine)
        before = self._reduced
        each = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(AXES))  # a row a device
        here = np.asarray(mine, bool)[None]
        self._reduced = _any(self.mesh)(jax.make_array_from_callback((self.mesh.size, len(mine)), each, lambda _: here))
        return [False] * len(mine) if before is None else np.asarray(before).tolist()

    def reset(self) -> None:
        """Drop the values that no poll has returned yet: they are older than what was done about them."""
        self._reduced = None


def number(mesh: jax.sharding.Mesh, value: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """A number of the host on every device."""
    return put(mesh, np.asarray(value, dtype), ())


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
