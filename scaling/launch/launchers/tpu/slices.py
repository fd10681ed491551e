"""TPU slices: what Google sells under an accelerator type, and what the workers of a job on them have in common."""

import dataclasses
import re

from scaling import config, schema
from scaling.launch import launcher
from scaling.worker import protocol

# Exit codes of a worker that saved its run, or whose machines failed: a new one goes on.
RESUMED = (protocol.AGAIN, *sorted(launcher.STOPPED))


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
    """A generation of TPUs.

    `prefix` begins its accelerator types, whose number counts `counted` a chip. `label` is the value of GKE's node
    label cloud.google.com/gke-tpu-accelerator, `machine` begins its machine types, `device` is JAX's `device_kind` and
    `runtime` Cloud TPU's software version for JAX. A host has all chips of a slice up to `single_host`, else 4.
    """

    prefix: str
    counted: int
    label: str
    machine: str
    device: str
    runtime: str
    single_host: int
    topologies: tuple[str, ...]


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

# Topologies, chips a host and machine types: cloud.google.com/tpu/docs/v5e, /v6e, /v4 and /v5p, and
# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; software versions: cloud.google.com/tpu/docs/runtimes.
# Names of v4 and v5p count TensorCores, of which a chip has two; JAX takes a chip for one device in all of them.
GENERATIONS = (
    TpuGeneration(
        "v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu", "TPU v5 lite", "v2-alpha-tpuv5-lite", 8, FLAT
    ),
    TpuGeneration("v6e", 1, "tpu-v6e-slice", "ct6e-standard", "TPU v6 lite", "v2-alpha-tpuv6e", 8, FLAT),
    TpuGeneration("v5p", 2, "tpu-v5p-slice", "ct5p-hightpu", "TPU v5", "v2-alpha-tpuv5", 4, CUBES),
    TpuGeneration("v4", 2, "tpu-v4-podslice", "ct4p-hightpu", "TPU v4", "tpu-ubuntu2204-base", 4, CUBES),
)


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A slice of so many chips, wired as `topology`; one worker trains on all of it."""

    generation: TpuGeneration
    topology: str

    @property
    def chips(self) -> int:
        """Chips, each of which is a device of JAX."""
        count = 1
        for side in self.topology.split("x"):
            count *= int(side)
        return count

    @property
    def accelerator(self) -> str:
        """Cloud TPU's accelerator type, for example v5litepod-16."""
        return f"{self.generation.prefix}-{self.generation.counted * self.chips}"

    @property
    def hosts(self) -> int:
        """Hosts, each of which runs a process."""
        return self.chips // self.chips_per_host

    @property
    def chips_per_host(self) -> int:
        """Chips of one host."""
        return self.chips if self.chips <= self.generation.single_host else 4

    @property
    def machine(self) -> str:
        """GKE's machine type."""
        return f"{self.generation.machine}-{self.chips_per_host}t"


SLICES = tuple(TpuSlice(generation, topology) for generation in GENERATIONS for topology in generation.topologies)


def find(accelerator: str) -> TpuSlice:
    """The slice of an accelerator type. Raises ValueError where it is not known."""
    for known in SLICES:
        if known.accelerator == accelerator:
            return known
    alike = [one for one in SLICES if accelerator.startswith(one.generation.prefix)] or list(SLICES)
    raise ValueError(f"{accelerator!r} is no TPU slice known here; choose one of {_names(alike)}")


def check_mesh(chosen: TpuSlice, mesh: config.Mesh) -> None:
    """Raises ValueError where a run's mesh does not use all chips of the slice."""
    if _fits(chosen, mesh):
        return
    fitting = [one for one in SLICES if one.generation is chosen.generation and _fits(one, mesh)]
    larger = f"choose a slice that it fills ({_names(fitting)})" if fitting else "no slice of this kind has so many"
    raise ValueError(
        f"execution.mesh of data {mesh.data or 'all'} × fsdp {mesh.fsdp} × tensor {mesh.tensor} does not fill the "
        f"{chosen.chips} chips of {chosen.accelerator}, and a run uses all of them; {larger}, or make fsdp × tensor a "
        "divisor of the chips and leave mesh.data out"
    )


def _fits(one: TpuSlice, mesh: config.Mesh) -> bool:
    return one.chips == mesh.least if mesh.data else one.chips % mesh.least == 0


def _names(slices: list[TpuSlice]) -> str:
    return ", ".join(one.accelerator for one in slices)


def workers(job: launcher.Job) -> int:
    """How many slices: what was asked for, else one; at most one a run."""
    return min(job.workers or 1, job.runs)


def base_name(job: launcher.Job) -> str:
    """What the names of a job's slices begin with: its sweep's, as Kubernetes and Google Cloud allow, and a digest.

    Both allow lower-case letters, digits and hyphens, first a letter (RFC 1035). JobSet makes names of pods from ours
    that have at most 63 characters: NAME-999-slice-0-511-abcde. The digest tells sweeps apart that are spelled alike,
    or lie in two stores.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", job.sweep_name.lower()).strip("-")
    stem = stem if stem[0].isalpha() else f"s-{stem}"
    room = 63 - len("-999-slice-0-511-abcde") - len("-123456")
    return f"{stem[:room].rstrip('-')}-{schema.digest([job.store_path.rstrip('/'), job.sweep_name])[:6]}"


def fetch_command(text: str, python: str) -> list[str]:
    """The command line that copies a sweep's text to where its worker runs."""
    return [python, "-m", "scaling.launch.fetch", text, "text"]


def environment(job: launcher.Job) -> dict[str, str]:
    """What a worker finds in its environment on either system."""
    return {
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "tpu,cpu",  # a TPU that does not start ends the worker, which would train on the CPU else
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        protocol.WORKERS: str(workers(job)),
    }
