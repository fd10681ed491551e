"""Sweeps on a real Ray cluster of three nodes, each with one core and a cache of its own, as three machines have."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaling import config
from scaling.launch import launcher, slots
from scaling.launch import ray as rays
from scaling.sweep import grid, store

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.engines

Make = Callable[..., config.Run]
ROOT = Path(__file__).parents[2]
RUNS = 7
# A node is taken for dead when it has not answered for 2 s; by default for some 15.
SYSTEM = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 0}
OBJECTS = 80 * 2**20  # bytes; the least that Ray takes is 75 MiB


class Nodes:
    """A head and two more nodes, of which one may be killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={**self._settings("head"), "include_dashboard": False, "_system_config": SYSTEM},
        )
        self.others: list[Any] = []
        self.started = 0

    def _settings(self, name: str) -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": OBJECTS, "env_vars": {"SCALING_CACHE": str(self.folder / name)}}

    @property
    def address(self) -> str:
        return self.cluster.address

    def fill(self) -> None:
        """Make them three."""
        while len(self.others) < 2:
            self.started += 1
            self.others.append(self.cluster.add_node(**self._settings(f"node-{self.started}")))

    def kill(self, pid: int) -> None:
        """End the node on which a process runs as a machine's failure would: all its processes at once, unasked."""
        (node,) = [node for node in self.others if pid in [p.pid for p in self._processes(node)]]
        for process in self._processes(node):
            process.kill()
        self.others.remove(node)

    def holds(self, pid: int) -> bool:
        """Whether a process runs on a node that can be killed: none but the head, which the driver is connected to."""
        return any(pid in [process.pid for process in self._processes(node)] for node in self.others)

    def _processes(self, node: Any) -> list[psutil.Process]:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        nodes = Nodes(tmp_path_factory.mktemp("caches"))
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def three(cluster: Nodes) -> Nodes:
    """The cluster with three nodes, whatever happened to it before."""
    cluster.fill()
    return cluster


@pytest.fixture(scope="module")
def sweep(tiny: Make) -> config.Sweep:
    """Runs of a few seconds each, which differ in their seed; a checkpoint every half second."""
    return config.Sweep(
        name="seeds",
        base=tiny(tokens=64 * 3000, schedule={"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.1}}),
        grid=grid.Axis(field="seed", values=tuple(range(RUNS))),
        execution=config.Execution(checkpoint_seconds=0.5),
    )


def start(file: Path, address: str, **more: str) -> subprocess.Popen[str]:
    """`scaling sweep` on a Ray cluster, in a folder where the config is."""
    command = [sys.executable, "-m", "scaling.cli", "sweep", file.name, "--launcher", "ray"]
    return subprocess.Popen(
        [*command, "--cluster", f"address={address}"],
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: Nodes, sweep: config.Sweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The sweep when nothing happens."""
    cluster.fill()
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "seeds.json").write_text(sweep.to_json())
    shown, _ = start(folder / "seeds.json", cluster.address).communicate()
    return folder, shown


def test_a_sweep_is_trained_on_all_nodes(cluster: Nodes, undisturbed: tuple[Path, str]) -> None:
    folder, shown = undisturbed
    print(shown)
    frame = store.Store(folder / "results").runs("seeds")
    assert frame["status"].tolist() == ["finished"] * RUNS
    for name in ("head", "node-1", "node-2"):
        assert list((cluster.folder / name / "compiled").glob("*/*")), f"no worker ran on {name}"


def test_when_a_node_dies_its_run_goes_on_elsewhere(
    three: Nodes, undisturbed: tuple[Path, str], sweep: config.Sweep, tmp_path: Path
) -> None:
    (tmp_path / "seeds.json").write_text(sweep.to_json())
    results = store.Store(tmp_path / "results")
    training = start(tmp_path / "seeds.json", three.address)
    killed = None
    while killed is None and training.poll() is None:
        time.sleep(0.05)
        for run_id in results.run_ids():
            status = results.status(run_id)
            pid = int(status["owner"].partition(":")[2] or 0)
            if status["status"] == "running" and results.has_checkpoint(run_id) and three.holds(pid):
                three.kill(pid)
                killed = run_id
                break
    shown, _ = training.communicate()
    print(shown)
    frame, expected = results.runs("seeds"), store.Store(undisturbed[0] / "results").runs("seeds")
    assert training.returncode == 0, shown
    assert frame["status"].tolist() == ["finished"] * RUNS
    assert frame["loss"].tolist() == expected["loss"].tolist()
