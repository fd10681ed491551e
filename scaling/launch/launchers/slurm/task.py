"""What each process of a Slurm job does: it starts a worker, forwards Slurm's signals to it, and exits as it did.

Slurm sends a signal to every process of a job step or to its tasks alone, as the cluster tracks processes, and sends
some twice; a worker takes a second SIGTERM for "stop at once". So the worker has Slurm's signals blocked, and gets one
SIGHUP, on which it saves its run and ends. What follows depends on the signal:

    SIGUSR2   the time is nearly up: submitit has the job requeued (SUBMITIT_PREEMPT_SIGNAL names another signal)
    SIGTERM   the job is to make room, and still runs for its grace time: requeued at once, so that the other can start.
              If it runs no more, Slurm ends it: what is cancelled stays so, what is preempted is requeued by Slurm
    SIGINT    its launcher, or a person, wants it to end: never requeued

A worker that crashes, or ends with 75 because the infrastructure failed, is requeued, at most FAILURES times in a row.
Every other exit code of the worker becomes the job's: 0 nothing is left to claim, 2 refused, 130 stopped.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scaling.launch import environments, launcher

FAILURES = 10  # lives in a row that ended in a crash, after which a job is not requeued
POLL_SECONDS = 0.2
FIRST_PORT, PORTS = 61440, 4096  # above the ports that Linux gives to clients; of these JAX takes one a job, too


@dataclasses.dataclass
class SlurmTask:
    """What submitit runs in every process of a job; pickled when submitted, and again when requeued.

    `environment` is what the worker finds beside what `environments.worker` sets on this node, `gpus` how
    many of its node's GPUs each process has, where several train each run together. `failures` counts crashes in a row.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    gpus: int = 0
    failures: int = 0

    def __call__(self) -> None:
        """Run a worker to its end. Exits with its code, or has the job requeued: then submitit exits."""
        with _noted(_signals()) as (asked, before):
            code = self._work(asked)
            if int(os.environ["SLURM_PROCID"]) != 0:  # the first process decides; a failure here would end it, too
                _say(f"process {os.environ['SLURM_PROCID']}: the worker ended with {code}")
                return
            if self._goes_on(code, asked):
                _say(f"the worker ended with {code}; the job is requeued")
                before[_signals()[0]](_signals()[0], None)
        _say(f"the worker ended with {code}; the job ends")
        if signal.SIGINT in asked and code != 0:
            code = 128 + signal.SIGINT
        if code != 0:
            sys.exit(128 - code if code < 0 else code)

    def checkpoint(self) -> Any:
        """What submitit is to run after a requeue: the same. The run itself is in the store, saved by the worker."""
        import submitit.helpers

        return submitit.helpers.DelayedSubmission(self)

    def settings(self) -> dict[str, str]:
        """The environment of the worker, beside this process' own."""
        settings = {**environments.worker(), **self.environment}
        if int(os.environ["SLURM_NTASKS"]) > 1:
            settings |= group(os.environ, self.gpus)
        return settings

    def _work(self, asked: list[int]) -> int:
        """The worker's exit code, once it has ended; the first signal makes it save and end."""
        process, lives = os.environ["SLURM_PROCID"], os.environ.get("SLURM_RESTART_COUNT", "0")
        node, count = os.environ["SLURMD_NODENAME"], os.environ["SLURM_NTASKS"]
        _say(f"process {process} of {count} on {node}, requeued {lives} times")
        with _blocked(_signals()):
            worker = subprocess.Popen(self.command, env={**os.environ, **self.settings()}, stderr=subprocess.STDOUT)
        forwarded = False
        while (code := worker.poll()) is None:
            if asked and not forwarded:
                forwarded = True
                _say(f"{signal.Signals(asked[0]).name}: the worker is asked to save its run and end")
                worker.send_signal(signal.SIGHUP)
            time.sleep(POLL_SECONDS)
        return code

    def _goes_on(self, code: int, asked: list[int]) -> bool:
        """Whether the job is to be requeued, after the worker ended with `code`."""
        stopped = code in (*launcher.STOPPED, -signal.SIGHUP)  # the latter: it had claimed nothing yet
        self.failures = 0 if code == 0 or stopped else self.failures + 1
        if code in (0, launcher.REFUSED) or signal.SIGINT in asked or self.failures > FAILURES:
            return False
        if stopped and not asked:  # someone stopped the worker by hand
            return False
        return _signals()[0] in asked or _running()


def group(environment: Mapping[str, str], gpus: int) -> dict[str, str]:
    """What makes a process one of those that train each run together, from the environment of a task of Slurm.

    The first process listens at the address to which Slurm connects every task's output, which all nodes reach. JAX
    would give each process one GPU of its node: it gets `gpus`.
    """
    host, job = environment["SLURM_LAUNCH_NODE_IPADDR"], int(environment["SLURM_JOB_ID"])
    coordinator = f"{f'[{host}]' if ':' in host else host}:{FIRST_PORT + job % PORTS}"
    settings = environments.group(coordinator, int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"]))
    if gpus:
        first = int(environment["SLURM_LOCALID"]) * gpus
        settings["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(first, first + gpus)))
    return settings


def _signals() -> tuple[int, int, int]:
    """The signals that are heard: submitit's, which warns of the end, then the two that ask for it."""
    import submitit

    return getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}"), signal.SIGTERM, signal.SIGINT


def _running() -> bool:
    """Whether Slurm still counts this job as running; not so where it is being cancelled or requeued."""
    import submitit

    command = ["squeue", "--noheader", "--format=%T", f"--jobs={submitit.JobEnvironment().job_id}"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip() == "RUNNING"


@contextlib.contextmanager
def _noted(signals: tuple[int, ...]) -> Iterator[tuple[list[int], dict[int, Callable[..., Any]]]]:
    """Signals are only noted while the body runs, in a list; beside it is what handled them before.

    What they ask for takes minutes and waits for a process, which a handler must not.
    """
    asked: list[int] = []
    before: dict[int, Any] = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in signals}
    try:
        yield asked, before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _blocked(signals: tuple[int, ...]) -> Iterator[None]:
    """A process that is started in the body never gets these signals; this one gets them after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} slurm task: {line}", flush=True)
