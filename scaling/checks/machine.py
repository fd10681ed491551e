"""Checks of this machine: what JAX finds, accelerators that lie idle, and variables for several processes."""

import dataclasses
import glob
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scaling import devices as here
from scaling import memory
from scaling.checks import finding
from scaling.launch import environments
from scaling.worker import group

ANSWER_SECONDS = 180.0  # for JAX to find its devices; of a large slice that takes a minute
PROBE = (
    "import collections, json, jax\n"
    "kinds = collections.Counter(device.device_kind for device in jax.local_devices())\n"
    "print('\\n' + json.dumps({'backend': jax.default_backend(), 'kinds': kinds}))"
)
GOOGLE = "0x1ae0"  # vendor of PCI devices, and the ids of its TPU chips: v2 and v3, v4, v5p, v5e, v6e, 7x
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
HIDES_ALL = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES


@dataclasses.dataclass(frozen=True)
class Seen:
    """What JAX finds: its backend and the kinds of its devices with their counts, or the error that it ends with."""

    backend: str = ""
    kinds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""

    def words(self) -> str:
        """`2 × NVIDIA H100`."""
        return ", ".join(f"{count} × {kind}" for kind, count in self.kinds.items())


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What the machine has whatever JAX finds: GPUs of NVIDIA's driver, TPU chips, and plugins that are installed."""

    gpus: int
    tpus: int
    plugins: Sequence[str]


def look(seconds: float = ANSWER_SECONDS) -> Seen:
    """Ask JAX in a process of its own, which takes no more of a GPU's memory than it needs."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return Seen(error=f"no answer within {seconds:.0f} s")
    if asked.returncode:
        said = asked.stderr.strip().splitlines()
        return Seen(error=said[-1] if said else f"it ended with exit code {asked.returncode}")
    return Seen(**json.loads(asked.stdout.strip().splitlines()[-1]))


def hardware(root: Path = Path("/")) -> Hardware:
    """Look at the files by which drivers show their devices."""
    gpus = len(glob.glob(f"{root}/proc/driver/nvidia/gpus/*"))
    ids = [Path(path) for path in glob.glob(f"{root}/sys/bus/pci/devices/*/vendor")]
    own = [path for path in ids if path.read_text().strip() == GOOGLE]
    tpus = sum(path.with_name("device").read_text().strip() in TPUS for path in own)
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu")
    return Hardware(gpus, tpus, [name for name in plugins if importlib.util.find_spec(name)])


def devices(seen: Seen, has: Hardware, environment: Mapping[str, str]) -> list[finding.Finding]:
    """Whether JAX finds devices, and all the accelerators that there are."""
    check = "devices"
    if seen.error:
        remedy = "fix the installation (`python -c 'import jax; jax.devices()'` shows all of it)"
        if environment.get("JAX_PLATFORMS"):
            remedy = f"JAX_PLATFORMS={environment['JAX_PLATFORMS']} allows nothing else: unset it, or {remedy}"
        if has.gpus or has.tpus:
            remedy += "; where a process trains on them now, ask again when it has ended"
        return [finding.wrong(check, f"JAX finds none: {seen.error}", remedy)]
    if seen.backend != "cpu":
        findings = [finding.ok(check, f"{seen.words()} ({seen.backend})")]
        if not environments.find_accelerators():
            findings.append(
                finding.warning(
                    "launcher",
                    "JAX finds accelerators of which the local launcher sees none (it reads /proc/driver/nvidia, "
                    "/dev/accel* and /dev/vfio), and it would start a worker for each CPU core",
                    "start one worker by `scaling worker STORE SWEEP`, or `scaling sweep --workers 1`",
                )
            )
        return findings
    if has.gpus or has.tpus:
        return [_idle(check, has, environment)]
    free = memory.available()
    return [finding.ok(check, f"the CPU: {len(here.cores())} cores, {free / 1e9:.1f} GB of memory free")]


def _idle(check: str, has: Hardware, environment: Mapping[str, str]) -> finding.Finding:
    """Why JAX uses the CPU though there are accelerators."""
    there = f"{has.gpus} NVIDIA GPUs" if has.gpus else f"{has.tpus} TPU chips"
    platforms, visible = environment.get("JAX_PLATFORMS"), environment.get("CUDA_VISIBLE_DEVICES")
    if platforms:
        return finding.warning(
            check, f"{there}, which JAX_PLATFORMS={platforms} hides: JAX uses the CPU", "unset it to train on them"
        )
    if has.gpus and visible in HIDES_ALL:
        return finding.warning(
            check, f"{there}, which CUDA_VISIBLE_DEVICES={visible!r} hides: JAX uses the CPU", "unset it to use them"
        )
    extra, own = ("cuda", "cuda") if has.gpus else ("tpu", "libtpu")
    if not any(own in plugin for plugin in has.plugins):
        return finding.wrong(
            check, f"{there}, and JAX has no plugin for them and uses the CPU", f"pip install 'scaling[{extra}]'"
        )
    return finding.wrong(
        check,
        f"{there} and {', '.join(has.plugins)}, and JAX uses the CPU",
        "run `JAX_PLATFORMS=" + extra + " python -c 'import jax; jax.devices()'`, which says why: often the driver is "
        "older than the plugin needs",
    )


def processes(environment: Mapping[str, str]) -> list[finding.Finding]:
    """Whether the variables by which several processes train each run together are complete, or all absent."""
    check = "processes"
    findings = [*_jax_variables(check, environment), *_slurm(check, environment), *_tpu_workers(check, environment)]
    return findings or [finding.ok(check, "a worker started here trains on its own: no variable says otherwise")]


def _jax_variables(check: str, environment: Mapping[str, str]) -> list[finding.Finding]:
    given = {name: environment[name] for name in group.NAMES if environment.get(name)}
    if not given:
        if environment.get("JAX_LOCAL_DEVICE_IDS") and "SLURM_STEP_NODELIST" not in environment:
            return [
                finding.warning(
                    check,
                    f"JAX_LOCAL_DEVICE_IDS is set, which counts only with {', '.join(group.NAMES)}",
                    "set CUDA_VISIBLE_DEVICES to give a process some of the GPUs",
                )
            ]
        return []
    missing = [name for name in group.NAMES if name not in given]
    if missing:
        return [
            finding.wrong(
                check,
                f"{', '.join(given)} set and {', '.join(missing)} not: a worker started here is refused",
                "set all three, or none for a worker on its own",
            )
        ]
    address, count, index = (given[name] for name in group.NAMES)
    host, colon, port = address.rpartition(":")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        return [
            finding.wrong(
                check,
                f"JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}",
                "number the processes from 0 to one less than their count",
            )
        ]
    if not (host and colon and port.isdecimal()):
        return [
            finding.wrong(
                check, f"JAX_COORDINATOR_ADDRESS={address} is no HOST:PORT", "give process 0's host and a port"
            )
        ]
    return [finding.ok(check, f"process {index} of {count}, which meet at {address}")]


def _slurm(check: str, environment: Mapping[str, str]) -> list[finding.Finding]:
    if "SLURM_JOB_ID" not in environment or any(environment.get(name) for name in group.NAMES):
        return []
    tasks = environment.get("SLURM_NTASKS")
    if "SLURM_STEP_NODELIST" not in environment:
        if tasks is None or tasks == "1":
            return []
        return [
            finding.warning(
                check,
                f"a shell of Slurm job {environment['SLURM_JOB_ID']} of {tasks} tasks: what is started here is none of "
                "them, and trains on its own",
                "start workers by srun",
            )
        ]
    missing = [name for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID") if name not in environment]
    if missing:
        return [
            finding.wrong(
                check, f"a step of Slurm without {', '.join(missing)}", "pass on all of SLURM_*, or start it by srun"
            )
        ]
    return [finding.ok(check, f"task {environment['SLURM_PROCID']} of {tasks} of a step of Slurm")]


def _tpu_workers(check: str, environment: Mapping[str, str]) -> list[finding.Finding]:
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    hosts = [name for name in names.split(",") if name]
    if len(hosts) < 2:
        return []
    index = environment.get("TPU_WORKER_ID", "")
    if not index.isdecimal() or int(index) >= len(hosts):
        return [
            finding.wrong(
                check,
                f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts and TPU_WORKER_ID is {index or 'not set'}",
                "set it on each host to its place in that list, from 0",
            )
        ]
    return [finding.ok(check, f"host {index} of the {len(hosts)} of a TPU slice")]
