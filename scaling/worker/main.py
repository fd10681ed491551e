"""The worker: claims the runs of a sweep one after another and trains them, until nothing is left to claim.

Any number of workers, on any machines that see the store, started by any launcher, share a sweep: they only meet in
the leases. A worker ends when no run can be claimed *now*. It does not wait for runs that others hold: whoever started
the others sees how they end and starts a worker anew where a run is left (`scaling.launch.local` does).

Exit codes (`Tally.exit_code`): 0 nothing is left to claim, runs may have failed; 143 stopped by SIGTERM and 130 by
SIGINT, 129 by SIGHUP: the run is saved, its lease released, and a new worker goes on; 75 a device or a peer is gone,
and a new process is needed; 2 refused, by an error that trying again does not mend. Any other code is a crash. Where
several processes train each run together (`group`), all end with the same code, or with 75 where one died.

What becomes of a run whose training raises depends on what was raised (`faults.kind`). Infrastructure: its lease is
released and it is tried again, for ever. Out of memory: tried once more with half the microbatch. A bug: failed, with
the traceback. A pack is first tried run by run. A store that cannot be written or reached is waited for.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scaling import config, devices, memory, store
from scaling.planning import packing
from scaling.storage import retry
from scaling.store import gc, record
from scaling.store import lease as leases
from scaling.training import processes, tracking
from scaling.worker import faults, followers, group, precompile, protocol, provenance, queue
from scaling.worker import signals as waiting

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import loop


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


def work(results: store.Store, sweep_name: str, *, log: Callable[[str], None], retry_failed: bool = False) -> Tally:
    """Train what a sweep lacks, the longest runs first, which packs a pool best.

    Failed runs are left alone unless `retry_failed`. SIGTERM, SIGINT and SIGHUP stop the run at its next dispatch, with
    a checkpoint. Raises ValueError, before anything is trained, where a run that is left cannot fit this worker's
    devices, and OSError where the store is away and a stop is asked for.
    """
    tally = Tally()
    with waiting.until_signal(log) as stop:
        outages = retry.Outages(stop, log)
        results = results.waiting(outages)
        about = provenance.environment()
        with outages.given_up():
            sweep = results.sweep(sweep_name)
            settings = config.Sweep.model_validate(sweep["config"])
            if retry_failed:
                for member in sweep["members"]:
                    results.retry(member["run_id"])
            work = Work(results, settings, sweep_name, about, stop, outages, log)
            work.check_memory()
            owner = f"{socket.gethostname()}:{os.getpid()}"
            for claims in work.queue.claims(owner, about, work.most, lambda: stop.anywhere() or tally.broken):
                with contextlib.ExitStack() as beating:
                    for claim in claims:
                        beating.enter_context(claim.lease.beating(log))
                    beside = work.compile_next(claims)
                    for ended in work.train(claims):
                        setattr(tally, ended, getattr(tally, ended) + 1)
                    if beside is not None and not stop():
                        beside.join()
                tally.broken = work.broken
                work.recover()
            if not tally.broken:
                work.compile_later()
                gc.tidy(results, work.queue.known(), stop, log)
        tally.signal = stop.signal
    return tally


def main(results: store.Store, sweep_name: str, *, retry_failed: bool = False) -> int:
    """Work, with a line of log an event on standard output; returns the documented exit code."""

    def log(line: str) -> None:
        with contextlib.suppress(OSError):  # the log's disk is full: a line is lost, and not the worker
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)

    def serve() -> int:
        if processes.leads():
            return followers.lead(lambda: work(results, sweep_name, log=log, retry_failed=retry_failed).exit_code)
        with waiting.until_signal(log) as stop:
            return followers.follow(results, lambda: stop.signal if stop() else None, log)

    return group.run(serve, protocol.SIGNALS, protocol.LAUNCHER, log)


class Work:
    """One worker's work on one sweep: trains what it claims and stores how each run ended."""

    def __init__(
        self,
        results: store.Store,
        settings: config.Sweep,
        sweep_name: str,
        about: dict[str, Any],
        stop: waiting.Stop,
        outages: retry.Outages,
        log: Callable[[str], None],
    ):
        self.results = results
        self.execution = settings.execution
        self.tracking = settings.tracking
        self.sweep_name = sweep_name
        self.about = about
        self.stop = stop
        self.outages = outages
        self.log = log
        self.broken = False  # a device or a peer is gone, and no training in this process can succeed
        self._away: tuple[OSError, float] | None = None  # what infrastructure failed last, and since when it has
        self.queue = queue.Queue(results, sweep_name)
        for run_id, reason in self.queue.damaged.items():
            log(f"run {run_id} is damaged, and not trained: {reason}")
        self.trackers: list[tracking.Tracker] = []
        self.programs = precompile.Programs(
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
        return min(most, math.ceil(alike / int(os.environ.get(protocol.WORKERS, "1"))))

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
            self.broken = isinstance(error, processes.PartedError)
            return ended + [self._failed(attempt, error, trace, len(attempts)) for attempt in attempts]
        self._away = None
        return ended + [self._ended(attempt, outcome) for attempt, outcome in zip(attempts, outcomes, strict=True)]

    def _as_its_trunk(self, item: queue.Item) -> "loop.Outcome | None":
        """How a branch ends whose trunk diverged before the branch leaves it: it would have diverged there too."""
        if item.trunk is None or self.queue.has_trunk(item):
            return None
        row = self.results.readable_result(item.trunk)
        if row is None or row["status"] != "diverged":
            return None
        reached = round(row["flops_spent"] / row["flops"] * row["tokens"] / row["batch_tokens"])
        step = item.branch_step
        if step < reached:  # it leaves before the divergence, at a step that is not kept: trained from its own start
            return None
        from scaling.training import loop

        return loop.Outcome("diverged", f"its trunk {item.trunk} diverged: {row['reason']}", step, 0.0, start=step)

    def _start(self, claim: queue.Claim, index: int) -> "Attempt":
        item, lease = claim.item, claim.lease
        self.log(f"{item.run_id} attempt {lease.attempt}: {record.describe(item.counted)}")
        if index == len(self.trackers):
            self.trackers.append(tracking.build(self.tracking, self.log))
        name, resolved = record.name_of(item.counted, item.run_id), dict(item.counted)
        resolved["run"] = item.run.model_dump(mode="json")
        self.trackers[index].start(item.run_id, name, self.sweep_name, resolved, self.results.folder(item.run_id))
        return Attempt(item, lease, self.trackers[index])

    def _outcomes(self, attempts: Sequence["Attempt"]) -> "list[loop.Outcome]":
        """Train the runs, here and in the processes that train them with this one."""
        items, microbatch = [attempt.item for attempt in attempts], attempts[0].lease.microbatch
        execution = self.execution if microbatch is None else self.execution.edit({"microbatch": microbatch})
        members = [self._member(attempt) for attempt in attempts]
        pack = followers.Pack([item.run_id for item in items], members, [item.stored for item in items], execution)
        self._sequences = execution.sequences(items[0].run.batch_size)  # at most; known when it is compiled
        followers.tell(pack)
        outcomes = processes.together(lambda: pack.train(self.log, self._begin), faults.kind)
        self.stop.anywhere()  # which signal stopped them, where another process got it
        return outcomes

    def _begin(self, pack: followers.Pack, corpus: "corpora.Corpus") -> None:
        """Have the program of a pack compiled, and note how many sequences it computes at once."""
        from scaling.training import loop

        run, members = pack.members[0].run, len(pack.members)
        if pack.execution == self.execution:
            self.programs.compile(run, members)
        self._sequences = loop.program_of(run, pack.execution, members, corpus).microbatch

    def _member(self, attempt: "Attempt") -> "loop.Member":
        """What the loop is told of a run. Without a trunk to be had, a branch is trained from its own start."""
        from scaling.training import loop

        item, lease = attempt.item, attempt.lease
        trunk = None
        if item.trunk is not None and self.queue.has_trunk(item):
            trunk = loop.Trunk(self.results.checkpoints(item.trunk), item.trunk, item.branch_step)
        return loop.Member(
            item.run,
            lease.checkpoints,
            attempt.keep,
            lambda: self.stop() or lease.lost,
            trunk,
            item.branches,
            functools.partial(self._save, lease),
        )

    def _save(self, lease: leases.Lease, write: Callable[[], None]) -> None:
        """Write a checkpoint when the metrics before it are written; where the disk is full, when it no longer is."""
        lease.flush()
        if processes.several():  # they write together, once
            write()
        elif not lease.lost:  # else whoever took the run over may have ended it, and nobody would remove the checkpoint
            retry.patiently(write, self.outages)

    def _failed(self, attempt: "Attempt", error: Exception, trace: str, members: int) -> str:
        """End an attempt whose training raised, so that what may mend it is tried; see the head of this file."""
        reason = f"{type(error).__name__}: {error}"
        run_id, lease, kind = attempt.item.run_id, attempt.lease, faults.kind(error)
        attempt.tracker.finish({"status": "failed", "reason": reason})
        if lease.lost:
            self.log(f"{run_id}: lost to another worker, and then failed: {reason}")
            return "lost"
        fewer = self._fewer(attempt) if kind == "out_of_memory" else None
        if kind == "infrastructure":
            self._note(error)
            told = f"{reason}; it is tried again"
            lease.release(told, "infrastructure", traceback=trace)
        elif members > 1:
            told = f"a pack of {members} runs with it failed ({reason}); it is tried alone"
            lease.release(told, "pack", alone=True, traceback=trace)
        elif fewer is not None:
            told = f"{reason}; it is tried once more with microbatches of {fewer} sequences, not {self._sequences}"
            lease.release(told, "out_of_memory", microbatch=fewer, traceback=trace)
        else:
            lease.fail(reason, trace, "out_of_memory" if kind == "out_of_memory" else None)
            self.log(f"{run_id}: failed: {reason}")
            return "failed"
        self.log(f"{run_id}: {told}")
        return "stopped"

    def _fewer(self, attempt: "Attempt") -> int | None:
        """The microbatch to try after the present one did not fit: at most half; None where it was halved before."""
        if attempt.lease.microbatch is not None:
            return None
        import jax

        run, auto = attempt.item.run, self.execution.edit({"microbatch": "auto"})
        sizes = memory.microbatches(run, auto, jax.device_count())
        return next((size for size in sizes if 2 * size <= self._sequences), None)

    def _note(self, error: Exception) -> None:
        """Remember that infrastructure failed: the next claim waits, or another process must make it."""
        if not isinstance(error, OSError):
            self.broken = True
        else:
            self._away = error, time.monotonic() if self._away is None else self._away[1]

    def recover(self) -> None:
        """Wait before the next claim, where infrastructure failed: the longer, the longer it has."""
        if self._away is not None and not self.stop():
            error, since = self._away
            with contextlib.suppress(OSError):  # a stop was asked for
                self.outages.wait(error, time.monotonic() - since)

    def _ended(self, attempt: "Attempt", outcome: "loop.Outcome") -> str:
        item, lease, tracker = attempt.item, attempt.lease, attempt.tracker
        if outcome.status == "stopped" and not lease.lost:
            asked: leases.Fault | None = None if self.stop.signal in (None, signal.SIGINT) else "preempted"
            lease.release(f"{outcome.reason} at step {outcome.step}; resumes there", asked)
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
        from scaling.training import checkpoint

        row = self.results.readable_result(trunk)
        if row is not None:
            last = row["tokens"] // row["batch_tokens"] if self.execution.keep_last_checkpoint else None
            checkpoint.remove_all_but(self.results.checkpoints(trunk), last)

    def compile_next(self, claims: Sequence[queue.Claim]) -> threading.Thread | None:
        """Compile the program of the next runs while these train, where there are cores to spare."""
        key = packing.key(claims[0].item.run)[0]
        left = [item for item in self.queue.left() if packing.key(item.run)[0] != key and self.queue.ready(item)]
        if len(devices.cores()) == 1 or not left or processes.several():  # these compile together
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
        from scaling.data import corpus as corpora
        from scaling.training import loop

        loop.program_of(run, self.execution, members, corpora.prepare(run.data, self.log))

    def _alone(self, settings: config.Sweep) -> list[config.Run]:
        """Runs of the sweep, of this stage and the next, that train alone on this device."""
        import jax

        if processes.several():  # these compile together
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
    """The flat row of a run that finished or diverged."""
    measured = {name: getattr(outcome, name) for name in ("loss", "loss_se", "bits_per_byte", "seconds", "status")}
    measured |= {"run_id": item.run_id, "sweep": sweep_name, "device": device, "reason": outcome.reason or None}
    measured["flops_spent"] = item.counted["flops_spent"] * (outcome.step - outcome.start) / item.run.steps
    return record.result_row(item.counted, item.labels, {**measured, **getattr(outcome, "metrics", {})})


def _shown_loss(row: dict[str, Any]) -> str:
    if row["loss"] is None:
        return ""
    error = "" if row["loss_se"] is None else f" ± {row['loss_se']:.4f}"
    return f" loss {row['loss']:.4f}{error} in {row['seconds']:.0f} s"
