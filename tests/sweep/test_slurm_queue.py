"""How jobs in the queue of a Slurm cluster are followed, with commands that only pretend to be Slurm's."""

import os
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import config, store
from scaling.launch import rate_limiter
from scaling.launch.launchers.slurm import queue as slurm_queue

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]


class Cluster:
    """Commands in the place of Slurm's: what squeue is to say of each job, and what scancel was told."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.states: dict[str, str] = {}
        self.submitted: list[int] = []
        self.say()
        for name, body in (("squeue", "cat LISTED"), ("scancel", 'echo "$@" >> TOLD')):
            program = folder / name
            program.write_text(
                "#!/bin/sh\n" + body.replace("LISTED", str(folder / "listed")).replace("TOLD", str(folder / "told"))
            )
            program.chmod(0o755)

    def say(self, **states: str) -> None:
        """What squeue is to say of jobs: `j5_0="FAILED|512"`."""
        self.states.update(states)
        lines = [f"{job[1:]}|{state if '|' in state else state + '|0'}|\n" for job, state in self.states.items()]
        (self.folder / "listed").write_text("".join(lines))

    def told(self) -> list[str]:
        """What scancel was told since the last call."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def submit(self, count: int) -> dict[str, Path]:
        """An array of jobs, whose ids follow from how many were submitted before, and which wait in the queue."""
        self.submitted.append(count)
        jobs = [f"{len(self.submitted)}_{index}" for index in range(count)]
        self.say(**{f"j{job}": "PENDING" for job in jobs})
        return {job: self.folder / f"{job}.out" for job in jobs}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for module, name in ((slurm_queue, "QUEUE_SECONDS"), (slurm_queue, "STOPPING_SECONDS"), (rate_limiter, "SECONDS")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(rate_limiter, "SHARE", 1e9)
    return Cluster(folder)


@pytest.fixture
def left(results: store.Store, make_run: Make, fill: Fill) -> list[str]:
    """Four runs that want workers."""
    return fill(results, [make_run(seed=seed) for seed in range(4)])


def finish(results: store.Store, run_id: str) -> None:
    lease = results.claim(run_id, "someone")
    assert lease is not None
    lease.publish({"run_id": run_id, "status": "finished", "reason": None})


def follow(cluster: Cluster, results: store.Store, count: int) -> slurm_queue.SlurmWorkers:
    return slurm_queue.SlurmWorkers(results, "small", "scaling-small", cluster.submit, count)


def test_it_is_over_when_the_runs_are_and_idle_jobs_leave_the_queue(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 3)
    assert workers.poll()
    cluster.say(j1_0="RUNNING", j1_1="RUNNING")
    for run_id in left[:3]:
        finish(results, run_id)
    assert workers.poll()
    assert cluster.told() == []
    finish(results, left[3])
    assert not workers.poll()
    assert cluster.told() == ["--state=PENDING 1_2"]
    assert cluster.submitted == [3]
    (message,) = workers.take_messages()
    assert message == f"3 workers are in the queue as scaling-small, job 1; logs in {cluster.folder}"


def test_jobs_that_are_lost_are_replaced_where_runs_wait(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 3)
    cluster.say(j1_0="NODE_FAIL", j1_1="TIMEOUT|1", j1_2="RUNNING")
    (cluster.folder / "1_0.out").write_text("the node went away")
    assert workers.poll()
    assert cluster.submitted == [3, 2]
    assert workers.poll()
    assert cluster.submitted == [3, 2]
    told = workers.take_messages()
    assert "worker 1_0 ended as node fail; its log" in told[1]
    assert "the node went away" in told[1]
    assert "worker 1_1 ended as timeout; it wrote no log" in told[2]
    assert told[3] == "4 runs are left to 1 jobs in the queue; submitted again (1 of 3, until a run ends)"


def test_jobs_are_submitted_anew_where_all_are_gone_and_runs_are_left(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 3)
    cluster.say(j1_0="COMPLETED", j1_1="COMPLETED", j1_2="RUNNING")
    assert workers.poll()
    assert cluster.submitted == [3]
    finish(results, left[0])
    finish(results, left[1])
    cluster.say(j1_2="COMPLETED")
    assert workers.poll()
    assert cluster.submitted == [3, 2]  # as many as runs are left
    assert workers.take_messages()[1].startswith("2 runs are left to 0 jobs in the queue; submitted again (1 of 3")


def test_submitting_anew_ends_where_it_does_not_help(
    cluster: Cluster, results: store.Store, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = follow(cluster, results, 1)
    for number in range(1, 3):
        cluster.say(**{f"j{number}_0": "FAILED|256"})
        assert workers.poll()
    finish(results, left[0])  # it did help: the count begins again
    for number in range(3, 6):
        cluster.say(**{f"j{number}_0": "FAILED|256"})
        assert workers.poll()
    cluster.states.clear()  # of the last, Slurm knows nothing any more
    cluster.say()
    assert not workers.poll()
    assert cluster.submitted == [1] * 6
    assert "3 runs are left, of which none ended in 3 submissions" in workers.take_messages()[-1]


def test_what_jobs_did_is_seen_before_any_are_submitted_anew(
    cluster: Cluster, results: store.Store, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = follow(cluster, results, 1)
    assert workers.poll()
    monkeypatch.setattr(rate_limiter, "SECONDS", 1e9)
    assert workers.poll()
    for run_id in left:
        finish(results, run_id)
    assert workers.poll()  # the store has been looked at
    cluster.say(j1_0="COMPLETED")
    assert not workers.poll()
    assert cluster.submitted == [1]


@pytest.mark.parametrize("state", ["CANCELLED|15", f"FAILED|{2 << 8}", f"FAILED|{130 << 8}", f"FAILED|{143 << 8}"])
def test_a_worker_that_was_refused_or_stopped_by_a_person_is_not_replaced(
    cluster: Cluster, results: store.Store, left: list[str], state: str
) -> None:
    workers = follow(cluster, results, 2)
    (cluster.folder / "1_0.out").write_text("error: planted")
    cluster.say(j1_0=state, j1_1="FAILED|256")
    assert workers.poll()
    assert cluster.submitted == [2, 1]
    told = [message for message in workers.take_messages() if "given up" in message]
    assert len(told) == 1
    assert told[0].endswith("error: planted")
    cluster.say(j2_0=state)
    assert not workers.poll()
    assert cluster.submitted == [2, 1]


def test_runs_that_others_hold_are_waited_for(cluster: Cluster, results: store.Store, left: list[str]) -> None:
    workers = follow(cluster, results, 1)
    held = [results.claim(run_id, "another cluster") for run_id in left]
    cluster.say(j1_0="COMPLETED")
    assert workers.poll()
    assert cluster.submitted == [1]
    assert held[0] is not None
    held[0].release("its cluster was switched off")
    assert workers.poll()
    assert cluster.submitted == [1, 1]


def test_a_controller_that_does_not_answer_is_asked_again(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 1)
    program = cluster.folder / "squeue"
    working = program.read_text()
    program.write_text("#!/bin/sh\necho 'cannot contact controller' >&2; exit 1")
    assert workers.poll()
    assert workers.take_messages()[-1].endswith("is asked again: cannot contact controller")
    assert list(workers.jobs) == ["1_0"]
    program.write_text(working)
    cluster.say(j1_0="RUNNING")
    assert workers.poll()
    assert workers.take_messages() == []


def test_a_submission_that_fails_later_is_told_and_tried_again(
    cluster: Cluster, results: store.Store, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = follow(cluster, results, 1)

    def refuse(count: int) -> dict[str, Path]:
        raise ValueError("the jobs were not submitted: controller busy")

    monkeypatch.setattr(workers, "submit", refuse)
    cluster.say(j1_0="NODE_FAIL")
    assert workers.poll()
    assert workers.take_messages()[-1] == "the jobs were not submitted: controller busy"
    monkeypatch.setattr(workers, "submit", cluster.submit)
    assert workers.poll()
    assert cluster.submitted == [1, 1]


def test_stopping_asks_those_that_train_and_takes_the_others_from_the_queue(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 3)
    cluster.say(j1_0="RUNNING", j1_1="COMPLETING")
    workers.stop()
    assert cluster.told() == ["--state=PENDING 1_2", "--state=RUNNING --signal=INT 1_0"]
    cluster.say(j1_1="PENDING", j1_2="CANCELLED")  # it was being requeued
    assert workers.poll()
    assert cluster.told() == ["--state=PENDING 1_1", "--state=RUNNING --signal=INT 1_0"]
    cluster.say(j1_0="FAILED|33280", j1_1="CANCELLED")
    assert not workers.poll()
    assert cluster.submitted == [3]
    assert len(workers.take_messages()) == 1


def test_killing_cancels(cluster: Cluster, results: store.Store, left: list[str]) -> None:
    workers = follow(cluster, results, 2)
    workers.kill()
    assert cluster.told() == ["1_0 1_1"]
    assert not workers.poll()
    assert cluster.submitted == [2]


def test_an_array_that_is_cancelled_as_a_whole_is_known_by_its_id(
    cluster: Cluster, results: store.Store, left: list[str]
) -> None:
    workers = follow(cluster, results, 2)
    cluster.states.clear()
    cluster.say(j1="CANCELLED")  # as squeue lists it
    assert not workers.poll()
    assert cluster.submitted == [2]


def test_the_queue_is_not_asked_more_often_than_it_may(
    cluster: Cluster, results: store.Store, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    for module in (slurm_queue, rate_limiter):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(slurm_queue, "QUEUE_SECONDS", 5.0)
    monkeypatch.setattr(rate_limiter, "SECONDS", 3.0)
    asked: list[float] = []
    looked: list[float] = []
    statuses = results.statuses

    def listed(name: str) -> dict[str, slurm_queue.JobState]:
        asked.append(now[0])
        return {"1_0": slurm_queue.JobState("RUNNING", 0)}

    def look(name: str) -> dict[str, str]:
        looked.append(now[0])
        return statuses(name)

    monkeypatch.setattr(slurm_queue, "listed", listed)
    monkeypatch.setattr(results, "statuses", look)
    workers = follow(cluster, results, 1)
    for second in range(12):
        now[0] = 1000.0 + second
        assert workers.poll()
    assert asked == [1005.0, 1010.0]
    assert looked == [1000.0, 1003.0, 1006.0, 1009.0]
    called: list[int] = []
    workers.meanwhile = lambda: called.append(1)
    workers.poll()
    workers.poll()
    assert called == [1]
