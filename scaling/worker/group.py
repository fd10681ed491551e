"""A group of processes that train each run together: how a process joins the group, and how all of them end.

Invariant: where one process of a group dies, all end, so that the group can be started again. JAX's coordination
service aborts the others when the heartbeats of one are missing for `HEARTBEAT_SECONDS`, or as soon as a device reports
it. An abort runs no Python. So each member of a group is two processes: one that computes, and its parent, which
forwards signals and turns an abort into the exit code `protocol.AGAIN`: start the group again.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from scaling import devices
from scaling.training import processes
from scaling.worker import protocol

HEARTBEAT_SECONDS = 40  # without a heartbeat, after which a process counts as dead; detected some seconds later
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LOOK_SECONDS = 0.1
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl

_joined = False


def joined() -> bool:
    """Whether this process is one of a group, so that its parent forwards signals to it."""
    return _joined


def find() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` from the environment; None for a worker on its own.

    They are in three variables (`NAMES`), or in those of Slurm, in a step of several tasks, or of a TPU slice. A task
    of Slurm takes all devices that it sees, unless JAX_LOCAL_DEVICE_IDS says which. Raises ValueError where some of the
    three are missing.
    """
    given = [os.environ.get(name) for name in NAMES]
    if any(given):
        if not all(given):
            missing = ", ".join(name for name, value in zip(NAMES, given, strict=True) if not value)
            raise ValueError(
                f"a worker of several processes needs {', '.join(NAMES)}, and {missing} is not set; set all of them, "
                "or none for a worker on its own"
            )
        address, count, index = given
        assert count is not None
        assert index is not None
        return _several(int(count), coordinator_address=address, num_processes=int(count), process_id=int(index))
    if "SLURM_STEP_NODELIST" in os.environ:  # not in a batch script, which is no step of several
        own: list[int] | None = (
            None if "JAX_LOCAL_DEVICE_IDS" in os.environ else []
        )  # empty: all; JAX's default is one a task
        return _several(int(os.environ.get("SLURM_NTASKS", "1")), local_device_ids=own)
    if devices.on_tpu():
        hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
        return {} if hosts is None else _several(len(hosts.split(",")))  # JAX asks Google Cloud for the rest
    return None


def _several(count: int, **arguments: Any) -> dict[str, Any] | None:
    return arguments if count > 1 else None


def run(work: Callable[[], int], signals: Sequence[int], launcher: str, log: Callable[[str], None]) -> int:
    """The exit code of a worker: of `work`, done here, or by a child of this process that has joined its group.

    `signals` are those that ask `work` to stop; `launcher` is the variable with the process id of the launcher, whose
    end asks so too.
    """
    arguments = find()
    if arguments is None:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()  # before JAX has threads
    if child:
        return _wait(child, signals, os.environ.get(launcher), log)
    os.environ.pop(launcher, None)  # the parent turns the end of the launcher into a signal
    _die_with(parent)
    _join(arguments, log)
    return _ended(work, log)


def _join(arguments: dict[str, Any], log: Callable[[str], None]) -> None:
    global _joined
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        log(f"the processes of this worker did not find each other: {error}")
        _exit(protocol.AGAIN)
    _joined = True
    log(f"process {jax.process_index()} of {jax.process_count()} that train each run together")


def _ended(work: Callable[[], int], log: Callable[[str], None]) -> int:
    """What `work` returns. Where the others may wait for this process without end, it exits at once instead."""
    try:
        code = work()
    except Exception as error:
        if processes.is_leader():  # `followers.leader` has broadcast the end
            raise
        traceback.print_exc()
        parted = isinstance(error, processes.PartedError)
        _exit(
            protocol.AGAIN
            if parted
            else protocol.REFUSED
            if isinstance(error, ValueError | OSError)
            else protocol.CRASHED
        )
    if code == protocol.AGAIN:  # the others may wait for this process in a computation that never ends
        log(f"ending with exit code {protocol.AGAIN}, to be started again with the others")
        _exit(code)
    return code


def _exit(code: int) -> NoReturn:
    """Exit without the shutdown of JAX, which waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies: they are one worker."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(protocol.AGAIN)


def _wait(child: int, signals: Sequence[int], launcher: str | None, log: Callable[[str], None]) -> int:
    """Forward signals until the child has ended; a second one of a kind kills it. Returns this worker's exit code."""
    passed: set[int] = set()

    def give(number: int, frame: object = None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGKILL if number in passed else number)
        passed.add(number)

    for number in signals:
        signal.signal(number, give)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return _code(os.waitstatus_to_exitcode(status), passed, log)
        if launcher not in (None, str(os.getppid())) and signal.SIGHUP not in passed:
            give(signal.SIGHUP)
        time.sleep(LOOK_SECONDS)


def _code(status: int, passed: set[int], log: Callable[[str], None]) -> int:
    """The exit code of a worker whose process ended with a code, or, where it is negative, by a signal."""
    if status >= 0:
        return status
    if -status in passed:  # it died of a signal that came before its handler was installed
        return 128 - status
    if -status == signal.SIGABRT:
        log(f"aborted, as JAX does where another process has died; ending with exit code {protocol.AGAIN}")
        return protocol.AGAIN
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)  # end by the signal that ended the child: killed from outside, or by a bug
    return 128 - status
