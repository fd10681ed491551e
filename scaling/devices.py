"""What devices there are, and what they can do: peak rates and memory by their makers' data sheets. No JAX here."""

import glob
import importlib.util
import os
import time

# Peak dense bf16 FLOP/s, keyed by a part of JAX's `device_kind`; the first match counts.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H200", 989e12),  # NVIDIA H200 data sheet: 989 TFLOP/s bf16 without sparsity (SXM)
    ("H100 PCIe", 756e12),  # NVIDIA H100 data sheet, PCIe
    ("H100", 989e12),  # NVIDIA H100 data sheet, SXM
    ("A100", 312e12),  # NVIDIA A100 data sheet
    ("TPU v6", 918e12),  # Google Cloud TPU documentation, v6e (Trillium), a chip
    ("TPU v5 lite", 197e12),  # Google Cloud TPU documentation, v5e, a chip
    ("TPU v5e", 197e12),  # the same chip under its product name
    ("TPU v5", 459e12),  # Google Cloud TPU documentation, v5p, a chip
    ("TPU v4", 275e12),  # Google Cloud TPU documentation, v4, a chip
)

# Memory in bytes, keyed likewise: the data sheets above, in decimal units.
MEMORY: tuple[tuple[str, float], ...] = (
    ("H200", 141e9),
    ("H100", 80e9),
    ("A100-SXM4-40GB", 40e9),
    ("A100-PCIE-40GB", 40e9),
    ("A100", 80e9),
    ("TPU v6", 32e9),
    ("TPU v5 lite", 16e9),
    ("TPU v5e", 16e9),
    ("TPU v5", 95e9),
    ("TPU v4", 32e9),
)
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the share of a GPU's memory that JAX takes for arrays
USUAL_FRACTION = 0.75  # where that is not set


THREADS = "NPROC"  # as many threads of the CPU as XLA computes with, where cores are shared out but not by number


def cores() -> list[int]:
    """The CPU cores that this process may use, by number: no more than XLA has threads."""
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return own[: int(os.environ.get(THREADS) or len(own))]


def on_tpu() -> bool:
    """Whether JAX will use the TPU chips of this machine, all of which belong to one process."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.util.find_spec("libtpu"):
        return False
    return bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))


def memory_bytes(device_kind: str, fraction: float | None = None) -> float | None:
    """Bytes for arrays on one device, or None where the table does not know it (CPUs).

    Of a GPU JAX takes a `fraction`; None: the one that the environment sets, or JAX's own.
    """
    for name, memory in MEMORY:
        if name.lower() in device_kind.lower():
            share = float(os.environ.get(FRACTION, USUAL_FRACTION)) if fraction is None else fraction
            return memory if name.startswith("TPU") else share * memory
    return None


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one device, or None where the table does not know it (CPUs)."""
    for name, peak in PEAK_FLOPS:
        if name.lower() in device_kind.lower():
            return peak
    return None


def measured_cpu_flops(size: int = 1024, seconds: float = 0.1) -> float:
    """float32 FLOP/s of a square matrix product by NumPy on this machine, the best of a few: what its cores can do."""
    import numpy as np

    left = np.ones((size, size), np.float32)
    best, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds or not best:
        before = time.perf_counter()
        left @ left
        best = max(best, 2 * size**3 / (time.perf_counter() - before))
    return best
