"""Sweeps on a real Slurm cluster of two nodes on this machine: shared, over both nodes, disturbed, cancelled."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaling import config, store
from scaling.config import grids
from scaling.launch import stages
from scaling.launch.launchers import local
from tests import command
from tests.engines import slurm_cluster

pytestmark = pytest.mark.engines

Make = Callable[..., config.Run]
ROOT = Path(__file__).parents[2]
SETTINGS = ["--launcher", "slurm", "--cluster", "minutes=30", "--cluster", "partition=low"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that see the cluster."""
    if lacking := slurm_cluster.missing():
        pytest.skip(lacking)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        yield {**environment, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}


@pytest.fixture
def make_sweep(tiny: Make, tmp_path: Path) -> Callable[[str, int, int], config.Sweep]:
    """Saves a sweep of some seeds of some steps as NAME.json: its runs are trained alone and in short dispatches."""

    def make(name: str, seeds: int, steps: int) -> config.Sweep:
        execution = config.Execution(steps_per_dispatch=8, checkpoint_seconds=1e9, pack=1)
        seeded = grids.Axis(field="seed", values=tuple(range(seeds)))
        sweep = config.Sweep(name=name, base=tiny(tokens=64 * steps), grid=seeded, execution=execution)
        (tmp_path / f"{name}.json").write_text(sweep.to_json())
        return sweep

    return make


def sweeping(name: str, cwd: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    line = command.line("sweep", f"{name}.json", *arguments)
    return subprocess.Popen(line, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logs(name: str) -> dict[str, str]:
    """What each process of a sweep's jobs printed, by the name of its log."""
    folder = Path(os.environ["SCALING_CACHE"]) / "slurm" / name
    return {path.name: path.read_text() for path in sorted(folder.glob("*_log.out"))}


def queue(env: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The state and the node of every job, also of those that ended, by its id."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N"]
    shown = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return {job: (state, node) for job, state, node in (line.split("|") for line in shown.stdout.splitlines())}


def wait_until(condition: Callable[[], bool], about: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s; {logs(about)}"
        time.sleep(0.1)


def steps(results: store.Store, run_id: str) -> list[int]:
    """Steps that were recorded of a run, over all its attempts."""
    segments = (results.folder(run_id) / "metrics").glob("*.jsonl")
    rows = [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]
    return sorted(row["step"] for row in rows if row["kind"] == "train")


def test_a_sweep_is_shared_by_two_nodes(
    cluster: dict[str, str], make_sweep: Callable[[str, int, int], config.Sweep], tmp_path: Path
) -> None:
    make_sweep("shared", 4, 400)
    planned = sweeping("shared", tmp_path, cluster, *SETTINGS, "--workers", "2", "--dry-run").communicate()[0]
    assert not (tmp_path / "results").exists()
    started = sweeping("shared", tmp_path, cluster, *SETTINGS, "--workers", "2")
    said = started.communicate()[0]
    assert started.returncode == 0, (said, logs("shared"))
    frame = store.Store(tmp_path / "results").runs("shared")
    assert frame["status"].tolist() == ["finished"] * 4
    printed = logs("shared").values()
    for run_id in frame["run_id"]:
        assert sum(log.count(f"{run_id} attempt") for log in printed) == 1
    assert sorted(log.partition(" on ")[2].partition(",")[0] for log in printed) == list(slurm_cluster.NODES)
    assert min(log.count(" attempt 1: ") for log in printed) > 0
    (script,) = (Path(os.environ["SCALING_CACHE"]) / "slurm" / "shared").glob("[0-9]*_submission.sh")
    assert planned.partition("\n")[2].startswith(script.read_text())


def test_a_run_over_two_nodes_is_saved_requeued_and_finished_by_both_of_its_processes(
    cluster: dict[str, str], make_sweep: Callable[[str, int, int], config.Sweep], tmp_path: Path
) -> None:
    sweep = make_sweep("together", 1, 800)
    assert stages.run(sweep, tmp_path / "alone", workers=1)
    two = ["--cluster", "nodes=2", "--set", "execution.mesh.data=2", "--workers", "1"]
    started = sweeping("together", tmp_path, cluster, *SETTINGS, *two)
    results = store.Store(tmp_path / "results")
    (expected,) = store.Store(tmp_path / "alone").runs("together").to_dict("records")
    run = expected["run_id"]
    wait_until(lambda: (results.folder(run) / "metrics" / "000001.jsonl").is_file(), "together")
    (job,) = [job for job, (state, _) in queue(cluster).items() if state == "RUNNING"]
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
    said = started.communicate()[0]
    assert started.returncode == 0, (said, logs("together"))
    (row,) = results.runs("together").to_dict("records")
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # another order of sums, over 800 steps
    assert row["device"] == "2 × cpu"
    assert steps(results, run) == list(range(1, 801))
    for index, node in enumerate(slurm_cluster.NODES):
        log = logs("together")[f"{job}_{index}_log.out"]
        assert f"process {index} of 2 on {node}, requeued 0 times" in log
        assert f"process {index} of 2 on {node}, requeued 1 times" in log
        assert log.count(f"process {index} of 2 that train each run together") == 2


def test_runs_that_are_cancelled_stopped_warned_and_preempted_end_as_if_undisturbed(
    cluster: dict[str, str], make_sweep: Callable[[str, int, int], config.Sweep], tmp_path: Path
) -> None:
    sweep = make_sweep("disturbed", 2, 3000)
    assert stages.run(sweep, tmp_path / "undisturbed", workers=2, launcher=local.Local(pin=False))
    expected = store.Store(tmp_path / "undisturbed").runs("disturbed").set_index("run_id")["loss"].to_dict()
    results = store.Store(tmp_path / "results")

    def trains(attempt: int) -> bool:
        return all((results.folder(run) / "metrics" / f"{attempt:06}.jsonl").is_file() for run in expected)

    def tell(*command: str) -> None:
        subprocess.run(command, env=cluster, check=True)

    def jobs() -> dict[str, tuple[str, str]]:
        """Those of the launch that was started last."""
        known = queue(cluster)
        last = max(int(job.partition("_")[0]) for job in known)
        return {job: known[job] for job in sorted(known) if job.startswith(f"{last}_")}

    # One job is cancelled by hand; the launcher is interrupted, and asks the other to end.
    first = sweeping("disturbed", tmp_path, cluster, *SETTINGS, "--workers", "2")
    wait_until(lambda: trains(attempt=1), "disturbed")
    tell("scancel", next(iter(jobs())))
    wait_until(lambda: "planned" in results.statuses("disturbed").values(), "disturbed")
    first.send_signal(signal.SIGINT)
    said = first.communicate()[0]
    assert "stopped; start the same command again to go on" in said
    assert first.returncode == 1
    assert sorted(state for state, _ in jobs().values()) == ["CANCELLED", "FAILED"]  # the latter by its exit code, 130
    assert [results.status(run)["reason"].partition(" at step")[0] for run in expected] == ["asked to stop"] * 2

    # Started again: the time of one job is nearly up, the other's node is wanted for another job.
    second = sweeping("disturbed", tmp_path, cluster, *SETTINGS, "--workers", "2")
    wait_until(lambda: trains(attempt=2), "disturbed")
    warned, preempted = jobs()
    tell("scancel", "--signal=USR2", warned)
    node = jobs()[preempted][1]
    tell("sbatch", "--partition=high", f"--nodelist={node}", f"--output={tmp_path}/high", "--wrap=echo made room")
    said = second.communicate()[0]
    assert second.returncode == 0, (said, logs("disturbed"))
    assert (tmp_path / "high").read_text() == "made room\n"
    frame = results.runs("disturbed").set_index("run_id")
    assert frame["loss"].to_dict() == expected
    for run in expected:
        assert results.status(run)["attempt"] == 3
        assert steps(results, run) == list(range(1, 3001))
    for job in (warned, preempted):
        log = logs("disturbed")[f"{job}_0_log.out"]
        assert "requeued 0 times" in log
        assert "requeued 1 times" in log
