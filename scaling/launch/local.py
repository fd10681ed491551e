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
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scaling import config, devices, memory
from scaling.data import cache
from scaling.launch import launcher
from scaling.sweep import outages, store, worker

RESTARTS = 3  # crashes of one worker after which it is given up
PAUSE_SECONDS = 5.0  # between starting workers for runs that others left
REFUSED = 2  # the exit code of the command line for errors of its user, which trying again does not mend
STOPPED = tuple(128 + number for number in outages.SIGNALS)  # exit codes of workers that were asked to stop
TAIL_BYTES = 2000


@dataclasses.dataclass
class Slot:
    """A place for one worker: its environment, cores and log, and the process in it, if one runs."""

    number: int
    environment: Mapping[str, str]
    cores: Sequence[int]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    crashes: int = 0
    given_up: bool = False


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
        slots = []
        for number in range(count):
            own = accelerators[number % len(accelerators)] if accelerators else {}
            if accelerators and count > len(accelerators):  # several share a device: none may take all of its memory
                own = {**own, devices.FRACTION: f"{_fraction(len(accelerators), count):.3f}"}
            log = logs / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
            if not accelerators:
                limit = os.environ.get(memory.LIMIT, f"{memory.share(count):.0f}")
                own = {memory.LIMIT: limit, **host_devices(job.mesh.least)}
            slots.append(Slot(number, {**common, **own, worker.WORKERS: str(count)}, shares[number], log))
        return slots


class Workers(launcher.Workers):
    """Processes of this machine, which are started anew where they crash or where other machines leave runs behind."""

    def __init__(self, results: store.Store, sweep_name: str, slots: Sequence[Slot], command: Sequence[str]):
        super().__init__()
        self.results = results
        self.sweep_name = sweep_name
        self.slots = slots
        self.command = command
        self.stopping = False
        self._started = time.monotonic()
        for slot in slots:
            self._start(slot)

    def poll(self) -> bool:
        """Look after the workers; True while there is something to wait for, here or on another machine."""
        for slot in self.slots:
            code = None if slot.process is None else slot.process.poll()
            if code is not None:
                slot.process = None
                self._ended(slot, code)
        if any(slot.process for slot in self.slots):
            if self.meanwhile is not None and not all(slot.process for slot in self.slots):
                meanwhile, self.meanwhile = self.meanwhile, None
                meanwhile()
            return True
        usable = [slot for slot in self.slots if not slot.given_up]
        if self.stopping or not usable:
            return False
        left = [status for status in self.results.statuses(self.sweep_name).values() if status in store.OPEN]
        if "planned" in left and time.monotonic() - self._started > PAUSE_SECONDS:
            for slot in usable[: left.count("planned")]:
                self._start(slot)
        return bool(left)

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

    def _start(self, slot: Slot) -> None:
        self._started = time.monotonic()
        slot.log.parent.mkdir(parents=True, exist_ok=True)
        with open(slot.log, "ab") as log, _on_cores(slot.cores):
            slot.process = subprocess.Popen(
                self.command,
                env={**os.environ, **slot.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which asks once
            )

    def _ended(self, slot: Slot, code: int) -> None:
        """Restart a worker that crashed, and say so; give it up after `RESTARTS` crashes, or where it was refused."""
        if code == 0 or self.stopping:
            return
        if code in STOPPED:
            slot.given_up = True
            self.messages.append(f"worker {slot.number} was stopped by {_signal_name(code - 128)} from outside")
            return
        slot.crashes += 1
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        if slot.crashes <= RESTARTS and code != REFUSED:
            self.messages.append(
                f"worker {slot.number} {how}; restarted ({slot.crashes} of {RESTARTS}), log {slot.log}"
            )
            self._start(slot)
        else:
            slot.given_up = True
            self.messages.append(
                f"worker {slot.number} {how} and is given up; its log {slot.log} ends:\n{tail(slot.log)}"
            )


def environment() -> dict[str, str]:
    """What workers find in their environment beside the launcher's; what is set there already is kept.

    glibc gives JAX's temporary buffers huge pages, which it would else fault in anew at every dispatch; compiled
    programs are kept between processes, in a folder that nobody else may read or write.
    """
    settings = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONUNBUFFERED": "1", **compiled_programs()}
    return {
        **{name: os.environ.get(name, value) for name, value in settings.items()},
        outages.LAUNCHER: str(os.getpid()),
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


def _signal_name(number: int) -> str:
    return signal.Signals(number).name


def tail(log: Path) -> str:
    """The last lines of a log. Raises FileNotFoundError where there is none."""
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
