"""How attempts at runs end: results published, failures stored, leases released so that the run is tried again.

What becomes of a run whose training raises depends on what was raised (`faults.kind`). Infrastructure: its lease is
released and it is tried again, without limit. Out of memory: tried once more with at most half the microbatch. A bug:
failed, with the traceback. A pack of several runs is first tried run by run.
"""

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, Literal

from scaling import human, memory
from scaling.store import lease as leases
from scaling.store import record
from scaling.training import processes
from scaling.worker import context, faults, queue

if TYPE_CHECKING:
    from scaling.training import loop

Ended = Literal["finished", "diverged", "failed", "stopped", "lost"]


class Endings:
    """Stores how the attempts of one worker end.

    `broken` is whether a device or another process is gone, so that no training in this process can succeed.
    """

    def __init__(self, work: context.WorkerContext):
        self.work = work
        self.broken = False
        self._failure: tuple[OSError, float] | None = None  # the last error of infrastructure, and since when it fails

    def end(self, claim: queue.Claim, outcome: "loop.Outcome") -> Ended:
        """Publish the result of a run that finished or diverged; release the lease of one that was stopped."""
        queued, lease, tracker, work = claim.run, claim.lease, claim.tracker, self.work
        if outcome.status == "stopped" and not lease.lost:
            fault: leases.Fault | None = None if work.stop.signal in (None, signal.SIGINT) else "preempted"
            lease.release(f"{outcome.reason} at step {outcome.step}; resumes there", fault)
            tracker.finish({"status": "stopped", "reason": outcome.reason})
            work.log(f"{queued.run_id}: stopped at step {outcome.step} of {queued.run.steps}; resumes there")
            return "stopped"
        row = result_row(queued, work.sweep_name, outcome, work.about["device"])
        if outcome.status == "stopped" or not lease.publish(row):
            tracker.finish({"status": "stopped", "reason": "another worker has taken the run"})
            work.log(f"{queued.run_id}: another worker has taken the run; nothing of this attempt counts")
            return "lost"
        tracker.finish(row)
        work.log(f"{queued.run_id}: {outcome.status} {outcome.reason}".rstrip() + _shown_loss(row))
        if queued.trunk is not None and not any(other.trunk == queued.trunk for other in work.runs.left()):
            self._prune(queued.trunk)
        return outcome.status

    def fail(self, claim: queue.Claim, error: Exception, trace: str, *, pack: int, sequences: int) -> Ended:
        """End an attempt whose training raised, alone or in a pack of several, as the head of this file says.

        `sequences` is how many it computed at once.
        """
        reason = f"{type(error).__name__}: {error}"
        run_id, lease, kind = claim.run.run_id, claim.lease, faults.kind(error)
        claim.tracker.finish({"status": "failed", "reason": reason})
        if isinstance(error, processes.PartedError) or (kind == "infrastructure" and not isinstance(error, OSError)):
            self.broken = True
        if lease.lost:
            self.work.log(f"{run_id}: lost to another worker, and then failed: {reason}")
            return "lost"
        fewer = self._fewer(claim, sequences) if kind == "out_of_memory" else None
        if kind == "infrastructure":
            if isinstance(error, OSError):  # the next claim waits
                self._failure = error, time.monotonic() if self._failure is None else self._failure[1]
            reason = f"{reason}; it is tried again"
            lease.release(reason, "infrastructure", traceback=trace)
        elif pack > 1:
            reason = f"a pack of {pack} runs with it failed ({reason}); it is tried alone"
            lease.release(reason, "pack", alone=True, traceback=trace)
        elif fewer is not None:
            reason = f"{reason}; it is tried once more with microbatches of {fewer} sequences, not {sequences}"
            lease.release(reason, "out_of_memory", microbatch=fewer, traceback=trace)
        else:
            lease.fail(reason, trace, "out_of_memory" if kind == "out_of_memory" else None)
            self.work.log(f"{run_id}: failed: {reason}")
            return "failed"
        self.work.log(f"{run_id}: {reason}")
        return "stopped"

    def infrastructure_works(self) -> None:
        """Note that a training has ended by itself."""
        self._failure = None

    def wait_for_infrastructure(self) -> None:
        """Wait before the next claim where infrastructure failed: the longer, the longer it has."""
        if self._failure is not None and not self.work.stop():
            error, since = self._failure
            with contextlib.suppress(OSError):  # a stop was asked for
                self.work.waiter.wait(error, time.monotonic() - since)

    def _fewer(self, claim: queue.Claim, sequences: int) -> int | None:
        """The microbatch to try after the present one did not fit: at most half; None where it was halved before."""
        if claim.lease.microbatch is not None:
            return None
        import jax

        run, auto = claim.run.run, self.work.execution.edit({"microbatch": "auto"})
        sizes = memory.microbatches(run, auto, jax.device_count())
        return next((size for size in sizes if 2 * size <= sequences), None)

    def _prune(self, trunk_id: str) -> None:
        """Remove the checkpoints of a trunk whose branches have all ended, but for the last, if it is kept."""
        from scaling.training import checkpoint

        result = self.work.runs.trunk_result(trunk_id)
        if result is not None:
            last = result[0].run.steps if self.work.execution.keep_last_checkpoint else None
            checkpoint.remove_all_but(self.work.results.checkpoints(trunk_id), last)


def result_row(queued: queue.QueuedRun, sweep_name: str, outcome: "loop.Outcome", device: str) -> dict[str, Any]:
    """The flat row of a run that finished or diverged."""
    measured = {name: getattr(outcome, name) for name in ("loss", "loss_se", "bits_per_byte", "seconds", "status")}
    measured |= {"run_id": queued.run_id, "sweep": sweep_name, "device": device, "reason": outcome.reason or None}
    measured["flops_spent"] = queued.counted["flops_spent"] * (outcome.step - outcome.start) / queued.run.steps
    return record.result_row(queued.counted, queued.labels, {**measured, **outcome.metrics})


def _shown_loss(row: dict[str, Any]) -> str:
    loss = human.measured(row["loss"], row["loss_se"])
    return f" loss {loss} in {row['seconds']:.0f} s" if loss else ""
