"""The worker: claims the runs of a sweep one after another and trains them, until nothing is left to claim.

Any number of workers, on any machines that see the store, started by any launcher, share a sweep: they coordinate by
leases alone. A worker ends when no run can be claimed *now*. It does not wait for runs that others hold: the launcher
sees how the others end and starts a worker where a run is left (`scaling.launch.slots` does).

Exit codes (`Tally.exit_code`): 0 nothing is left to claim, runs may have failed; 143 stopped by SIGTERM and 130 by
SIGINT, 129 by SIGHUP: the run is saved, its lease released, and a new worker goes on; 75 a device or another process
is gone, and a new process is needed; 2 refused, by an error that trying again does not fix. Any other code is a crash.
Where several processes train each run together (`group`), all end with the same code, or with 75 where one died.

A store that cannot be written or reached is retried until it can, or a stop is asked for. What becomes of a run whose
training raises: `endings`.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable

from scaling import config, store
from scaling.storage import errors, retry
from scaling.store import gc
from scaling.training import processes
from scaling.worker import context, endings, followers, group, packs, precompile, protocol, provenance, queue, signals


@dataclasses.dataclass
class Tally:
    """What one worker did: runs by how they ended, the signal that stopped it, and whether its devices are broken."""

    finished: int = 0
    diverged: int = 0
    failed: int = 0
    stopped: int = 0
    lost: int = 0
    signal: int | None = None
    broken: bool = False

    @property
    def exit_code(self) -> int:
        """0; 128 + the signal; or `AGAIN`."""
        return protocol.AGAIN if self.broken else 0 if self.signal is None else 128 + self.signal

    def count(self, ended: endings.Ended) -> None:
        """Add a run that ended."""
        setattr(self, ended, getattr(self, ended) + 1)


def work(
    results: store.Store,
    sweep_name: str,
    *,
    log: Callable[[str], None],
    retry_failed: bool = False,
    trainer: context.Trainer = context.TRAINER,
) -> Tally:
    """Train what a sweep lacks, the longest runs first, which packs a pool best.

    Failed runs are left alone unless `retry_failed`. SIGTERM, SIGINT and SIGHUP stop the run at its next dispatch, with
    a checkpoint. Raises ValueError, before anything is trained, where a run that is left cannot fit this worker's
    devices, or none that is left is readable, and OSError where the store is away and a stop is asked for.
    """
    tally = Tally()
    with signals.until_signal(log) as stop:
        waiter = retry.Waiter(stop, log)
        with waiter.until_stopped():
            opened = _open(results.retrying(waiter), sweep_name, trainer, stop, waiter, log)
            if retry_failed:
                _retry_failed(opened)
            opened.check_memory()
            _train_all(opened, tally)
        tally.signal = stop.signal
    return tally


def main(
    results: store.Store, sweep_name: str, *, retry_failed: bool = False, trainer: context.Trainer = context.TRAINER
) -> int:
    """Work, with a line of log an event on standard output; returns the documented exit code."""

    def log(line: str) -> None:
        with contextlib.suppress(OSError):  # the disk of the log is full: losing a line must not end the worker
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)

    def serve() -> int:
        if processes.is_leader():
            return followers.leader(
                lambda: work(results, sweep_name, log=log, retry_failed=retry_failed, trainer=trainer).exit_code
            )
        with signals.until_signal(log) as stop:
            return followers.follower(results, trainer, lambda: stop.signal if stop() else None, log)

    return group.run(serve, protocol.SIGNALS, protocol.LAUNCHER, log)


def _open(
    results: store.Store,
    sweep_name: str,
    trainer: context.Trainer,
    stop: signals.Stop,
    waiter: retry.Waiter,
    log: Callable[[str], None],
) -> context.WorkerContext:
    """The work on a sweep of a store."""
    sweep = config.Sweep.model_validate(results.sweep(sweep_name)["config"])
    queued, about = queue.Queue(results, sweep_name, log), provenance.environment()
    return context.WorkerContext(results, sweep_name, sweep, queued, trainer, about, stop, waiter, log)


def _retry_failed(opened: context.WorkerContext) -> None:
    """Let the failed runs of the sweep be claimed again; damaged ones stay as they are."""
    for queued in opened.runs.left():
        with contextlib.suppress(errors.UnreadableError):  # the queue logs it where it tries to claim the run
            opened.results.retry(queued.run_id)


def _train_all(opened: context.WorkerContext, tally: Tally) -> None:
    """Claim packs and train them until none can be claimed; then precompile the next stage and tidy the store."""
    stop, ends, precompiler = opened.stop, endings.Endings(opened), precompile.Precompiler(opened)
    trainer = packs.PackTrainer(opened, precompiler, ends)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    for claims in opened.runs.claims(owner, opened.about, opened.most, lambda: stop.anywhere() or ends.broken):
        with contextlib.ExitStack() as heartbeats:
            for claim in claims:
                heartbeats.enter_context(claim.lease.beating(opened.log))
            beside = precompiler.start_next(claims)
            for ended in trainer.train(claims):
                tally.count(ended)
            if beside is not None and not stop():
                beside.join()
        tally.broken = ends.broken
        ends.wait_for_infrastructure()
    if not tally.broken:
        precompiler.compile_later()
        gc.tidy(opened.results, opened.runs.known(), stop, opened.log)
