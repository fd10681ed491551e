"""How the functions of a step are compiled: for packs of runs, by vmap, and with which options on which backend."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scaling import devices
from scaling.training import processes

Tree = TypeVar("Tree")


def pack(function: Callable[..., Any], members: int, axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """A function of one run as one of a pack: vmapped, or, for a run alone, without the axis of members inside."""
    if members > 1:
        return jax.vmap(function, in_axes=axes)

    @functools.wraps(function)
    def alone(*arguments: Any) -> Any:
        parts = (jax.tree.map(lambda x: x[0], a) if axis == 0 else a for a, axis in zip(arguments, axes, strict=True))
        return jax.tree.map(lambda x: x[None], function(*parts))

    return alone


def stack(pack: Tree, shards: Any, number: Callable[[int], Any]) -> Callable[[Sequence[Any]], Tree]:
    """The function that makes one state of its members', one after the other: a program of all arrays would be huge.

    `number` brings an index to the devices.
    """

    @functools.partial(jax.jit, out_shardings=shards)
    def first(state: Any) -> Tree:
        return jax.tree.map(lambda whole, x: jnp.broadcast_to(x, whole.shape), pack, state)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shards)
    def put(stacked: Tree, state: Any, index: ArrayLike) -> Tree:
        return jax.tree.map(lambda whole, x: whole.at[index].set(x), stacked, state)

    def together(states: Sequence[Any]) -> Tree:
        stacked = first(states[0])
        for index, state in enumerate(states[1:], start=1):
            stacked = put(stacked, state, number(index))
        return stacked

    return together


def once(params: int) -> dict[str, Any]:
    """Compiler options for what runs once a run, on CPU: random numbers then compile in 0.3 s instead of 1.7 s.

    They are drawn slower (0.17 µs a parameter), so that above a million the compiler is asked for more: 0.9 s.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_backend_optimization_level": 0 if params < 2**20 else 1}
    if jax.__version_info__ < (0, 11):  # later versions have no such option
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def options(large: bool) -> dict[str, str | bool] | None:
    """On one core of a CPU the order of least memory: 1 to 30% less, in equal time.

    The other order, of most concurrency, is 6 to 17% faster on two cores (0.1 to 6 million parameters). On a GPU
    `large` products, of wide models and of packs, are cuBLAS's alone, which adds biases as it multiplies: 0.98 of the
    step's time at 350 M parameters and for 128 models of 0.1 M (H200), where one of these takes 1.08 of it.
    """
    backend = jax.default_backend()
    if backend == "gpu" and large:
        return {"xla_gpu_enable_triton_gemm": False}
    if backend != "cpu" or max(processes.gather(len(devices.cores()))) > 1:  # the order of all processes is the same
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
