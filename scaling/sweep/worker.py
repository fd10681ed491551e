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
import math
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

from scaling import config, devices, memory, tracking
from scaling.sweep import ahead, packing, queue, record, store
from scaling.sweep import lease as leases

if TYPE_CHECKING:
    from scaling import loop

PACKAGES = ("scaling", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WORKERS = "SCALING_WORKERS"  # how many workers the launcher started
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
    """Train what a sweep lacks, the longest runs first, which packs a pool best.

    A run that raises keeps its traceback in status.json and the next one is claimed; failed runs are left alone unless
    `retry_failed`. SIGTERM, SIGINT and SIGHUP stop the run at its next dispatch, with a checkpoint.

    Raises ValueError, before anything is trained, where a run that is left cannot fit this worker's devices.
    """
    sweep = results.sweep(sweep_name)
    settings = config.Sweep.model_validate(sweep["config"])
    if retry_failed:
        for member in sweep["members"]:
            results.retry(member["run_id"])
    about = environment()
    tally = Tally()
    with _until_signal(log) as stop:
        work = Work(results, settings, sweep_name, about, stop, log)
        work.check_memory()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        for claims in work.queue.claims(owner, about, work.most, stop):
            with contextlib.ExitStack() as beating:
                for claim in claims:
                    beating.enter_context(claim.lease.beating(log))
                beside = work.compile_next(claims)
                for ended in work.train(claims):
                    setattr(tally, ended, getattr(tally, ended) + 1)
                if beside is not None and not stop():
                    beside.join()
        work.compile_later()
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


class Work:
    """One worker's work on one sweep: trains what it claims and stores how each run ended."""

    def __init__(
        self,
        results: store.Store,
        settings: config.Sweep,
        sweep_name: str,
        about: dict[str, Any],
        stop: Stop,
        log: Callable[[str], None],
    ):
        self.results = results
        self.execution = settings.execution
        self.tracking = settings.tracking
        self.sweep_name = sweep_name
        self.about = about
        self.stop = stop
        self.log = log
        self.queue = queue.Queue(results, sweep_name)
        self.trackers: list[tracking.Tracker] = []
        self.programs = ahead.Programs(
            self._program, settings.execution, lambda: self._alone(settings), stop=stop, log=log
        )

    def check_memory(self) -> None:
        """Refuse the sweep where a run that is left cannot fit the devices. Raises ValueError."""
        import jax

        limit, cpu, where = memory.limit(), jax.default_backend() == "cpu", f"a device here ({self.about['device']})"
        if limit is None:
            return
        for item in self.queue.left():
            name = f"run {item.run_id}"
            memory.check(name, item.run, self.execution, limit, where, cpu=cpu, devices=jax.device_count())

    def most(self, item: queue.Item) -> int:
        """How many runs like this to train together here, leaving their share to the other workers."""
        import jax

        device = jax.local_devices()[0]
        need = memory.needed(item.run, self.execution, devices=jax.device_count())
        most = packing.most(item.run, self.execution, device.device_kind, need, memory.limit())
        alike = sum(packing.key(other.run) == packing.key(item.run) for other in self.queue.left())
        return min(most, math.ceil(alike / int(os.environ.get(WORKERS, "1"))))

    def train(self, claims: Sequence[queue.Claim]) -> list[str]:
        """Train a pack and store how each run ended; returns the fields of `Tally` that count them."""
        attempts = [self._start(claim, index) for index, claim in enumerate(claims)]
        ended = []
        for attempt in attempts[:]:
            outcome = self._as_its_trunk(attempt.item)
            if outcome is not None:
                attempts.remove(attempt)
                ended.append(self._ended(attempt, outcome))
        try:
            outcomes = self._outcomes(attempts) if attempts else []
        except Exception as error:  # the runs' own failure, whatever it is: kept with them, and the others go on
            trace = traceback.format_exc()
            return ended + [self._failed(attempt, error, trace, len(attempts)) for attempt in attempts]
        return ended + [self._ended(attempt, outcome) for attempt, outcome in zip(attempts, outcomes, strict=True)]

    def _as_its_trunk(self, item: queue.Item) -> "loop.Outcome | None":
        """How a branch ends whose trunk diverged before the branch leaves it: it would have diverged there too."""
        if item.trunk is None or self.queue.has_trunk(item):
            return None
        row = self.results.result(item.trunk)
        if row is None or row["status"] != "diverged":
            return None
        reached = round(row["flops_spent"] / row["flops"] * self.queue.items[item.trunk].run.steps)
        step = item.branch_step
        if step < reached:  # it leaves before the divergence, at a step that is not kept: trained from its own start
            return None
        from scaling import loop

        return loop.Outcome("diverged", f"its trunk {item.trunk} diverged: {row['reason']}", step, 0.0, start=step)

    def _start(self, claim: queue.Claim, index: int) -> "Attempt":
        item, lease = claim.item, claim.lease
        self.log(f"{item.run_id} attempt {lease.attempt}: {record.describe(item.counted)}")
        if index == len(self.trackers):
            self.trackers.append(tracking.build(self.tracking, self.log))
        name, resolved = record.name_of(item.counted, item.run_id), dict(item.counted)
        resolved["run"] = item.run.model_dump(mode="json")
        self.trackers[index].start(item.run_id, name, self.sweep_name, resolved, lease.folder)
        return Attempt(item, lease, self.trackers[index])

    def _outcomes(self, attempts: Sequence["Attempt"]) -> "list[loop.Outcome]":
        """Train on the corpus that the records name. Raises ValueError where the data has changed since the plan."""
        from scaling import loop
        from scaling.data import corpus as corpora

        corpus = corpora.prepare(attempts[0].item.run.data, self.log)
        for item in (attempt.item for attempt in attempts):
            for name, planned in dataclasses.asdict(item.stored).items():
                if getattr(corpus, name) != planned:
                    raise ValueError(
                        f"the corpus of run {item.run_id} has {name} {getattr(corpus, name)} and was planned with "
                        f"{planned}; restore the data, or start the sweep again to plan runs on the new data"
                    )
        self.programs.compile(attempts[0].item.run, len(attempts))
        return loop.train([self._member(attempt) for attempt in attempts], self.execution, corpus)

    def _member(self, attempt: "Attempt") -> "loop.Member":
        """What the loop is told of a run. Without a trunk to be had, a branch is trained from its own start."""
        from scaling import loop

        item, lease = attempt.item, attempt.lease
        trunk = None
        if item.trunk is not None and self.queue.has_trunk(item):
            trunk = loop.Trunk(self.results.checkpoints(item.trunk), item.trunk, item.branch_step)
        return loop.Member(
            item.run, lease.checkpoints, attempt.keep, lambda: self.stop() or lease.lost, trunk, item.branches
        )

    def _failed(self, attempt: "Attempt", error: Exception, trace: str, members: int) -> str:
        reason = f"{type(error).__name__}: {error}"
        run_id, lease = attempt.item.run_id, attempt.lease
        attempt.tracker.finish({"status": "failed", "reason": reason})
        if lease.lost:
            self.log(f"{run_id}: lost to another worker, and then failed: {reason}")
            return "lost"
        if members > 1:
            self.queue.alone.add(run_id)
            lease.release(f"a pack of {members} runs with it failed ({reason}); it is tried alone")
            self.log(f"{run_id}: a pack of {members} runs with it failed, and it is tried alone: {reason}")
            return "stopped"
        lease.fail(reason, trace)
        self.log(f"{run_id}: failed: {reason}")
        return "failed"

    def _ended(self, attempt: "Attempt", outcome: "loop.Outcome") -> str:
        item, lease, tracker = attempt.item, attempt.lease, attempt.tracker
        if outcome.status == "stopped" and not lease.lost:
            lease.release(f"{outcome.reason} at step {outcome.step}; resumes there")
            tracker.finish({"status": "stopped", "reason": outcome.reason})
            self.log(f"{item.run_id}: stopped at step {outcome.step} of {item.run.steps}; resumes there")
            return "stopped"
        row = result_row(item, self.sweep_name, outcome, self.about["device"])
        if outcome.status == "stopped" or not lease.publish(row):
            tracker.finish({"status": "stopped", "reason": "another worker has taken the run"})
            self.log(f"{item.run_id}: another worker has taken the run; nothing of this attempt counts")
            return "lost"
        tracker.finish(row)
        self.log(f"{item.run_id}: {outcome.status} {outcome.reason}".rstrip() + _shown_loss(row))
        if item.trunk is not None and not any(other.trunk == item.trunk for other in self.queue.left()):
            self._prune(item.trunk)
        return outcome.status

    def _prune(self, trunk: str) -> None:
        """Remove a trunk's checkpoints once no branch is left to start from them, but for the last, if it is kept."""
        from scaling import checkpoint

        row = self.results.result(trunk)
        if row is not None:
            last = self.queue.items[trunk].run.steps if self.execution.keep_last_checkpoint else None
            checkpoint.remove_all_but(self.results.checkpoints(trunk), last)

    def compile_next(self, claims: Sequence[queue.Claim]) -> threading.Thread | None:
        """Compile the program of the next runs while these train, where there are cores to spare."""
        key = packing.key(claims[0].item.run)[0]
        left = [item for item in self.queue.left() if packing.key(item.run)[0] != key and self.queue.ready(item)]
        if len(devices.cores()) == 1 or not left:
            return None

        arguments = left[0].run, self.most(left[0])
        compile_it = self.programs.compile_unless_another_does
        thread = threading.Thread(target=compile_it, args=arguments, name="compile the next program", daemon=True)
        thread.start()
        return thread

    def compile_later(self) -> None:
        """While other workers train what is left of this stage, compile what the next one needs."""
        while not self.stop() and any(self.results.status(i.run_id)["status"] == "running" for i in self.queue.left()):
            if not self.programs.compile_later():
                return

    def _program(self, run: config.Run, members: int) -> None:
        """Compile the program of a pack, or load it."""
        from scaling import loop
        from scaling.data import corpus as corpora

        loop.program_of(run, self.execution, members, corpora.prepare(run.data, self.log))

    def _alone(self, settings: config.Sweep) -> list[config.Run]:
        """Runs of the sweep, of this stage and the next, that train alone on this device."""
        import jax

        if jax.process_count() > 1:  # processes that compute together compile together
            return []
        kind, runs = jax.local_devices()[0].device_kind, [item.run for item in self.queue.left()]
        runs += [point.run for point in settings.points()]
        return [run for run in runs if packing.most(run, self.execution, kind, memory=1.0, limit=None) == 1]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A claimed run with the tracker that follows it."""

    item: queue.Item
    lease: leases.Lease
    tracker: tracking.Tracker

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Store rows of metrics."""
        self.lease.metrics(rows)
        self.tracker.log(rows)


def result_row(item: queue.Item, sweep_name: str, outcome: "loop.Outcome", device: str) -> dict[str, Any]:
    """The flat row of a run that finished or diverged, in the order of the store's columns.

    `flops` are those of the whole run, which count for a law; `flops_spent` those of the steps that it trained itself.
    """
    counted, labels = item.counted, item.labels
    row: dict[str, Any] = {
        **counted,
        "sweep": sweep_name,
        **{key: labels[key] for key in ("family", "role", "parent_run_id") if key in labels},
        "run_id": item.run_id,
        "flops_spent": counted["flops_spent"] * (outcome.step - outcome.start) / item.run.steps,
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
