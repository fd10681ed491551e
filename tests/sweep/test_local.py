"""The local launcher with workers that only pretend to train: who is started where, restarted, and stopped."""

import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

from scaling import config, memory, store
from scaling.launch import environments, launcher, slots, stages, watch
from scaling.launch.launchers import local

Make = Callable[..., config.Run]
Launch = Callable[..., local.LocalWorkers]
Fill = Callable[..., list[str]]

WORKER = """
import os, signal, sys, time
from pathlib import Path
from scaling import store
results, sweep, place = store.Store(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(143))
(place / f"started-{os.getpid()}").write_text(f"{sorted(os.sched_getaffinity(0))} {os.environ['GLIBC_TUNABLES']}")
for member in results.sweep(sweep)["members"]:
    lease = results.claim(member["run_id"], f"worker {os.getpid()}", {"device": "cpu"})
    if lease is not None:
        BODY
        lease.publish({"run_id": lease.run_id, "status": "finished", "reason": None, "loss": 2.0, "loss_se": 0.1,
                       "seconds": 1.0, "family": "transformer", "params": 100, "tokens": 640, "flops": 1.0})
"""


@pytest.fixture
def results(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "store")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes workers of a few lines of Python, and gives the folder in which they leave traces."""
    place = tmp_path / "traces"
    place.mkdir()
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def use(body: str) -> Path:
        program = WORKER.replace("BODY", body.replace("\n", "\n        "))
        monkeypatch.setattr(
            launcher.Job,
            "worker_command",
            lambda job: [sys.executable, "-c", program, job.store_path, job.sweep_name, str(place)],
        )
        return place

    return use


def finished(results: store.Store) -> int:
    return list(results.statuses("small").values()).count("finished")


def run(workers: local.LocalWorkers) -> list[str]:
    """Wait for the workers; gives what was told."""
    told: list[str] = []
    workers.wait(lambda: told.extend(workers.take_messages()), poll_seconds=0.02)
    return told + workers.take_messages()


def test_workers_share_a_sweep_each_on_its_cores(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    fill(results, [make_run(seed=seed) for seed in range(6)])
    place = pretend("time.sleep(0.05)")
    workers = launch(results.path, "small", 2)
    assert run(workers) == []
    assert finished(results) == 6
    traces = [path.read_text() for path in place.iterdir()]
    cores = sorted(os.sched_getaffinity(0))
    assert sorted(traces) == sorted(f"{share} glibc.malloc.hugetlb=1" for share in local.split(cores, 2))
    assert {path.name for path in (results.sweep_folder("small") / "logs").iterdir()} == {
        slot.log.name for slot in workers.slots
    }


def test_what_needs_a_core_is_called_once_when_one_is_free_and_others_train(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    fill(results, [make_run(seed=seed) for seed in range(2)])
    last = results.sweep("small")["members"][1]["run_id"]
    place = pretend(f"while lease.run_id == {last!r} and not (place / 'called').exists(): time.sleep(0.02)")
    workers = launch(results.path, "small", 2)
    found: list[tuple[int, int]] = []

    def meanwhile() -> None:
        found.append((finished(results), sum(slot.process is not None for slot in workers.slots)))
        (place / "called").touch()

    workers.meanwhile = meanwhile
    assert run(workers) == []
    assert found == [(1, 1)]


def test_nothing_is_started_where_nothing_is_left(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    (run_id,) = fill(results, [make_run()])
    lease = results.claim(run_id, "me")
    assert lease is not None
    lease.publish({"status": "finished", "reason": None})
    place = pretend("")
    workers = launch(results.path, "small", 4)
    assert workers.slots == []
    assert run(workers) == []
    assert list(place.iterdir()) == []


def test_a_worker_that_crashes_is_restarted_and_said_so(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    fill(results, [make_run(seed=seed) for seed in range(2)])
    pretend("if lease.attempt == 1: os.kill(os.getpid(), signal.SIGKILL)")
    told = run(launch(results.path, "small", 1))
    assert finished(results) == 2
    assert len(told) == 2
    assert "was ended by SIGKILL; restarted (1 of 3), log" in told[0]


def test_a_worker_that_always_crashes_is_given_up_with_the_end_of_its_log(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    fill(results, [make_run()])
    monkeypatch.setattr(launcher, "RESTARTS", 1)
    place = pretend("raise SystemExit('planted')")
    told = run(launch(results.path, "small", 1))
    assert len(list(place.iterdir())) == 1 + launcher.RESTARTS
    assert "is given up" in told[-1]
    assert "planted" in told[-1]
    assert results.statuses("small").popitem()[1] == "planned"


def test_a_worker_that_refuses_is_not_restarted(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    fill(results, [make_run()])
    place = pretend("print('error: planted'); sys.exit(2)")
    told = run(launch(results.path, "small", 1))
    assert len(list(place.iterdir())) == 1
    assert "exit code 2 and is given up" in told[0]
    assert "error: planted" in told[0]


def test_runs_that_another_machine_leaves_are_taken_over(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    """The launcher waits for a run that another holds, and starts a worker when that one is gone."""
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    monkeypatch.setattr(slots, "PAUSE_SECONDS", 0.1)
    other = results.claim(run_ids[0], "another machine")
    assert other is not None
    pretend("")
    releasing = threading.Timer(1.5, lambda: other.release("preempted"))
    releasing.start()
    run(launch(results.path, "small", 2))
    assert not releasing.is_alive()
    assert finished(results) == 2
    assert results.status(run_ids[0])["attempt"] == 2


def test_an_empty_slot_is_filled_while_others_train(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    """A run that its owner leaves waits for no worker that has a long one; but for a while, as it may not be left."""
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    monkeypatch.setattr(slots, "PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr(slots.lease, "LEASE_SECONDS", 1.0)
    other = results.claim(run_ids[0], "another machine")
    assert other is not None
    pretend(f"while lease.run_id == {run_ids[1]!r} and results.result({run_ids[0]!r}) is None: time.sleep(0.02)")
    releasing = threading.Timer(1.5, lambda: other.release("preempted"))
    releasing.start()
    run(launch(results.path, "small", 2))
    assert finished(results) == 2


def test_a_worker_whose_infrastructure_failed_is_started_anew_and_no_crash_is_counted(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    fill(results, [make_run()])
    monkeypatch.setattr(slots, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "RESTARTS", 0)
    pretend("if lease.attempt < 3: lease.release('store away'); sys.exit(75)")
    told = run(launch(results.path, "small", 1))
    assert finished(results) == 1
    assert ["ended with exit code 75; another goes on where runs are left" in line for line in told] == [True, True]


def test_an_interrupt_lets_workers_save_and_leaves_the_sweep_resumable(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    fill(results, [make_run(seed=seed) for seed in range(4)])
    place = pretend(
        "while not stopped: time.sleep(0.01)\nlease.release('asked to stop')\n(place / 'saved').touch()\nsys.exit(143)"
    )
    workers = launch(results.path, "small", 1)

    def interrupt() -> None:
        while not list(place.glob("started-*")) or "running" not in results.statuses("small").values():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    told = run(workers)
    assert told[-1] == "stopped; start the same command again to go on"
    assert (place / "saved").exists()
    assert set(results.statuses("small").values()) == {"planned"}
    pretend("")
    run(launch(results.path, "small", 1))
    assert finished(results) == 4


def test_lines_for_runs_that_end_where_the_output_is_no_terminal(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, launch: Launch
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    pretend("")
    shown = io.StringIO()
    watch.follow(
        results, "small", launch(results.path, "small", 1), console=rich.console.Console(file=shown, width=200)
    )
    lines = shown.getvalue().splitlines()
    assert lines[0] == "small: 3 planned"
    assert len(lines) == 4
    for number, line in enumerate(lines[1:], start=1):
        assert line.startswith(f"{number}/3 ended · ")
        assert re.search(r"transformer 100 params 640 tokens, seed [012] loss 2\.0000 ± 0\.1000 \(1 s\)", line)
    assert {line.split(" · ")[1].split()[0] for line in lines[1:]} == set(run_ids)


def test_the_table_shows_every_run_whatever_its_status(results: store.Store, make_run: Make, fill: Fill) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    failed, running = results.claim(run_ids[0], "me"), results.claim(run_ids[1], "you")
    assert failed is not None
    assert running is not None
    failed.fail("ValueError: planted", "tb")
    running.metrics([{"kind": "train", "step": 7}])
    running.heartbeat()
    console = rich.console.Console(file=io.StringIO(), width=250)
    console.print(watch.table(results, "small"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "small: 1 failed, 1 running, 1 planned" in shown
    assert "failed: ValueError: planted" in shown
    assert "7/20" in shown
    assert all(run_id in shown for run_id in run_ids)
    console.print(watch.table(results, "small", rows=1))
    assert "2 more runs are not shown" in console.file.getvalue()  # type: ignore[attr-defined]


def test_less_than_one_worker_is_refused(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 workers.*at least 1"):
        stages.run(config.Sweep(name="small", base=make_run()), tmp_path / "store", workers=0)


def test_a_dry_run_says_what_would_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.devices, "cores", lambda: [4, 5])
    monkeypatch.setattr(environments, "find_accelerators", list)
    place = tmp_path / "none yet"
    job = launcher.Job(str(place), "small", config.Mesh(), 9, 2, tmp_path / "mine.py")
    first, second = local.Local().describe(job).splitlines()
    assert first.startswith("worker 0, cores 4: GLIBC_TUNABLES=")
    assert second.startswith("worker 1, cores 5: ")
    assert second.endswith(f"-m scaling.cli worker '{place}' small --config {tmp_path}/mine.py")
    assert not place.exists()
    assert local.Local(pin=False).describe(job).startswith("worker 0, cores any:")


def test_the_compile_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    folder = environments.compile_cache()
    assert folder.is_relative_to(tmp_path / "cache")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    environments.compile_cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match="belongs to another user"):
        environments.compile_cache()


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]),
        ([3, 5], 3, [[3], [5], [3]]),
        ([0, 1], 0, []),
    ],
)
def test_cores_are_split_evenly(cores: list[int], workers: int, shares: list[list[int]]) -> None:
    assert sorted(map(tuple, local.split(cores, workers))) == sorted(map(tuple, shares))


def test_a_launcher_imports_no_jax() -> None:
    program = (
        "import sys; from scaling.launch import watch; from scaling.launch.launchers import local\n"
        "print('jax' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_each_process_gets_one_device_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "jax_cuda13_plugin" else None)
    assert environments.find_accelerators() == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "GPU-abc"}]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert environments.find_accelerators() == []


def test_two_launchers_at_once_train_each_run_once(
    results: store.Store, make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    """With real workers and real training."""
    from scaling.data import corpus
    from scaling.store import record

    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    runs = [make_run(seed=seed) for seed in range(4)]
    prepared = corpus.prepare(runs[0].data, lambda line: None)
    members = []
    for run_of_sweep in runs:
        kept = record.config_record(run_of_sweep, prepared)
        results.add_run(kept["run_id"], kept)
        members.append({"run_id": kept["run_id"], "labels": {"role": "single"}})
    results.add_sweep("small", config.Sweep(name="small", base=runs[0]).model_dump(mode="json"), members)

    launchers = [launch(results.path, "small", 1) for _ in range(2)]
    while sum(launcher.poll() for launcher in launchers):
        time.sleep(0.1)
    logs = "".join(path.read_text() for path in (results.sweep_folder("small") / "logs").iterdir())
    assert [message for launcher in launchers for message in launcher.take_messages()] == [], logs
    frame = results.runs("small")
    assert frame["status"].tolist() == ["finished"] * 4, logs
    assert frame["loss"].nunique() == 4
    for member in members:
        assert logs.count(f"{member['run_id']} attempt") == 1
    assert len(results.curves("small")) == 4


def test_a_run_on_a_mesh_gets_as_many_accelerators_as_it_names() -> None:
    four = [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(4)]
    assert local.grouped(four, 1) == four
    assert local.grouped(four, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert local.grouped(four, 3) == [{"CUDA_VISIBLE_DEVICES": "0,1,2"}]
    assert local.grouped([], 4) == []
    with pytest.raises(ValueError, match="needs 8 accelerators and this machine has 4"):
        local.grouped(four, 8)


def test_on_the_cpu_a_worker_has_the_devices_of_its_mesh(
    results: store.Store, make_run: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    execution = config.Execution(mesh=config.Mesh(data=2, tensor=2))
    fill(results, [make_run(seed=seed) for seed in range(3)], execution=execution)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.setattr(local.LocalWorkers, "start", lambda self, slot: None)
    monkeypatch.setattr(local.devices, "cores", lambda: list(range(9)))
    monkeypatch.setattr(memory, "available", lambda: 40e9)
    slots = launch(results.path, "small", None).slots
    assert [list(slot.cores) for slot in slots] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    for slot in slots:
        assert slot.environment["XLA_FLAGS"].split() == [
            "--xla_cpu_enable_fast_math=false", "--xla_force_host_platform_device_count=4",
        ]  # fmt: skip
    # What a worker may take is for all of its devices, which share it; what a plan is held to is for each of them.
    share = float(slots[0].environment[memory.LIMIT])
    assert local.memory_limit(None, 3, execution.mesh) == ("cpu", share / 4)
    assert local.default_workers(2e9, execution.mesh) == 2
    assert local.default_workers(5e9, execution.mesh) == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert environments.host_devices(4) == {}
