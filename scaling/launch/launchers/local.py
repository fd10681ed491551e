"""Workers as processes of this machine: one an accelerator, or several on the CPU with cores of their own.

The launcher only starts them, starts them again where they crash or where other machines leave runs behind, and asks
them to stop. It imports no JAX and touches no accelerator.
"""

import contextlib
import dataclasses
import glob
import itertools
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scaling import config, devices, memory, store
from scaling.launch import environments, launcher, slots
from scaling.worker import protocol


@dataclasses.dataclass(kw_only=True)
class LocalSlot(slots.Slot):
    """A place for one worker: its environment, cores and log, and the process in it, if one runs."""

    environment: Mapping[str, str]
    cores: Sequence[int]
    log: Path
    process: subprocess.Popen[bytes] | None = None


class Local(launcher.Launcher):
    """Workers on this machine: one for so many accelerators as a run's mesh has, or else one a core.

    `pin` gives each worker of the CPU cores of its own. A worker has the devices of one run's mesh: so many
    accelerators, or on the CPU so many of JAX's host devices.
    """

    kind: str = "local"
    pin: bool = True

    def device(self, job: launcher.Job) -> tuple[str, float | None]:
        """See `launcher.Launcher`."""
        return memory_limit(job.workers, job.runs, job.mesh)

    def workers(self, need: float, mesh: config.Mesh) -> int | None:
        """See `launcher.Launcher`."""
        return default_workers(need, mesh)

    def describe(self, job: launcher.Job) -> str:
        """A line a worker: its cores, what its environment has beside this one, and its command."""
        lines = []
        for slot in self._slots(job):
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in slot.environment.items())
            cores = ",".join(map(str, slot.cores)) or "any"
            lines.append(f"worker {slot.number}, cores {cores}: {settings} {shlex.join(job.worker_command())}")
        return "\n".join(lines) or "nothing: every run has a result"

    def start(self, job: launcher.Job) -> "LocalWorkers":
        """Start workers, at most one a run. Raises ValueError where the machine has too few devices for one run."""
        return LocalWorkers(job.results(), job.sweep_name, self._slots(job), job.worker_command())

    def _slots(self, job: launcher.Job) -> list[LocalSlot]:
        accelerators = grouped(environments.find_accelerators(), job.mesh.least)
        cores = devices.cores()
        wanted = job.workers or len(accelerators) or max(1, len(cores) // job.mesh.least)
        count = min(wanted, job.runs)
        shares = split(cores, count) if self.pin else [[]] * count
        logs = store.Store(job.store_path).logs(job.sweep_name)
        common = environments.worker()
        places = []
        for number in range(count):
            own = accelerators[number % len(accelerators)] if accelerators else {}
            if accelerators and count > len(accelerators):  # several share a device: none may take all of its memory
                own = {**own, devices.FRACTION: f"{_fraction(len(accelerators), count):.3f}"}
            log = logs / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
            if not accelerators:
                limit = os.environ.get(memory.LIMIT, f"{memory.share(count):.0f}")
                own = {memory.LIMIT: limit, **environments.host_devices(job.mesh.least)}
            settings = {**common, **own, protocol.WORKERS: str(count)}
            places.append(LocalSlot(number, environment=settings, cores=shares[number], log=log))
        return places


class LocalWorkers(slots.SlotWorkers[LocalSlot]):
    """Processes of this machine."""

    def __init__(self, results: store.Store, sweep_name: str, places: Sequence[LocalSlot], command: Sequence[str]):
        super().__init__(results, sweep_name, places)
        self.command = command
        for slot in places:
            self.start(slot)

    def busy(self, slot: LocalSlot) -> bool:
        """See `slots.SlotWorkers`."""
        return slot.process is not None

    def look(self, slot: LocalSlot) -> slots.End | None:
        """See `slots.SlotWorkers`."""
        code = None if slot.process is None else slot.process.poll()
        if code is None:
            return None
        slot.process = None
        return slots.End(code, slots.in_words(code), str(slot.log), slots.tail(slot.log))

    def stop(self) -> None:
        """Ask every worker to save its run and end."""
        self.stopping = True
        for slot in self.slots:
            if slot.process is not None:
                slot.process.terminate()

    def kill(self) -> None:
        """End every worker at once; their runs go on from their last checkpoints."""
        self.stopping = True
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
                slot.process = None

    def start(self, slot: LocalSlot) -> None:
        """See `slots.SlotWorkers`."""
        with _on_cores(slot.cores):
            slot.process = slots.spawn(self.command, {**os.environ, **slot.environment}, slot.log)


def _fraction(devices: int, workers: int) -> float:
    """The share of a GPU's memory for each of more workers than devices."""
    return 0.9 * devices / workers


def default_workers(need: float, mesh: config.Mesh) -> int | None:
    """How many workers to start where nobody says: one a core, or as many as leave every device `need` bytes.

    With a mesh, one for as many cores as it has devices. None on accelerators, where `Local` starts one for each run.
    """
    if environments.find_accelerators():
        return None
    return memory.workers(max(1, len(devices.cores()) // mesh.least), mesh.least * need)


def memory_limit(workers: int | None, runs: int, mesh: config.Mesh) -> tuple[str, float | None]:
    """The kind of device that `Local` gives workers, "cpu" or its name, and the bytes for arrays on one, if known."""
    if not environments.find_accelerators():
        count = min(workers or max(1, len(devices.cores()) // mesh.least), runs)
        return "cpu", float(os.environ.get(memory.LIMIT, memory.share(count))) / mesh.least
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        fields = dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
        name = fields.get("Model", "").strip()
        groups = len(grouped(environments.find_accelerators(), mesh.least))
        count = min(workers or groups, runs)
        return name, devices.memory_bytes(name, _fraction(groups, count) if count > groups else None)
    return "accelerator", None  # a TPU's workers learn it from the device


def grouped(accelerators: Sequence[dict[str, str]], size: int) -> list[dict[str, str]]:
    """Environments that give a process `size` accelerators each; those that are left over stay idle.

    Raises ValueError where there are fewer than `size`. A TPU host's chips are one group as they are.
    """
    if not any(accelerators):
        return list(accelerators)
    if size > len(accelerators):
        raise ValueError(
            f"a run on execution.mesh needs {size} accelerators and this machine has {len(accelerators)}; make "
            "data × fsdp × tensor smaller"
        )
    groups = [accelerators[first : first + size] for first in range(0, len(accelerators) - size + 1, size)]
    return [{name: ",".join(one[name] for one in group) for name in group[0]} for group in groups]


def split(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Cores for each worker: neighbours, as even as can be; where workers outnumber cores they share."""
    if workers > len(cores):
        return [[cores[number % len(cores)]] for number in range(workers)]
    bounds = [round(number * len(cores) / workers) for number in range(workers + 1)] if workers else []
    return [list(cores[low:high]) for low, high in itertools.pairwise(bounds)]


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """A process started in the body runs on these cores only, and JAX makes as many threads; no cores: anywhere."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
