"""Memory: what a device offers, what a run needs on it, and the microbatch that fits. JAX only where a device is asked.

`needed` is the closed form of `counting.memory_bytes` for a run and its execution: it plans, refuses what can not fit,
and says where to begin. `compiled` is what XLA assigns to a program: it decides which microbatch is used.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scaling import config, counting
from scaling.config import families

LIMIT = "SCALING_MEMORY_BYTES"  # what the arrays of a worker on the CPU may take; the launcher sets it
# A worker before its first array: Python, JAX, LLVM, compiled code. 0.3 to 0.68 GB were measured on Linux.
PROCESS_BYTES = 0.8e9
DOUBT = 1.15  # what the closed form may be wrong by: `benchmarks.memory`
LARGEST_MESH = 1024  # devices up to which a mesh is looked for that would fit

P = TypeVar("P")


def needed(
    run: config.Run,
    execution: config.Execution,
    microbatch: int | None = None,
    *,
    members: int = 1,
    cpu: bool = False,
    devices: int = 1,
) -> float:
    """Bytes that a step takes on each of `devices`, by the closed form, at a microbatch or at the execution's own.

    The CPU multiplies in float32 whatever `precision.compute` is, and XLA keeps most converted operands: bfloat16 saves
    a tenth there (0 to 18% were found).
    """
    mesh = execution.mesh
    data = mesh.data or max(1, devices // (mesh.fsdp * mesh.tensor))
    if microbatch is not None:
        execution = execution.edit({"microbatch": microbatch})
    size = execution.sequences(run.batch_size)
    shards = data * mesh.fsdp
    chunk = counting.loss_chunk(
        execution.loss_chunk, tokens=size * run.context, vocabulary_size=run.vocabulary_size,
        width=run.model.width, shards=shards * mesh.tensor, members=members,
    )  # fmt: skip
    return counting.memory_bytes(
        run.model, run.vocabulary_size, run.context, sequences=size / shards,
        state_floats_per_param=run.optimizer.state_floats_per_param,
        parameter_bytes=2 if run.precision.parameters == "bfloat16" else 4,
        compute_bytes=4 if run.precision.compute == "float32" else 3.6 if cpu else 2,
        remat=execution.remat, accumulated=size < run.batch_size, scanned=execution.scans(run.model.depth, cpu),
        logits_chunk=None if chunk is None else math.ceil(chunk / shards), members=members,
        parameter_shards=mesh.fsdp * mesh.tensor, scores=not _flash(run, execution, cpu),
    )  # fmt: skip


def _flash(run: config.Run, execution: config.Execution, cpu: bool) -> bool:
    """Whether attention keeps no scores, as far as a config tells: "auto" also asks the chip (`models.kernels`)."""
    if execution.attention != "auto":
        return execution.attention != "xla"
    biased = isinstance(run.model, families.Transformer) and run.model.position == "alibi"
    return not cpu and run.precision.compute == "bfloat16" and not biased


def microbatches(run: config.Run, execution: config.Execution, devices: int = 1) -> list[int]:
    """What `execution.microbatch` may be for a run, largest first: one size, or for "auto" all that can be."""
    if execution.microbatch != "auto":
        return [execution.microbatch or run.batch_size]
    execution.sequences(run.batch_size)  # refuses what no microbatch fixes
    mesh = execution.mesh
    shards = (mesh.data or max(1, devices // (mesh.fsdp * mesh.tensor))) * mesh.fsdp
    sizes = [size for size in range(run.batch_size, 0, -1) if run.batch_size % size == 0 and size % shards == 0]
    return sizes or [run.batch_size]


def planned(
    run: config.Run, execution: config.Execution, limit: float | None, *, cpu: bool = False, devices: int = 1
) -> int:
    """The microbatch that a run will be computed with by the closed form: the largest that fits, or the smallest."""
    sizes = microbatches(run, execution, devices)
    if limit is None:
        return sizes[0]
    fitting = (size for size in sizes if needed(run, execution, size, cpu=cpu, devices=devices) <= limit)
    return next(fitting, sizes[-1])


def check(
    name: str, run: config.Run, execution: config.Execution, limit: float, where: str, *, cpu: bool, devices: int = 1
) -> None:
    """Refuse a run that cannot fit, even if the closed form is wrong by DOUBT.

    Raises ValueError with the need, the limit, and the largest microbatch, or the remat or mesh, that would fit.
    """
    sizes = microbatches(run, execution, devices)
    need = needed(run, execution, sizes[-1], cpu=cpu, devices=devices)
    if need <= DOUBT * limit:
        return
    remedy = _remedy(run, execution, limit, cpu, devices)
    raise ValueError(
        f"{name} (width {run.model.width}, depth {run.model.depth}, context {run.context}) needs {need / 1e9:.3g} GB "
        f"with {_count(sizes[-1])} at once, and {where} has {limit / 1e9:.3g} GB for it; {remedy}"
    )


def _remedy(run: config.Run, execution: config.Execution, limit: float, cpu: bool, devices: int) -> str:
    """What would fit: a smaller microbatch, remat, or a larger mesh."""

    def fits(changes: dict[str, Any], count: int) -> int | None:
        other = execution.edit({"microbatch": "auto", **changes})
        size = planned(run, other, limit, cpu=cpu, devices=count)
        return size if needed(run, other, size, cpu=cpu, devices=count) <= limit else None

    size = fits({}, devices)
    if size is not None:
        return f'the largest execution.microbatch that fits is {size} ("auto" finds it)'
    size = None if execution.remat == "full" else fits({"remat": "full"}, devices)
    if size is not None:
        return f'with execution.remat="full" the largest execution.microbatch that fits is {size}'
    fsdp = 2 * execution.mesh.fsdp
    while not cpu and fsdp <= min(LARGEST_MESH, run.batch_size):
        wider = {"mesh.fsdp": fsdp, "mesh.data": 1}
        for more, words in (({}, ""), ({"remat": "full"}, ' and execution.remat="full"')):
            size = fits({**wider, **more}, fsdp * execution.mesh.tensor)
            if size is not None and size % fsdp == 0:
                return f"a mesh with fsdp={fsdp}, data=1{words} fits, with {_count(size)} at once"
        fsdp *= 2
    fewer = ", or fewer workers (--workers)" if cpu else ""
    return f"no microbatch fits; take a smaller model, context or vocabulary, or more memory{fewer}"


def _count(sequences: int) -> str:
    return f"{sequences} sequence" + ("" if sequences == 1 else "s")


def compiled(program: Any) -> float:
    """Bytes that a compiled program has while it runs: arguments, results that are not arguments, temporary buffers.

    Of one device. XLA gives a loop's body its buffers within the temporary ones, once. On CPU its own
    `peak_memory_in_bytes` leaves the temporary buffers out, so that it is not used.
    """
    sizes = program.memory_analysis()
    return float(
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    )


def largest_fitting(
    sizes: Sequence[int],
    need: Callable[[int], float],
    build: Callable[[int], P],
    measure: Callable[[P], float],
    limit: float,
) -> P:
    """What `build` makes of the largest of `sizes` (descending) that measures no more than `limit`.

    `need` says where to begin. A larger size than one that fits is built only where it would take less than DOUBT
    beyond the limit, by its need and by what `need` was wrong by at the one that fits: one build where the first
    clearly fits. Raises ValueError where none fits.
    """
    index = next((i for i, size in enumerate(sizes) if need(size) <= limit), len(sizes) - 1)
    best, failed = None, len(sizes) * [False]
    while True:
        built = build(sizes[index])
        measured = measure(built)
        if measured <= limit:
            best = built
            wrong = measured / need(sizes[index])
            if index == 0 or failed[index - 1] or wrong * need(sizes[index - 1]) > DOUBT * limit:
                return best
            index -= 1
        elif best is not None:
            return best
        elif index + 1 == len(sizes):
            raise ValueError(
                f"compiled for {_count(sizes[index])} at once, a step takes {measured / 1e9:.3g} GB and the device has "
                f'{limit / 1e9:.3g} GB for it; set execution.remat="full", shard it over more devices '
                "(execution.mesh.fsdp), or take a smaller model or context"
            )
        else:
            failed[index] = True
            index += 1


def limit() -> float | None:
    """Bytes that arrays may take on one of this process' devices; None where that is not known.

    An accelerator says so itself. On the CPU it is what the launcher gave this worker, else what was free when this was
    first asked; devices that the CPU pretends to have share it. Processes that must agree are not asked to.
    """
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return float(stats["bytes_limit"]) if "bytes_limit" in stats else None
    if LIMIT in os.environ:
        return float(os.environ[LIMIT]) / jax.local_device_count()
    return None if jax.process_count() > 1 else _free_at_first() / jax.local_device_count()


def workers(most: int, need: float) -> int:
    """How many workers, up to `most` and at least one, leave each `need` bytes for its arrays on this machine's CPU."""
    return max(1, min(most, int(available() / (PROCESS_BYTES + need))))


def share(workers: int) -> float:
    """Bytes for the arrays of each of some workers on this machine's CPU."""
    return max(0.0, available() / max(1, workers) - PROCESS_BYTES)


def resident_peak() -> int:
    """The most bytes that this process has held in memory since it began to run its program, or since a reset.

    Not `ru_maxrss` where it can be helped: on Linux that begins with what the process that started this one held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def _free_at_first() -> float:
    return available()


def available(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that processes may still take here: of the machine, or of this control group where that has less.

    Control groups count cached files as used; those that are inactive can be dropped.
    """
    import psutil  # here, so that steps can be computed without it

    free = float(psutil.virtual_memory().available)
    for folder, most, used in (
        (groups, "memory.max", "memory.current"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if not (folder / most).is_file() or not (folder / used).is_file():
            continue
        text = (folder / most).read_text().strip()
        if text != "max":
            free = min(free, int(text) - int((folder / used).read_text()) + _droppable(folder / "memory.stat"))
    return max(0.0, free)


def _droppable(stat: Path) -> int:
    lines = stat.read_text().splitlines() if stat.is_file() else []
    counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
