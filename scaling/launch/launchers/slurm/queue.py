"""The jobs of one launch in the queue of a Slurm cluster: followed, submitted again, asked to stop.

The store says how far the sweep is. `squeue` says what is left of the jobs and, for the minutes that Slurm remembers a
job, how it ended: that needs no accounting database, without which submitit's own states read UNKNOWN.
"""

import dataclasses
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scaling import store
from scaling.launch import launcher, slots

RESUBMISSIONS = 3  # in a row, in which no run ended
QUEUE_SECONDS = 10.0  # between questions to Slurm's controller, which everyone on the cluster shares
STOPPING_SECONDS = 3.0  # the same while a person waits for the jobs to end
# A job in any other state is still in the queue, or comes back to it.
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class JobState:
    """A job as `squeue` lists it: its state in capitals, and its exit code where it has FAILED."""

    name: str
    code: int


class SlurmWorkers(launcher.Workers):
    """Jobs in the queue of a cluster, submitted again where they were lost, or have ended and runs are open.

    `submit` submits so many, all of one `name`, and gives the log of each by its id.
    """

    def __init__(
        self,
        results: store.Store,
        sweep_name: str,
        name: str,
        submit: Callable[[int], Mapping[str, Path]],
        count: int,
    ):
        super().__init__()
        self.name = name
        self.submit = submit
        self.usable = count
        self.stopping = False
        self.jobs: dict[str, Path] = {}  # those that are in the queue, and their logs
        self._states: dict[str, str] = {}  # theirs, when Slurm was last asked
        self._open = launcher.OpenRuns(results, sweep_name)
        self._open_statuses: list[str] = []  # of the runs that are open, when last read
        self._next_question = 0.0
        self._lost = 0  # workers that ended too early and may be replaced
        self._resubmissions, self._open_before_resubmit = 0, 0
        self._add(count)

    def poll(self) -> bool:
        """See `launcher.Workers`: asks Slurm for the states of the jobs and submits again what was lost."""
        if self.meanwhile is not None:  # this machine trains nothing
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        due = time.monotonic() >= self._next_question
        if due:
            self._ask_queue()
        if self.stopping:
            return bool(self.jobs)
        self._open_statuses = self._open()
        if not self._open_statuses:
            self._ask_queue()
            self._cancel("PENDING")  # they would find nothing to do; those that run end by themselves
            return False
        if due and "planned" in self._open_statuses and (self._lost or not self.jobs):
            return self._resubmit(self._lost if self.jobs else self.usable) or bool(self.jobs)
        return True

    def stop(self) -> None:
        """Ask every worker to save its run and end; jobs that wait in the queue leave it."""
        self.stopping = True
        self._ask_queue()

    def kill(self) -> None:
        """Cancel the jobs. Slurm gives their workers some seconds (KillWait) to save their runs."""
        self.stopping = True
        if self.jobs:
            self._scancel(list(self.jobs))
            self.jobs.clear()

    def _add(self, count: int) -> None:
        submitted = self.submit(count)
        self.jobs.update(submitted)
        first = next(iter(submitted))
        self.messages.append(
            f"{count} workers are in the queue as {self.name}, job {first.partition('_')[0]}; logs in "
            f"{submitted[first].parent}"
        )
        self._next_question = time.monotonic() + QUEUE_SECONDS

    def _ask_queue(self) -> None:
        """Ask Slurm what became of the jobs; where they are to stop, see to it that they do."""
        self._next_question = time.monotonic() + (STOPPING_SECONDS if self.stopping else QUEUE_SECONDS)
        try:
            states = listed(self.name)
        except ConnectionError as error:  # a controller that is busy or restarted: the jobs go on
            self.messages.append(f"Slurm does not say what is in its queue, and is asked again: {error}")
            return
        self._states = {}
        for job in list(self.jobs):
            state = states.get(job, states.get(job.partition("_")[0]))
            if state is not None and state.name not in ENDED:
                self._states[job] = state.name
            else:
                self._ended(job, state)
        if not self.jobs:
            self._open.expire()  # what they did is to be seen before any are submitted again
        if self.stopping:
            self._cancel("PENDING")
            self._cancel("RUNNING", "--signal=INT")  # again where a job had not begun to listen: it is heard once

    def _ended(self, job: str, state: JobState | None) -> None:
        """Report why a job ended too early, and count it as lost unless another would end as it did."""
        log = self.jobs.pop(job)
        if state is None or state.name == "COMPLETED" or self.stopping:
            return
        how = f"worker {job} ended as {state.name.lower().replace('_', ' ')}"
        if state.name == "FAILED":
            how = f"worker {job} ended with exit code {state.code}"
        if state.name == "CANCELLED" or (
            state.name == "FAILED" and state.code in (launcher.REFUSED, *launcher.STOPPED)
        ):
            self.usable -= 1
            how += " and is given up"
        else:
            self._lost += 1
        end = f"its log {log} ends:\n{slots.tail(log)}" if log.exists() else f"it wrote no log {log}"
        self.messages.append(f"{how}; {end}")

    def _resubmit(self, count: int) -> bool:
        """Submit up to so many workers for the runs that are left; False where that has not helped, or none may be."""
        self._lost = 0
        if len(self._open_statuses) < self._open_before_resubmit:
            self._resubmissions = 0
        if not count:
            return False
        if self._resubmissions == RESUBMISSIONS:
            self.messages.append(
                f"{len(self._open_statuses)} runs are left, of which none ended in {RESUBMISSIONS} submissions"
            )
            return False
        self._resubmissions += 1
        self._open_before_resubmit = len(self._open_statuses)
        self.messages.append(
            f"{len(self._open_statuses)} runs are left to {len(self.jobs)} jobs in the queue; submitted again "
            f"({self._resubmissions} of {RESUBMISSIONS}, until a run ends)"
        )
        try:
            self._add(min(count, self._open_statuses.count("planned")))
        except ValueError as error:  # perhaps for now
            self.messages.append(str(error))
        return True

    def _cancel(self, state: str, *options: str) -> None:
        """`scancel` for the jobs that were in a state; others are left alone."""
        jobs = [job for job, name in self._states.items() if name == state]
        if jobs:
            self._scancel([f"--state={state}", *options, *jobs])

    def _scancel(self, arguments: Sequence[str]) -> None:
        done = subprocess.run(["scancel", *arguments], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            self.messages.append(f"scancel: {done.stderr.strip()}")


def listed(name: str) -> dict[str, JobState]:
    """This user's jobs of a name, by id, a task of an array as JOB_TASK; ended ones too, while Slurm knows them.

    Raises ConnectionError with what `squeue` says where it cannot tell.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", f"--name={name}"]
    shown = subprocess.run([*command, "--Format=jobarrayid:|,state:|,exit_code:|"], capture_output=True, text=True)
    if shown.returncode:
        raise ConnectionError(shown.stderr.strip())
    states = {}
    for line in shown.stdout.splitlines():
        job, state, status = (part.strip() for part in line.split("|")[:3])
        states[job] = JobState(state, int(status) >> 8)  # as `wait` has it
    return states
