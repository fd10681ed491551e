"""The worker: claims the runs of a sweep one after another and trains them, until nothing is left to claim.

Any number of workers, on any machines that see the store, started by any launcher, share a sweep: they only meet in
the leases. A worker ends when no run can be claimed *now*. It does not wait for runs that others hold: whoever started
the others sees how they end and starts a worker anew where a run is left (`scaling.launch.local` does).

Exit codes (`Tally.exit_code`): 0 nothing is left to claim, runs may have failed; 143 stopped by SIGTERM and 130 by
SIGINT, 129 by SIGHUP: the run is saved, its lease released, and a new worker goes on. Any other code is a crash.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import config, tracking
from scaling.sweep import lease as leases
from scaling.sweep import record, store

if TYPE_CHECKING:
    from scaling import loop

PACKAGES = ("scaling", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHER = "SCALING_LAUNCHER_PID"  # the process whose end a worker takes for a request to stop


@dataclasses.dataclass
class Tally:
    """What one worker did: runs by how they ended, and the signal that stopped it, if one did."""

    finished: int = 0
    diverged: int = 0
    failed: int = 0
    stopped: int = 0
    lost: int = 0
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal."""
        return 0 if self.signal is None else 128 + self.signal


def work(results: store.Store, sweep_name: str, *, log: Callable[[str], None], retry_failed: bool = False) -> Tally:
    """Train what a sweep lacks, the runs of most FLOPs first, which packs a pool best.

    A run that raises keeps its traceback in status.json and the next one is claimed; failed runs are left alone unless
    `retry_failed`. SIGTERM, SIGINT and SIGHUP stop the run at its next dispatch, with a checkpoint.
    """
    sweep = results.sweep(sweep_name)
    settings = config.Sweep.model_validate(sweep["config"])
    labels = {member["run_id"]: member["labels"] for member in sweep["members"]}
    if retry_failed:
        for run_id in labels:
            results.retry(run_id)
    tracker = tracking.build(settings.tracking, log)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    about = environment()
    tally = Tally()
    with _until_signal(log) as stop:
        for lease in _claims(results, list(labels), owner, about, stop):
            with lease.beating(log):
                ended = _attempt(results, settings, sweep_name, lease, labels[lease.run_id], about, tracker, stop, log)
            setattr(tally, ended, getattr(tally, ended) + 1)
        tally.signal = stop.signal
    return tally


def main(results: store.Store, sweep_name: str, *, retry_failed: bool = False) -> int:
    """Work, with a line of log an event on standard output; returns the documented exit code."""

    def log(line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)

    return work(results, sweep_name, log=log, retry_failed=retry_failed).exit_code


class Stop:
    """Whether the worker was asked to stop: by a signal, or because its launcher is gone."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._launcher = int(os.environ[LAUNCHER]) if LAUNCHER in os.environ else None

    def __call__(self) -> bool:
        if self._launcher not in (None, os.getppid()) and self.signal is None:
            self.signal = signal.SIGHUP
        return self.signal is not None


@contextlib.contextmanager
def _until_signal(log: Callable[[str], None]) -> Iterator[Stop]:
    """Signals are noted while the body runs; a second one of a kind does what it would do without us."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def note(number: int, frame: object) -> None:
        stop.signal = number
        signal.signal(number, before[number])
        log(f"{signal.Signals(number).name}: saving the run and stopping; a second one stops at once")

    before = {int(number): signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _claims(
    results: store.Store, run_ids: Sequence[str], owner: str, about: dict[str, Any], stop: Stop
) -> Iterator[leases.Lease]:
    """Leases of runs without a result, the largest first, until none can be had or a stop is asked for."""
    left = [run_id for run_id in run_ids if results.result(run_id) is None]
    flops = {run_id: record.columns(*record.read(results.config(run_id)))["flops"] for run_id in left}
    left.sort(key=lambda run_id: flops[run_id], reverse=True)
    while left and not stop():
        lease = next((lease for run_id in left if (lease := results.claim(run_id, owner, about))), None)
        if lease is None:
            return
        yield lease
        left = [run_id for run_id in left if results.result(run_id) is None]


def _attempt(
    results: store.Store,
    settings: config.Sweep,
    sweep_name: str,
    lease: leases.Lease,
    labels: dict[str, Any],
    about: dict[str, Any],
    tracker: tracking.Tracker,
    stop: Stop,
    log: Callable[[str], None],
) -> str:
    """Train one claimed run and store how it ended; returns the field of `Tally` that counts it."""
    run, corpus = record.read(results.config(lease.run_id))
    counted = record.columns(run, corpus)
    log(f"{lease.run_id} attempt {lease.attempt}: {record.describe(counted)}")
    name, resolved = record.name_of(counted, lease.run_id), {**counted, "run": run.model_dump(mode="json")}
    tracker.start(lease.run_id, name, sweep_name, resolved, lease.folder)

    def keep(rows: list[dict[str, Any]]) -> None:
        lease.metrics(rows)
        tracker.log(rows)

    try:
        outcome = _train(run, settings.execution, corpus, lease, keep, stop, log)
    except Exception as error:  # the run's own failure, whatever it is: kept with the run, and the others go on
        reason = f"{type(error).__name__}: {error}"
        tracker.finish({"status": "failed", "reason": reason})
        if lease.lost:
            log(f"{lease.run_id}: lost to another worker, and then failed: {reason}")
            return "lost"
        lease.fail(reason, traceback.format_exc())
        log(f"{lease.run_id}: failed: {reason}")
        return "failed"
    if outcome.status == "stopped" and not lease.lost:
        lease.release(f"{outcome.reason} at step {outcome.step}; resumes there")
        tracker.finish({"status": "stopped", "reason": outcome.reason})
        log(f"{lease.run_id}: stopped at step {outcome.step} of {run.steps}; resumes there")
        return "stopped"
    row = result_row(lease.run_id, sweep_name, counted, labels, run, outcome, about["device"])
    if outcome.status == "stopped" or not lease.publish(row):
        tracker.finish({"status": "stopped", "reason": "another worker has taken the run"})
        log(f"{lease.run_id}: another worker has taken the run; nothing of this attempt counts")
        return "lost"
    tracker.finish(row)
    log(f"{lease.run_id}: {outcome.status} {outcome.reason}".rstrip() + _shown_loss(row))
    return outcome.status


def _train(
    run: config.Run,
    execution: config.Execution,
    stored: record.Stored,
    lease: leases.Lease,
    keep: Callable[[list[dict[str, Any]]], None],
    stop: Stop,
    log: Callable[[str], None],
) -> "loop.Outcome":
    """Train on the corpus that the record names. Raises ValueError where the data has changed since the plan."""
    from scaling import loop
    from scaling.data import corpus as corpora

    corpus = corpora.prepare(run.data, log)
    for name, planned in dataclasses.asdict(stored).items():
        if getattr(corpus, name) != planned:
            raise ValueError(
                f"the corpus of run {lease.run_id} has {name} {getattr(corpus, name)} and was planned with {planned}; "
                "restore the data, or start the sweep again to plan runs on the new data"
            )
    member = loop.Member(run, lease.checkpoints, keep, lambda: stop() or lease.lost)
    return loop.train([member], execution, corpus)[0]


def result_row(
    run_id: str,
    sweep_name: str,
    counted: dict[str, Any],
    labels: dict[str, Any],
    run: config.Run,
    outcome: "loop.Outcome",
    device: str,
) -> dict[str, Any]:
    """The flat row of a run that finished or diverged, in the order of the store's columns."""
    row: dict[str, Any] = {
        "run_id": run_id,
        "sweep": sweep_name,
        **counted,
        **{key: labels[key] for key in ("family", "role", "parent_run_id") if key in labels},
        "flops_spent": counted["flops_spent"] * outcome.step / run.steps,
        "loss": outcome.loss,
        "loss_se": outcome.loss_se,
        "bits_per_byte": outcome.bits_per_byte,
        "seconds": outcome.seconds,
        "device": device,
        "status": outcome.status,
        "reason": outcome.reason or None,
    }
    return {name: row[name] for name in store.COLUMNS}


def environment() -> dict[str, Any]:
    """What a status says of where a run trains: versions, devices, and the commit of the code."""
    import jax

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    return {"versions": versions, "device": kind if count == 1 else f"{count} × {kind}", "git_commit": git_commit()}


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, `+` where files differ; None where it is none."""
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


def _shown_loss(row: dict[str, Any]) -> str:
    if row["loss"] is None:
        return ""
    error = "" if row["loss_se"] is None else f" ± {row['loss_se']:.4f}"
    return f" loss {row['loss']:.4f}{error} in {row['seconds']:.0f} s"
