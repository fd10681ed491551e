"""Run `scaling` of a checkout on one CPU core, apart from the caller's settings, and say on which stack that was."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TREE = HERE.parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def command(arguments: list[str], tree: Path, cache: Path, core: int) -> "subprocess.CompletedProcess[str]":
    """`scaling ARGUMENTS` by the code of `tree` in this folder, to which the globs of the configs are relative.

    On one core: how XLA splits a sum follows the number of threads.
    """
    called = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "scaling.cli", *arguments]
    return subprocess.run(called, cwd=HERE, env=_environment(tree, cache), capture_output=True, text=True)


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def stack(tree: Path) -> dict[str, str]:
    """Versions and CPU. Raises ValueError where the code that would run is not that of `tree`."""
    code = (
        "import importlib.metadata as m, json, platform, scaling\n"
        f"print(json.dumps([scaling.__file__, platform.python_version(), *map(m.version, {PACKAGES})]))"
    )
    called = [sys.executable, "-c", code]
    environment = _environment(tree, HERE / "unused")
    told = subprocess.run(called, cwd=HERE, env=environment, capture_output=True, text=True, check=True)
    where, python, *versions = json.loads(told.stdout)
    if not Path(where).resolve().is_relative_to(tree):
        raise ValueError(f"`import scaling` finds {where}, which is not in {tree}; give a checkout as --tree")
    return {"python": python, **dict(zip(PACKAGES, versions, strict=True)), "cpu": _cpu()}


def _environment(tree: Path, cache: Path) -> dict[str, str]:
    """The caller's environment without its settings of XLA, JAX and `scaling`, so that only the code decides."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "SCALING_"))}
    ours = {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "JAX_PLATFORMS": "cpu", "SCALING_CACHE": str(cache)}
    return {**kept, **ours}


def _cpu() -> str:
    """The model of the CPU and its vector extensions, which XLA compiles for."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    vectors = [flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "fma", "amx"))]
    return " ".join([fields.get("model name", "unknown"), *vectors])
