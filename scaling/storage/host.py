"""Which processes run here: what a process id found in a store means, and whether its process has ended."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


def place() -> str:
    """Where process ids have the same meaning as here: host, boot, and process namespace (containers)."""
    boot = namespace = "unknown"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


def started(pid: int) -> int:
    """When a process started, in the system's own units; 0 where none runs under that id, or it has ended."""
    if not os.path.isdir("/proc/self"):
        import psutil

        return int(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else 0
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if after_name[0] in "ZX" else int(after_name[19])


@functools.cache
def tag() -> str:
    """`place` in eight hex digits, for names of files."""
    return hashlib.sha256(place().encode()).hexdigest()[:8]
