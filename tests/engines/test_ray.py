"""Sweeps on a real Ray cluster of three nodes, each with one core and a cache of its own, as three machines have."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaling import config, store
from scaling.config import grids
from scaling.launch import environments, launcher, slots
from scaling.launch.launchers import ray as rays
from scaling.store import record
from tests import command, waiting
from tests.sweep import trainers

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.engines

Make = Callable[..., config.Run]
PATH = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
RUNS = 7
SHORT = 64 * 40  # tokens of one of them
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


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """What Ray's processes find: this code, and that neither tokens in the home folder nor statistics are wanted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it depends on what was started before
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def cluster(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
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
    """Runs of a few seconds each, which differ in their seed, and a short one; a checkpoint every 0.2 s."""
    return config.Sweep(
        name="seeds",
        base=tiny(tokens=64 * 1000),
        grid=grids.Chain(
            parts=(
                grids.Axis(field="seed", values=tuple(range(RUNS - 1))),
                grids.Axis(field="tokens", values=(SHORT,)),
            )
        ),
        execution=config.Execution(checkpoint_seconds=0.2),
    )


def start(folder: Path, sweep: config.Sweep, address: str, *settings: str) -> subprocess.Popen[str]:
    """`scaling sweep` on a Ray cluster, with its results in a folder."""
    (folder / "seeds.json").write_text(sweep.to_json())
    cluster = [word for setting in (f"address={address}", *settings) for word in ("--cluster", setting)]
    return subprocess.Popen(
        command.line("sweep", "seeds.json", "--launcher", "ray", *cluster),
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def attempts(results: store.Store) -> dict[str, int]:
    """Attempts at each run: its segments of metrics."""
    return {run: len(list((Path(results.path) / "runs" / run / "metrics").iterdir())) for run in results.run_ids()}


@pytest.fixture(scope="module")
def undisturbed(cluster: Nodes, sweep: config.Sweep, tmp_path_factory: pytest.TempPathFactory) -> store.Store:
    """The sweep when nothing happens."""
    cluster.fill()
    folder = tmp_path_factory.mktemp("undisturbed")
    training = start(folder, sweep, cluster.address)
    print(training.communicate()[0])
    assert training.returncode == 0
    return store.Store(folder / "results")


def test_a_sweep_is_trained_on_all_nodes(cluster: Nodes, undisturbed: store.Store) -> None:
    frame = undisturbed.runs("seeds")
    assert frame["status"].tolist() == ["finished"] * RUNS
    assert frame["loss"].nunique() == RUNS
    assert set(attempts(undisturbed).values()) == {1}
    used = [n for n in ("head", "node-1", "node-2") if list((cluster.folder / n / "compiled").glob("*/*"))]
    print(f"nodes that trained: {', '.join(used)}")
    assert len(used) >= 2  # where machines are slow to start, the others may have trained all before the last begins


def test_the_run_of_a_node_that_dies_goes_on_elsewhere(
    three: Nodes, undisturbed: store.Store, sweep: config.Sweep, tmp_path: Path
) -> None:
    results = store.Store(tmp_path / "results")
    training = start(tmp_path, sweep, three.address)
    killed = None
    while killed is None and training.poll() is None:
        time.sleep(0.05)
        for run_id in results.run_ids():
            status = results.status(run_id)
            pid = int(status["owner"].partition(":")[2] or 0)
            if status["status"] == "running" and results.has_checkpoint(run_id) and three.holds(pid):
                os.kill(pid, signal.SIGSTOP)  # so that it cannot end before its node does
                if results.status(run_id)["status"] == "running" and results.result(run_id) is None:
                    three.kill(pid)
                    killed = run_id
                    break
                os.kill(pid, signal.SIGCONT)
    shown = training.communicate()[0]
    print(shown)
    assert training.returncode == 0, shown
    assert "was lost with its node" in shown
    assert attempts(results) == {run_id: 1 + (run_id == killed) for run_id in results.run_ids()}
    frame, expected = results.runs("seeds"), undisturbed.runs("seeds")
    assert frame["status"].tolist() == ["finished"] * RUNS
    assert frame[["run_id", "loss"]].to_dict("list") == expected[["run_id", "loss"]].to_dict("list")
    assert min(segment_steps(results, str(killed), 2)) > 1, "the run began at its start, not at its checkpoint"


def test_a_run_spans_nodes(three: Nodes, undisturbed: store.Store, sweep: config.Sweep, tmp_path: Path) -> None:
    """Trained by a process on each of two nodes, with two of JAX's devices each."""
    wide = sweep.edit({"grid": grids.Axis(field="tokens", values=(SHORT,)), "execution.mesh.data": 4})
    training = start(tmp_path, wide, three.address, "hosts=2", "cpus=1")
    print(training.communicate()[0])
    assert training.returncode == 0
    results = store.Store(tmp_path / "results")
    (run_id,) = results.run_ids()
    assert results.status(run_id)["device"] == "4 × cpu"
    assert attempts(results) == {run_id: 1}
    assert len(list(results.logs("seeds").iterdir())) == 2
    alone, together = undisturbed.result(run_id), results.result(run_id)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # the sums are of another order


def segment_steps(results: store.Store, run_id: str, attempt: int) -> list[int]:
    text = (Path(results.path) / "runs" / run_id / "metrics" / f"{attempt:06d}.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


# Workers that only pretend to train

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from scaling import store
results, sweep, place = store.Store(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(143))
FIRST
for member in results.sweep(sweep)["members"]:
    lease = results.claim(member["run_id"], f"worker {os.getpid()}", {"device": "cpu"})
    if lease is not None:
        BODY
        lease.publish({"run_id": lease.run_id, "status": "finished", "reason": None})
"""
SEEN = "(place / str(os.getpid())).write_text(json.dumps({**os.environ, 'parent': os.getppid()}))\n"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes workers of a few lines of Python, and gives the folder in which they leave traces."""
    place = tmp_path / "traces"
    place.mkdir()

    def use(body: str = "pass", first: str = SEEN) -> Path:
        program = WORKER.replace("FIRST", first).replace("BODY", body.replace("\n", "\n        "))
        monkeypatch.setattr(
            launcher.Job,
            "worker_command",
            lambda job, *_, **__: ["python of the nodes", "-c", program, job.store_path, job.sweep_name, str(place)],
        )
        return place

    return use


def seen(place: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in place.iterdir()]


@pytest.fixture
def results(tiny: Make, tmp_path: Path) -> store.Store:
    """A store with a sweep of three runs that nobody has trained."""
    planned = store.Store(tmp_path / "store")
    records = [record.config_record(tiny(seed=number), trainers.Identity()) for number in range(3)]
    for kept in records:
        planned.add_run(kept["run_id"], kept)
    sweep = config.Sweep(name="small", base=tiny())
    planned.add_sweep(
        "small", sweep.model_dump(mode="json"), [{"run_id": kept["run_id"], "labels": {}} for kept in records]
    )
    return planned


def launch(results: store.Store, *settings: str, workers: int | None = None, **mesh: int) -> Any:
    runs = len(results.statuses("small"))
    job = launcher.Job(str(results.path), "small", config.Mesh(**mesh), runs, workers)
    return launcher.load("ray", settings).start(job)


def run(workers: Any, tick: Callable[[list[str]], None] = lambda told: None) -> list[str]:
    """Wait for the workers; gives the messages, but for those of workers that wait for room on a busy machine."""
    told: list[str] = []

    def look() -> None:
        told.extend(workers.take_messages())
        tick(told)

    workers.wait(look, poll_seconds=0.05)
    return [line for line in told + workers.take_messages() if not line.startswith("waiting for room")]


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """The cluster that "local" starts in this process has two cores and takes two GPUs for its own.

    For the tests at the end: while it is there, this process is connected to no other.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rays.devices, "cores", lambda: [0, 1])
        patch.setattr(environments, "find_accelerators", lambda: [{"CUDA_VISIBLE_DEVICES": "0"}] * 2)
        yield
        ray.shutdown()


@pytest.fixture
def connected(three: Nodes) -> Iterator[Nodes]:
    """This process is connected to the cluster when it starts workers there."""
    yield three
    ray.shutdown()


def test_each_process_of_a_worker_on_several_nodes_knows_the_others(
    connected: Nodes, results: store.Store, pretend: Any
) -> None:
    place = pretend(first=SEEN + "if os.environ['JAX_PROCESS_ID'] != '0': sys.exit(0)")
    workers = launch(results, f"address={connected.address}", "hosts=2", "cpus=1", data=4)
    assert len(workers.slots) == 1  # three nodes hold one such worker
    assert run(workers) == []
    assert list(results.statuses("small").values()) == ["finished"] * 3
    first, second = sorted(seen(place), key=lambda each: each["JAX_PROCESS_ID"])
    assert first["SCALING_CACHE"] != second["SCALING_CACHE"]  # they were on different nodes
    for number, each in enumerate((first, second)):
        assert each["JAX_PROCESS_ID"] == str(number)
        assert each["JAX_NUM_PROCESSES"] == "2"
        assert each["JAX_COORDINATOR_ADDRESS"] == first["JAX_COORDINATOR_ADDRESS"]
        assert each["JAX_PLATFORMS"] == "cpu"
        assert each["NPROC"] == "1"
        assert each["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=2")
    host, port = first["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == ray.util.get_node_ip_address()
    assert int(port) > 1023
    assert {each["state"] for each in ray.util.placement_group_table().values()} == {"REMOVED"}


def test_a_worker_begins_anew_when_one_of_its_processes_fails(
    connected: Nodes, results: store.Store, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one, which may wait for it for ever, is given some time to end."""
    from scaling.launch.launchers.ray import actors

    monkeypatch.setattr(actors, "LEFT_SECONDS", 1.0)
    place = pretend(
        first=SEEN + "own = place / os.environ['JAX_PROCESS_ID']\n"
        "if not own.exists():\n"
        "    own.write_text('{}')\n"
        "    sys.exit(3) if own.name == '1' else time.sleep(1000)\n"
        "if own.name == '1': sys.exit(0)"
    )
    told = run(launch(results, f"address={connected.address}", "hosts=2", "cpus=1", data=2))
    assert ["ended with exit code 3; restarted (1 of 3)" in line for line in told] == [True]
    assert list(results.statuses("small").values()) == ["finished"] * 3
    started = [int(path.name) for path in place.iterdir() if path.name not in ("0", "1")]
    assert len(started) == 4
    waiting.until(lambda: not any(psutil.pid_exists(pid) for pid in started))


@pytest.mark.usefixtures("here")
def test_each_worker_has_its_gpu_and_others_wait_for_one(
    results: store.Store, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaling.launch.launchers.ray import actors

    monkeypatch.setattr(actors, "WAIT_SECONDS", float("inf"))
    place = pretend("while not (place / 'go').exists(): time.sleep(0.02)")
    messages: list[str] = []

    def tick(told: list[str]) -> None:
        if len(list(place.iterdir())) >= 2:  # both GPUs are taken
            monkeypatch.setattr(actors, "WAIT_SECONDS", 0.0)
        if told:
            messages.extend(told)
            (place / "go").write_text("{}")

    assert run(launch(results, "address=local", workers=3), tick) == []
    assert list(results.statuses("small").values()) == ["finished"] * 3
    assert messages[0].endswith("(each takes CPU 1, GPU 1; free is CPU 0, GPU 0 in all)")
    (place / "go").unlink()
    found = seen(place)
    assert {each["CUDA_VISIBLE_DEVICES"] for each in found} == {"0", "1"}
    for each in found:
        assert int(each["SCALING_LAUNCHER_PID"]) == each["parent"]
        assert each["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert each["SCALING_WORKERS"] == "3"
        assert "NPROC" not in each


@pytest.mark.usefixtures("here")
def test_what_crashes_is_given_up_and_what_its_node_stops_goes_on(
    results: store.Store, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "RESTARTS", 1)
    place = pretend(first=SEEN + "sys.exit('planted')")
    told = run(launch(results, "address=local", workers=1))
    assert len(list(place.iterdir())) == 2
    assert "ended with exit code 1; restarted (1 of 1)" in told[0]
    assert told[-1].startswith("worker 0 ended with exit code 1 and is given up")
    assert told[-1].endswith("planted")

    pretend(first="print('refused: planted'); sys.exit(2)")
    assert [line.splitlines()[1] for line in run(launch(results, "address=local", workers=1))] == ["refused: planted"]

    monkeypatch.setattr(slots, "PAUSE_SECONDS", 0.1)  # its node is about to be taken away, or was
    once = results.run_ids()[0]
    pretend(f"if lease.attempt == 1 and lease.run_id == {once!r}: lease.release('preempted'); sys.exit(143)")
    told = run(launch(results, "address=local", workers=1))
    assert list(results.statuses("small").values()) == ["finished"] * 3
    assert ["was stopped by SIGTERM from outside; another goes on" in line for line in told] == [True]


@pytest.mark.usefixtures("here")
def test_workers_that_are_asked_to_stop_save_their_runs(results: store.Store, pretend: Any) -> None:
    pretend("while not stopped: time.sleep(0.01)\nlease.release('asked to stop')\nsys.exit(143)")
    workers = launch(results, "address=local", "gpus=0", workers=3)  # two run, one waits

    def interrupt() -> None:
        while list(results.statuses("small").values()).count("running") < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run(workers)[-1] == "stopped; start the same command again to go on"
    assert [results.status(run_id)["reason"] for run_id in results.run_ids()].count("asked to stop") == 2
    assert set(results.statuses("small").values()) == {"planned"}
