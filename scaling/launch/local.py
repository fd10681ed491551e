"""Workers as processes of this machine: one an accelerator, or several on the CPU with cores of their own.

The launcher only starts them, starts them anew where they crash or where other machines leave runs behind, and asks
them to stop. It imports no JAX and touches no accelerator.
"""

import contextlib
import dataclasses
import glob
import hashlib
import importlib.util
import itertools
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scaling import config, devices, memory, store
from scaling.launch import launcher, slots
from scaling.storage import cache
from scaling.worker import protocol

TAIL_BYTES = 2000


@dataclasses.dataclass(kw_only=True)
class Slot(slots.Slot):
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

    def start(self, job: launcher.Job) -> "Workers":
        """Start workers, at most one a run. Raises ValueError where the machine has too few devices for one run."""
        return Workers(job.results(), job.sweep_name, self._slots(job), job.worker_command())

    def _slots(self, job: launcher.Job) -> list[Slot]:
        accelerators = grouped(find_accelerators(), job.mesh.least)
        cores = devices.cores()
        wanted = job.workers or len(accelerators) or max(1, len(cores) // job.mesh.least)
        count = min(wanted, job.runs)
        shares = split(cores, count) if self.pin else [[]] * count
        logs = store.Store(job.store_path).logs(job.sweep_name)
        common = environment()
        places = []
        for number in range(count):
            own = accelerators[number % len(accelerators)] if accelerators else {}
            if accelerators and count > len(accelerators):  # several share a device: none may take all of its memory
                own = {**own, devices.FRACTION: f"{_fraction(len(accelerators), count):.3f}"}
            log = logs / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
            if not accelerators:
                limit = os.environ.get(memory.LIMIT, f"{memory.share(count):.0f}")
                own = {memory.LIMIT: limit, **host_devices(job.mesh.least)}
            settings = {**common, **own, protocol.WORKERS: str(count)}
            places.append(Slot(number, environment=settings, cores=shares[number], log=log))
        return places


class Workers(slots.Workers[Slot]):
    """Processes of this machine."""

    def __init__(self, results: store.Store, sweep_name: str, places: Sequence[Slot], command: Sequence[str]):
        super().__init__(results, sweep_name, places)
        self.command = command
        for slot in places:
            self.start(slot)

    def busy(self, slot: Slot) -> bool:
        """See `slots.Workers`."""
        return slot.process is not None

    def look(self, slot: Slot) -> slots.End | None:
        """See `slots.Workers`."""
        code = None if slot.process is None else slot.process.poll()
        if code is None:
            return None
        slot.process = None
        return slots.End(code, slots.in_words(code), str(slot.log), tail(slot.log))

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

    def start(self, slot: Slot) -> None:
        """See `slots.Workers`."""
        with _on_cores(slot.cores):
            slot.process = spawn(self.command, {**os.environ, **slot.environment}, slot.log)


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker's process, which writes to `log`, in `folder` or in this one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as written:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which asks once
        )


def tail(log: Path) -> str:
    """The last `TAIL_BYTES` of a log, as text."""
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()


def environment() -> dict[str, str]:
    """What workers find in their environment beside the launcher's; what is set there already is kept.

    glibc gives JAX's temporary buffers huge pages, which it would else fault in anew at every dispatch; compiled
    programs are kept between processes, in a folder that nobody else may read or write.
    """
    settings = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONUNBUFFERED": "1", **compiled_programs()}
    return {
        **{name: os.environ.get(name, value) for name, value in settings.items()},
        protocol.LAUNCHER: str(os.getpid()),
    }


def compiled_programs() -> dict[str, str]:
    """The settings by which JAX keeps compiled programs between processes, small ones too."""
    return {"JAX_COMPILATION_CACHE_DIR": str(compile_cache()), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def compile_folder() -> Path:
    """Where compiled programs are kept: a folder for each kind of CPU, under SCALING_CACHE. It need not exist yet."""
    cpu = b""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        cpu = b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
    return cache.root() / "compiled" / hashlib.sha256(cpu).hexdigest()[:12]


def compile_cache() -> Path:
    """The folder of compiled programs, made, and private to the user.

    Raises ValueError where it belongs to someone else: what lies in it is executed.
    """
    folder = compile_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ValueError(
            f"{folder} belongs to another user and compiled programs are kept in it; set SCALING_CACHE to your own"
        )
    folder.chmod(0o700)
    return folder


def _fraction(devices: int, workers: int) -> float:
    """The share of a GPU's memory for each of more workers than devices."""
    return 0.9 * devices / workers


def host_devices(count: int) -> dict[str, str]:
    """The environment in which JAX divides the CPU into `count` devices, unless it says already into how many."""
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    return {} if count == 1 or flag in flags else {"XLA_FLAGS": f"{flags} {flag}={count}".strip()}


def default_workers(need: float, mesh: config.Mesh) -> int | None:
    """How many workers to start where nobody says: one a core, or as many as leave every device `need` bytes.

    With a mesh, one for as many cores as it has devices. None on accelerators, where `Local` starts one for each run.
    """
    if find_accelerators():
        return None
    return memory.workers(max(1, len(devices.cores()) // mesh.least), mesh.least * need)


def memory_limit(workers: int | None, runs: int, mesh: config.Mesh) -> tuple[str, float | None]:
    """The kind of device that `Local` gives workers, "cpu" or its name, and the bytes for arrays on one, if known."""
    if not find_accelerators():
        count = min(workers or max(1, len(devices.cores()) // mesh.least), runs)
        return "cpu", float(os.environ.get(memory.LIMIT, memory.share(count))) / mesh.least
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        fields = dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
        name = fields.get("Model", "").strip()
        groups = len(grouped(find_accelerators(), mesh.least))
        count = min(workers or groups, runs)
        return name, devices.memory_bytes(name, _fraction(groups, count) if count > groups else None)
    return "accelerator", None  # a TPU's workers learn it from the device


def find_accelerators() -> list[dict[str, str]]:
    """The environment that gives a process one accelerator, for each of this machine; empty where JAX will use the CPU.

    All chips of a TPU host belong to one process.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        here = [str(number) for number in range(len(glob.glob("/proc/driver/nvidia/gpus/*")))]
        names = here if visible is None else [name for name in visible.split(",") if name]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    return [{}] if devices.on_tpu() else []


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
