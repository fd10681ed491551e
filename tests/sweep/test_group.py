"""Workers of several processes, over loopback: they share every run, and end together whatever ends one of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import config, memory, store
from scaling.data import corpus as corpora
from scaling.launch import environments
from scaling.store import record
from scaling.training import loop
from scaling.worker import group, protocol
from tests import command, conftest, on_devices, waiting

pytestmark = pytest.mark.engines  # several processes that compute together

Make = Callable[..., config.Run]
ROOT = Path(__file__).parents[2]
EXECUTION = {"evaluations": 2, "steps_per_dispatch": 4, "checkpoint_seconds": 0.01}
LIMIT_SECONDS = 60.0  # in which all end where one has


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every process: one device, and compiled programs kept, so that only the first group compiles."""
    return {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": conftest.FAST_COMPILE, "PYTHONUNBUFFERED": "1",
        **environments.compiled_programs(tmp_path_factory.mktemp("compiled")),
    }  # fmt: skip


class Processes:
    """The processes of one worker, with a log each. They are killed at the end of a test."""

    def __init__(self, results: store.Store, environments: Sequence[Mapping[str, str]]):
        self.logs = [Path(f"{results.path}-{time.monotonic_ns()}-{i}.log") for i in range(len(environments))]
        self.processes = []
        for settings, log in zip(environments, self.logs, strict=True):
            with open(log, "wb") as file:
                started = subprocess.Popen(
                    command.line("worker", results.path, "mine"),
                    env={**os.environ, **settings},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )
                self.processes.append(started)

    def codes(self, seconds: float = 200.0) -> list[int]:
        """The exit codes, when all have ended."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            assert time.monotonic() < end, f"some go on after {seconds} s\n{self}"
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def send(self, number: int, to: int) -> tuple[list[int], float]:
        """The exit codes after a signal to one of them, and how many seconds it took all to end."""
        start = time.monotonic()
        self.processes[to].send_signal(number)
        codes = self.codes(LIMIT_SECONDS)
        took = time.monotonic() - start
        print(f"after {signal.Signals(number).name} to process {to} all had ended in {took:.1f} s with codes {codes}")
        return codes, took

    def __repr__(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in self.logs)


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Processes]]:
    """Starts a worker of several processes on a store; `own` is added to the environment of each."""
    made: list[Processes] = []

    def begin(results: store.Store, count: int, own: Callable[[int], dict[str, str]] = lambda number: {}) -> Processes:
        address = on_devices.address()
        settings = [
            {**environment, **dict(zip(group.NAMES, (address, str(count), str(number)), strict=True)), **own(number)}
            for number in range(count)
        ]
        made.append(Processes(results, settings))
        return made[-1]

    yield begin
    for process in (process for each in made for process in each.processes):
        process.kill()
        process.wait()


def planned(results: store.Store, runs: Sequence[config.Run], **execution: Any) -> list[str]:
    """Put runs on their real corpora, and a sweep of them, into a store; gives their ids."""
    records = [record.config_record(run, corpora.prepare(run.data, print)) for run in runs]
    for kept in records:
        results.add_run(kept["run_id"], kept)
    settings = config.Execution.model_validate({**EXECUTION, **execution})
    sweep = config.Sweep(name="mine", base=runs[0], execution=settings)
    labels = {"family": "transformer", "role": "single"}
    members = [{"run_id": kept["run_id"], "labels": labels} for kept in records]
    results.add_sweep("mine", sweep.model_dump(mode="json"), members)
    return [kept["run_id"] for kept in records]


def until(ready: Callable[[], bool], of: Processes) -> None:
    """Wait for something that running processes do."""

    def done() -> bool:
        assert all(process.poll() is None for process in of.processes), of
        return ready()

    waiting.until(done, 200, lambda: of)


def test_every_run_is_trained_once_by_all_and_a_run_that_fails_in_all_harms_no_other(
    results: store.Store, tiny: Make, start: Callable[..., Processes]
) -> None:
    """Two devices cannot split a batch of 5: the first run, being the longest. The others are a pack of 2, and one."""
    runs = [tiny(batch_size=5, tokens=5 * 16 * 40), *(tiny(seed=seed) for seed in range(3))]
    ids = planned(results, runs, pack=2)
    workers = start(results, 2)
    assert workers.codes() == [0, 0], workers
    rows = [results.result(run_id) for run_id in ids]
    assert [row and row["status"] for row in rows] == [None, "finished", "finished", "finished"]
    assert "5 sequences do not split over 2 shards" in results.status(ids[0])["reason"]
    for run_id in ids:
        status, files = results.status(run_id), results.folder(run_id)
        assert (status["attempt"], status["faults"]) == (1, {})
        assert "2 × " in (status["device"] or "")
        segments = sorted(path.name for path in (files / "metrics").glob("*"))
        assert segments == ([] if run_id == ids[0] else ["000001.jsonl"])
        assert len(results.history(run_id)) == (0 if run_id == ids[0] else 20)
    assert "process 1 of 2 that train each run together" in workers.logs[1].read_text()


def test_processes_that_are_killed_or_stopped_end_all_and_another_group_goes_on(
    results: store.Store, tiny: Make, start: Callable[..., Processes], tmp_path: Path
) -> None:
    """Killed: the one that follows; stopped; killed: the one that claims; then a worker alone finishes the run.

    Its losses are those of an undisturbed run.
    """
    run = tiny(tokens=64 * 240)
    (run_id,) = planned(results, [run])

    def step() -> int:
        return max((s for place in results.checkpoints(run_id) for s in steps(place)), default=0)

    def on(workers: Processes, beyond: int) -> None:
        until(lambda: step() > beyond, workers)

    first = start(results, 2)
    on(first, 0)
    codes, took = first.send(signal.SIGKILL, to=1)
    assert codes == [protocol.AGAIN, -signal.SIGKILL], first
    assert took < LIMIT_SECONDS
    status = results.status(run_id)
    assert (status["status"], status["faults"]) == ("planned", {"infrastructure": 1})
    assert "process 1 of 2 no longer answers" in status["reason"]

    second, before = start(results, 2), step()
    on(second, before)
    codes, _ = second.send(signal.SIGTERM, to=1)
    assert codes == [143, 143], second
    status = results.status(run_id)
    assert status["faults"] == {"infrastructure": 1, "preempted": 1}
    assert status["reason"] == f"asked to stop at step {step()}; resumes there"

    third, before = start(results, 2), step()
    on(third, before)
    codes, took = third.send(signal.SIGKILL, to=0)
    assert codes == [-signal.SIGKILL, protocol.AGAIN], third
    assert took < LIMIT_SECONDS
    assert before < step() < run.steps

    assert start(results, 1).codes() == [0]
    row, losses = results.result(run_id), results.history(run_id)["loss"]
    assert row is not None
    assert row["status"] == "finished"
    assert results.status(run_id)["faults"] == {"infrastructure": 1, "preempted": 1, "vanished": 1}
    rows: list[dict[str, Any]] = []
    undisturbed = loop.TrainingRun(run, [tmp_path / "alone"], rows.extend, lambda: False)
    (outcome,) = loop.train([undisturbed], config.Execution.model_validate(EXECUTION), corpora.prepare(run.data, print))
    expected = [each["loss"] for each in rows if each["kind"] == "train"]
    print(f"losses of {run.steps} steps differ by {np.max(np.abs(losses / expected - 1)):.1e}")
    np.testing.assert_allclose(losses[:20], expected[:20], rtol=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(row["loss"], outcome.loss, rtol=1e-5)


def steps(place: Any) -> list[int]:
    return [int(path.name) for path in Path(place).glob("*") if path.name.isdecimal()]


def test_what_fails_in_one_process_alone_ends_all_and_is_the_runs_failure(
    results: store.Store, tiny: Make, start: Callable[..., Processes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host has other text than the run was planned on; the first cannot know, and waits for it."""
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        (home / "text").mkdir(parents=True)
        for number in range(20):
            (home / "text" / f"{number}.txt").write_text(f"{number} words of the {home.name} host. " * 40)
    monkeypatch.setenv("HOME", str(homes[0]))
    source = {"kind": "files", "glob": "~/text/*.txt", "validation_fraction": 0.3}
    (run_id,) = planned(results, [tiny(data__source=source, data__validation_tokens=64)])

    workers = start(results, 2, lambda number: {"HOME": str(homes[number])})
    assert workers.codes(LIMIT_SECONDS) == [protocol.AGAIN, protocol.AGAIN], workers
    status = results.status(run_id)
    assert (status["status"], status["faults"]) == ("failed", {})
    assert "1 of 2 processes failed by themselves (process 1: ValueError: the corpus of run" in status["reason"]
    assert start(results, 1).codes() == [0]  # nothing is left to claim


def test_a_worker_that_is_refused_ends_all_with_the_same_code(
    results: store.Store, tiny: Make, start: Callable[..., Processes]
) -> None:
    planned(results, [tiny()])
    workers = start(results, 2, lambda number: {memory.LIMIT: "1000"})
    assert workers.codes(LIMIT_SECONDS) == [protocol.REFUSED, protocol.REFUSED], workers
    assert "no microbatch fits" in workers.logs[0].read_text()


@contextlib.contextmanager
def trunk_held(results: store.Store, tiny: Make) -> Iterator[str]:
    """A branch, whose trunk this process trains while the body runs, as far as the store knows."""
    trunk, branch = planned(results, [tiny(), tiny(seed=1)])
    members = results.sweep("mine")["members"]
    members[1]["labels"]["parent_run_id"] = trunk
    results.add_sweep("mine", results.sweep("mine")["config"], members)
    lease = results.claim(trunk, "elsewhere")
    assert lease is not None
    with lease.beating(print):
        yield branch


def test_while_the_first_process_waits_for_a_trunk_the_others_wait_and_may_be_stopped(
    results: store.Store, tiny: Make, start: Callable[..., Processes]
) -> None:
    with trunk_held(results, tiny) as branch:
        workers = start(results, 2)
        until(lambda: "process 1 of 2" in workers.logs[1].read_text(), workers)
        until(lambda: "waiting for trunks" in workers.logs[0].read_text(), workers)
        codes, _ = workers.send(signal.SIGTERM, to=1)
    assert codes == [143, 143], workers
    assert results.status(branch)["attempt"] == 0


def test_a_process_that_dies_while_nothing_is_computed_ends_the_others_in_a_minute(
    results: store.Store, tiny: Make, start: Callable[..., Processes]
) -> None:
    with trunk_held(results, tiny):
        workers = start(results, 3)
        until(lambda: all("of 3 that train" in log.read_text() for log in workers.logs), workers)
        until(lambda: "waiting for trunks" in workers.logs[0].read_text(), workers)
        codes, _ = workers.send(signal.SIGKILL, to=2)
    assert codes == [protocol.AGAIN, protocol.AGAIN, -signal.SIGKILL], workers


# How a worker finds its group, and what becomes of its process


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [*group.NAMES, *(name for name in os.environ if name.startswith(("SLURM_", "TPU_")))]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        (dict(zip(group.NAMES, ("host:1", "1", "0"), strict=True)), None),
        (
            dict(zip(group.NAMES, ("host:1", "4", "3"), strict=True)),
            {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3},
        ),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),  # a batch script, whose steps have the tasks
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b"}, {"local_device_ids": []}),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a", "JAX_LOCAL_DEVICE_IDS": "0,1"},
            {"local_device_ids": None},
        ),
    ],
)
def test_a_group_is_found_in_the_environment(
    clean: pytest.MonkeyPatch, given: dict[str, str], found: dict[str, Any] | None
) -> None:
    for name, value in given.items():
        clean.setenv(name, value)
    assert group.find() == found


def test_a_tpu_slice_of_several_hosts_is_a_group(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(group.devices, "on_tpu", lambda: True)
    assert group.find() == {}  # a virtual machine of Google Cloud, of which JAX knows more
    clean.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert group.find() is None
    clean.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert group.find() == {}


def test_half_an_environment_is_refused(clean: pytest.MonkeyPatch) -> None:
    clean.setenv(group.NAMES[0], "host:1")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is not set; set all of them, or none"):
        group.find()


CHILD = """
import os, signal, sys, time
from scaling.worker import group, protocol
group._join = lambda arguments, log: setattr(group, "_joined", True)
stopped = []
def work():
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    print("working", os.getpid(), flush=True)
    BODY
sys.exit(group.run(work, [signal.SIGTERM], "SCALING_LAUNCHER_PID", print))
"""
UNTIL_STOPPED = "while not stopped: time.sleep(0.02)\n    return 100 + len(stopped)"


@pytest.fixture
def parent(clean: pytest.MonkeyPatch) -> Iterator[Callable[..., "tuple[subprocess.Popen[str], int]"]]:
    """Starts a process that does a body in a child, as one of a group; gives it and the child's id."""
    for name, value in zip(group.NAMES, ("127.0.0.1:1", "2", "1"), strict=True):
        clean.setenv(name, value)
    made: list[subprocess.Popen[str]] = []

    def begin(body: str, **environment: str) -> "tuple[subprocess.Popen[str], int]":
        started = subprocess.Popen(
            [sys.executable, "-c", CHILD.replace("BODY", body)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip
        made.append(started)
        assert started.stdout is not None
        word, pid = started.stdout.readline().split()
        assert word == "working"
        return started, int(pid)

    yield begin
    for process in made:
        process.kill()
        process.communicate()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return 3", 3),
        ("os.abort()", protocol.AGAIN),  # as JAX does where another process has died
        ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(9)", -signal.SIGKILL),
        ("raise ValueError('planted')", protocol.REFUSED),
        ("raise KeyError('planted')", protocol.CRASHED),
        ("return protocol.AGAIN", protocol.AGAIN),
    ],
)
def test_a_worker_ends_as_its_child_does_but_for_aborts(parent: Any, body: str, code: int) -> None:
    process, _ = parent(
        body.replace("raise", "from scaling.training import processes; processes.is_leader = lambda: False; raise")
    )
    assert process.wait(LIMIT_SECONDS) == code


def test_a_signal_reaches_the_child_once_and_a_second_kills_it(parent: Any) -> None:
    process, pid = parent(UNTIL_STOPPED)
    process.terminate()
    assert process.wait(LIMIT_SECONDS) == 101
    process, pid = parent(UNTIL_STOPPED.replace("return", "print('stopped', flush=True); time.sleep(600); return"))
    process.terminate()
    assert process.stdout.readline() == "stopped\n"
    assert running(pid)
    process.terminate()
    assert process.wait(LIMIT_SECONDS) == -signal.SIGKILL
    assert not running(pid)


def test_a_child_dies_with_its_parent(parent: Any) -> None:
    process, pid = parent("time.sleep(600)")
    process.kill()
    process.wait(LIMIT_SECONDS)
    waiting.until(lambda: not running(pid))


def test_a_launcher_that_is_gone_reaches_the_child_as_a_signal(parent: Any) -> None:
    """Here as one that the child does not heed yet."""
    code = CHILD.replace("BODY", "time.sleep(600)")
    environment = {**os.environ, "SCALING_LAUNCHER_PID": "1"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, timeout=LIMIT_SECONDS).returncode == 129
    )
