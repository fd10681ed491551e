"""What a task of a Slurm job does when it is signalled and when its worker ends, with workers of a few lines."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit.helpers

from scaling.launch.launchers.slurm import task as slurm_task

WORKER = """
import os, signal, sys, time
from pathlib import Path
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
Path("ready.draft").write_text(str(os.getpid()))
os.rename("ready.draft", "ready")
BODY
"""
STOPS = "while not (got and Path('sent').exists()): time.sleep(0.01)\nprint(got, flush=True)\nsys.exit(129)"


class Requeued(SystemExit):
    """Submitit has the job requeued, and exits."""


@pytest.fixture
def life(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs a task whose worker is a few lines of Python, and signals it and the worker once that is ready.

    Gives how the task ended, and what was printed. `state` is what squeue says of the job meanwhile.
    """

    def run(task: slurm_task.SlurmTask, *sent: int, rank: int = 0, state: str = "RUNNING") -> tuple[str, str]:
        squeue = tmp_path / "squeue"
        squeue.write_text(f"#!/bin/sh\necho {state}\n")
        squeue.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        described = {"PROCID": rank, "NTASKS": 1, "JOB_ID": 7, "ARRAY_JOB_ID": 6, "ARRAY_TASK_ID": 1}
        for name, value in {**described, "LOCALID": 0, "JOB_NODELIST": "node1"}.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        monkeypatch.setenv("SLURMD_NODENAME", "node1")
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.chdir(tmp_path)
        over = threading.Event()
        for name in ("ready", "sent"):
            (tmp_path / name).unlink(missing_ok=True)

        def signal_both() -> None:
            while not (tmp_path / "ready").exists():
                if over.wait(0.02):
                    return
            worker = int((tmp_path / "ready").read_text())
            for number in sent:
                os.kill(worker, number)
                os.kill(os.getpid(), number)
            (tmp_path / "sent").touch()

        def requeue(number: int, frame: object) -> None:
            task.checkpoint()
            raise Requeued(1)

        before = {number: signal.signal(number, requeue) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
        thread = threading.Thread(target=signal_both)
        thread.start()
        try:
            task()
            how = "returned"
        except Requeued:
            how = "requeued"
        except SystemExit as end:
            how = f"exited {end.code}"
        finally:
            over.set()
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        return how, capfd.readouterr().out

    return run


def worker(body: str) -> slurm_task.SlurmTask:
    return slurm_task.SlurmTask((sys.executable, "-c", WORKER.replace("BODY", body)), {})


@pytest.mark.parametrize(
    ("sent", "state", "how"),
    [
        ([signal.SIGUSR2], "RUNNING", "requeued"),
        ([signal.SIGUSR2, signal.SIGTERM], "RUNNING", "requeued"),
        ([signal.SIGTERM, signal.SIGTERM], "RUNNING", "requeued"),  # preempted, in its grace time
        ([signal.SIGTERM, signal.SIGTERM], "COMPLETING", "exited 129"),  # cancelled, or already requeued by Slurm
        ([signal.SIGINT], "RUNNING", "exited 130"),
        ([signal.SIGUSR2, signal.SIGINT], "RUNNING", "exited 130"),
    ],
)
def test_a_worker_is_told_once_and_slurms_signal_decides_what_follows(
    life: Callable[..., tuple[str, str]], sent: list[int], state: str, how: str
) -> None:
    """Every signal reaches the worker itself, too, as where Slurm signals all processes of a step."""
    task = worker(STOPS)
    ended, printed = life(task, *sent, state=state)
    assert (ended, task.failures) == (how, 0)
    assert "['SIGHUP']" in printed


@pytest.mark.parametrize(
    ("body", "how", "failures"),
    [
        ("sys.exit(0)", "returned", 0),
        ("sys.exit(2)", "exited 2", 1),
        ("sys.exit(75)", "requeued", 1),
        ("sys.exit(1)", "requeued", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", "requeued", 1),
        ("sys.exit(143)", "exited 143", 0),  # a person stopped the worker alone
    ],
)
def test_how_a_worker_ended_decides_what_follows(
    life: Callable[..., tuple[str, str]], body: str, how: str, failures: int
) -> None:
    task = worker(body)
    assert (life(task)[0], task.failures) == (how, failures)


def test_a_worker_that_always_crashes_is_given_up(life: Callable[..., tuple[str, str]]) -> None:
    task = worker("os.kill(os.getpid(), signal.SIGKILL)")
    ended = [life(task)[0] for _ in range(slurm_task.FAILURES + 1)]
    assert ended == ["requeued"] * slurm_task.FAILURES + ["exited 137"]


def test_a_life_that_ended_well_makes_up_for_crashes(life: Callable[..., tuple[str, str]]) -> None:
    task = worker(STOPS)
    task.failures = slurm_task.FAILURES
    assert life(task, signal.SIGUSR2)[0] == "requeued"
    assert task.failures == 0


def test_only_the_first_process_has_the_job_requeued(life: Callable[..., tuple[str, str]]) -> None:
    ended, printed = life(worker(STOPS), signal.SIGUSR2, rank=1)
    assert ended == "returned"
    assert "['SIGHUP']" in printed
    assert life(worker("sys.exit(75)"), rank=1)[0] == "returned"


def test_what_is_requeued_is_the_same_task(tmp_path: Path) -> None:
    task = slurm_task.SlurmTask(("python", "-c", "pass"), {"SCALING_WORKERS": "2"}, gpus=4, failures=3)
    delayed = task.checkpoint()
    delayed.dump(tmp_path / "submitted.pkl")
    again = submitit.helpers.DelayedSubmission.load(tmp_path / "submitted.pkl")
    assert again.function == task


def test_processes_of_a_group_know_each_other_and_their_gpus() -> None:
    slurms = {
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "8193", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }  # fmt: skip
    assert slurm_task.group(slurms, 2) == {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.7:61441", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3",
        "JAX_LOCAL_DEVICE_IDS": "2,3",
    }  # fmt: skip
    assert "JAX_LOCAL_DEVICE_IDS" not in slurm_task.group(slurms, 0)
    six = slurm_task.group({**slurms, "SLURM_LAUNCH_NODE_IPADDR": "fd00::7"}, 0)
    assert six["JAX_COORDINATOR_ADDRESS"] == "[fd00::7]:61441"
