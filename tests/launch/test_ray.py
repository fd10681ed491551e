"""The Ray launcher without a cluster: what it would ask of one, how much it finds that one holds, what it refuses."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaling import config
from scaling.launch import launcher
from scaling.launch.launchers import ray as rays

Found = Callable[..., None]

CPUS = {"CPU": 4.0, "memory": 10e9, "object_store_memory": 1e9, "node:10.0.0.2": 1.0}
H100 = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "memory": 500e9}
A100 = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "memory": 500e9}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """Puts nodes with these resources in the place of a cluster."""

    def use(*nodes: dict[str, float]) -> None:
        monkeypatch.setattr(rays, "nodes", lambda address: list(nodes))

    return use


def job(mesh: config.Mesh | None = None, runs: int = 9, workers: int | None = None, **more: Any) -> launcher.Job:
    return launcher.Job("/shared/results", "small", mesh or config.Mesh(), runs, workers, **more)


def load(*settings: str) -> launcher.Launcher:
    return launcher.load("ray", settings)


def test_a_dry_run_shows_the_actors_of_workers_on_cores(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    found(CPUS, CPUS, {"CPU": 1.0, "memory": 1e9})
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    described = load("cpus=2", "env=WANDB_API_KEY", "address=10.0.0.1:6379").describe(
        job(config.Mesh(data=2), runs=3, config_path=Path("/home/me/mine.py"))
    )
    settings = "SCALING_WORKERS=3 JAX_PLATFORMS=cpu NPROC=2 SCALING_MEMORY_BYTES=4200000000 WANDB_API_KEY=(as here)"
    command = "python -m scaling.cli worker /shared/results small --config /home/me/mine.py"
    assert described.splitlines() == [
        "# Ray cluster 10.0.0.1:6379: 3 nodes: 2 × CPU 4; CPU 1",
        "# every process has its node's environment, what workers on one machine have beside it, and what is shown",
        "worker 0: an actor with CPU 2",
        f"  {settings} {command}",
        "worker 1: an actor with CPU 2",
        f"  {settings} {command}",
        "worker 2: an actor with CPU 2",
        f"  {settings} {command}",
    ]


def test_a_dry_run_shows_the_group_of_a_worker_on_several_nodes(found: Found) -> None:
    found({"CPU": 2.0}, H100, A100, H100)
    described = load("gpu=H100").describe(job(config.Mesh(fsdp=16)))
    shared = "SCALING_WORKERS=1 JAX_COORDINATOR_ADDRESS=<its first host>:<a free port> JAX_NUM_PROCESSES=2"
    command = "python -m scaling.cli worker /shared/results small"
    assert described.splitlines() == [
        "# Ray cluster auto: 4 nodes: CPU 2; 2 × CPU 16, GPU 8, H100; CPU 16, GPU 8, A100",
        "# every process has its node's environment, what workers on one machine have beside it, and what is shown",
        "worker 0: a placement group, STRICT_SPREAD, of 2 bundles with an actor with CPU 8, GPU 8, "
        "accelerator_type:H100 0.001",
        f"  {shared} JAX_PROCESS_ID=0 {command}",
        f"  {shared} JAX_PROCESS_ID=1 {command}",
    ]


def workers(launched: launcher.Launcher, of: launcher.Job) -> int:
    return launched.describe(of).count("\nworker ")


@pytest.mark.parametrize(
    ("settings", "mesh", "runs", "count"),
    [
        ([], {}, 99, 24),  # a GPU each
        ([], {}, 5, 5),
        (["gpus=0"], {}, 99, 52),  # a core each, also of machines with GPUs
        (["cpus=4"], {}, 99, 12),  # 4 on each node with GPUs; the one without is no place
        ([], {"data": 4}, 99, 6),
        ([], {"data": 2, "fsdp": 8}, 99, 1),  # two of three nodes; a second worker finds only one
        ([], {"fsdp": 12}, 99, 1),  # 6 on each of two nodes, likewise
        (["hosts=2"], {"data": 2}, 99, 12),
        (["hosts=3"], {"data": 3}, 99, 8),
        (["gpus=8"], {}, 99, 3),
        (["gpu=A100"], {}, 99, 8),
    ],
)
def test_workers_are_as_many_as_the_nodes_hold(
    found: Found, settings: Sequence[str], mesh: dict[str, int], runs: int, count: int
) -> None:
    found(CPUS, H100, H100, A100)
    assert workers(load(*settings), job(config.Mesh(**mesh), runs)) == count


def test_who_says_how_many_workers_may_wait_for_nodes_to_come(found: Found) -> None:
    found()
    assert workers(load("gpus=8"), job(workers=3)) == 3
    assert workers(load("gpus=8"), job(workers=30, runs=2)) == 2
    assert load().describe(job(runs=0)) == "nothing: every run has a result"


def test_plans_are_made_for_what_workers_get(found: Found) -> None:
    found(CPUS, H100, A100)
    assert load().device(job()) == ("GPU", None)
    assert load("gpu=A100").device(job()) == ("A100", 0.75 * 80e9)
    found(CPUS, H100)
    assert load().device(job()) == ("H100", 0.75 * 80e9)
    found(CPUS, {**CPUS, "memory": 8e9}, {"CPU": 1.0, "memory": 1e9})
    kind, limit = load("cpus=2").device(job(config.Mesh(data=2)))
    assert (kind, limit) == ("cpu", pytest.approx((8e9 * 2 / 4 - 0.8e9) / 2))


REFUSALS = [
    (
        [],
        {"fsdp": 16},
        "takes CPU 16, GPU 16 on one node, and the Ray cluster has 1 node: CPU 16, GPU 8, H100; ask for",
    ),
    (["cpus=32"], {}, "takes CPU 32, GPU 1 on one node"),
    (["hosts=2"], {"data": 2}, "takes CPU 1, GPU 1 on each of 2 nodes"),
    (["hosts=2"], {"data": 3}, r"\(data 3 × fsdp 1 × tensor 1\) takes another number of devices than .* 2 × 2"),
    (["gpus=3"], {"tensor": 2}, r"\(data any × fsdp 1 × tensor 2\) takes another number of devices than .* 1 × 3"),
]


@pytest.mark.parametrize(("settings", "mesh", "message"), REFUSALS)
def test_what_no_node_holds_and_what_contradicts_the_mesh_is_refused(
    found: Found, settings: Sequence[str], mesh: dict[str, int], message: str
) -> None:
    found(H100)
    with pytest.raises(ValueError, match=message):
        load(*settings).describe(job(config.Mesh(**mesh)))


def test_a_worker_on_cores_has_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives no cores by number, so that XLA must be told: equal threads, equal results."""
    program = (
        "import os, pathlib, jax\n"
        "from scaling import devices\n"
        "jax.numpy.dot(jax.numpy.ones((512, 512)), jax.numpy.ones((512, 512))).block_until_ready()\n"
        "names = [path.read_text().strip() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "print(names.count('tf_XLAEigen'), len(devices.cores()) <= int(os.environ['NPROC']))"
    )
    for threads in (1, 3):
        monkeypatch.setenv("NPROC", str(threads))
        shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert shown.stdout.split() == [str(threads), "True"]


def test_settings_that_contradict_each_other_or_the_environment_are_refused() -> None:
    with pytest.raises(ValueError, match="gpus=0 asks for none"):
        load("gpu=H100", "gpus=0")
    with pytest.raises(ValueError, match="env: NOT_SET is not set here"):
        load("env=HOME,NOT_SET")
    with pytest.raises(ValueError, match=r"no field 'node'.*address, hosts, gpus, cpus, gpu, env"):
        load("node=2")


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'scaling\[ray\]'"):
        load().describe(job())


def test_without_a_cluster_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor by waiting for one: it is said at once how to start one."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for settings in (["address=127.0.0.1:1"], []):
        with pytest.raises(ValueError, match=r"no Ray cluster answers at .*ray start --head"):
            load(*settings).start(job())
    assert not ray.is_initialized()


def test_ray_is_imported_only_when_a_cluster_is_asked() -> None:
    program = "import sys; from scaling.launch import launcher; launcher.load('ray'); print('ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
