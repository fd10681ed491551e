"""The provenance of a result: versions, devices, and the commit of the code that computed it."""

import contextlib
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("scaling", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, Any]:
    """The fields of a run's status that say where it trains: versions, device, git_commit."""
    import jax

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    return {"versions": versions, "device": kind if count == 1 else f"{count} × {kind}", "git_commit": git_commit()}


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with `+` where files differ; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip()
