"""The environment of workers: compiled programs, devices, and the variables by which processes find one another.

Every launcher sets it on the machine where the worker runs.
"""

import contextlib
import glob
import hashlib
import importlib.util
import os
from pathlib import Path

from scaling import devices
from scaling.storage import cache
from scaling.worker import protocol


def worker() -> dict[str, str]:
    """What workers find in their environment beside the launcher's; what is set there already is kept.

    glibc gives JAX's temporary buffers huge pages, which it would else fault in again at every dispatch; compiled
    programs are kept between processes, in a folder that nobody else may read or write.
    """
    settings = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONUNBUFFERED": "1", **compiled_programs()}
    return {
        **{name: os.environ.get(name, value) for name, value in settings.items()},
        protocol.LAUNCHER: str(os.getpid()),
    }


def compiled_programs(folder: Path | None = None) -> dict[str, str]:
    """The settings by which JAX keeps compiled programs between processes, small ones too, by default in our cache."""
    kept = compile_cache() if folder is None else folder
    return {"JAX_COMPILATION_CACHE_DIR": str(kept), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


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


def host_devices(count: int) -> dict[str, str]:
    """The environment in which JAX divides the CPU into `count` devices, unless it says already into how many."""
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    return {} if count == 1 or flag in flags else {"XLA_FLAGS": f"{flags} {flag}={count}".strip()}


def group(coordinator: str, processes: int, index: int) -> dict[str, str]:
    """The variables of one of several processes that train the same runs; `coordinator` is process 0's HOST:PORT."""
    return {
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }


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
