"""Errors told apart by what may fix them, made up and real."""

import errno
import subprocess
import sys
from typing import Any

import pytest

from scaling.storage import errors
from scaling.worker import faults


class XlaRuntimeError(RuntimeError):
    """Named as JAX's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "infrastructure"),
        (errors.DiskSpaceError("the cache needs more"), "infrastructure"),
        (ConnectionResetError("peer"), "infrastructure"),
        (FileNotFoundError("corpus"), "bug"),
        (ValueError("shape"), "bug"),
        (MemoryError(), "out_of_memory"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "out_of_memory"),
        (XlaRuntimeError("UNAVAILABLE: peer is gone"), "infrastructure"),
        (XlaRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer"), "infrastructure"),
        (XlaRuntimeError("INTERNAL: bad lowering"), "bug"),
        (XlaRuntimeError("INVALID_ARGUMENT: shapes"), "bug"),
    ],
)
def test_errors_are_told_apart(error: Exception, kind: str) -> None:
    assert faults.kind(error) == kind
    outer: Any = RuntimeError("while training")
    outer.__cause__ = error
    assert faults.kind(outer) == kind


def test_a_device_that_has_not_enough_memory_says_so() -> None:
    """An array that a limit on this process's memory does not leave room for."""
    program = """
import resource
import jax, jax.numpy as jnp
from scaling.worker import faults
jnp.ones(3).block_until_ready()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
try:
    jax.jit(lambda x: jnp.outer(x, x))(jnp.ones(40_000)).block_until_ready()
except Exception as error:
    print(faults.kind(error), type(error).__name__)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "out_of_memory JaxRuntimeError\n"
