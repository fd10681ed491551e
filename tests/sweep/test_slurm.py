"""The launcher for Slurm without Slurm: what it would submit, and what it refuses."""

import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, devices, schema
from scaling.launch import launcher
from scaling.launch.launchers import slurm


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., launcher.Job]:
    def make(workers: int | None = 3, runs: int = 9, **mesh: int) -> launcher.Job:
        return launcher.Job(str(tmp_path / "store"), "small", config.Mesh(**mesh), runs, workers)

    return make


SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-2%3
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=8
#SBATCH --error=FOLDER/%A_%a_0_log.err
#SBATCH --gpus-per-node=4
#SBATCH --job-name=scaling-small
#SBATCH --mem=128000M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
module load cuda
source ~/venv/bin/activate

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/%A_%a_%t_log.out --error FOLDER/%A_%a_%t_log.err --kill-on-bad-exit=0 --wait=0 \
--cpus-per-task=8 PYTHON -u -m submitit.core._submit FOLDER

# what each process starts, 4 of which train each run together:
# SCALING_WORKERS=3 PYTHON -m scaling.cli worker STORE small"""


def test_a_dry_run_says_what_would_be_submitted(
    job: Callable[..., launcher.Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no cluster here
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    settings = [
        "minutes=1440", "partition=gpu", "account=lab", "qos=long", "constraint=a100", "nodes=2", "tasks_per_node=2",
        "gpus_per_node=4", "cpus_per_task=8", "memory_gb=128", "gpu=A100", "save_seconds=300",
        'setup=["module load cuda", "source ~/venv/bin/activate"]',
    ]  # fmt: skip
    described = launcher.load("slurm", settings).describe(job(data=4, fsdp=2))
    words = {"FOLDER": str(tmp_path / "cache" / "slurm" / "small"), "PYTHON": sys.executable}
    expected = SCRIPT.replace("STORE", str(tmp_path / "store"))
    for word, meaning in words.items():
        expected = expected.replace(word, meaning)
    assert described == expected
    assert list(tmp_path.iterdir()) == []


def test_a_single_worker_is_no_array_and_a_finished_sweep_no_job(job: Callable[..., launcher.Job]) -> None:
    lone = slurm.Slurm(minutes=10)
    assert "--array" not in lone.describe(job(workers=1))
    assert "--array=0-8%9" in lone.describe(job(workers=None))
    assert "--array=0-31%32" in lone.describe(job(workers=None, runs=500))
    assert lone.describe(job(runs=0)) == "nothing: every run has a result"


def test_processes_on_the_cpu_have_the_devices_and_the_memory_that_are_theirs(
    job: Callable[..., launcher.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    two = slurm.Slurm(minutes=10, nodes=2, tasks_per_node=2, memory_gb=9.6)
    described = two.describe(job(data=8))
    assert "SCALING_MEMORY_BYTES=4000000000 " in described
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=2 " in described
    assert two.device(job(data=8)) == ("cpu", 2e9)
    assert two.device(job()) == ("cpu", 4e9)
    assert slurm.Slurm(minutes=10).device(job()) == ("cpu", None)


def test_the_kind_of_gpu_says_how_much_memory_there_is(job: Callable[..., launcher.Job]) -> None:
    kind, limit = slurm.Slurm(minutes=10, gpus_per_node=8, gpu="H100").device(job(data=8))
    assert (kind, limit) == ("H100", devices.memory_bytes("H100"))
    assert slurm.Slurm(minutes=10, gpus_per_node=8).device(job()) == ("GPU", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "minutes: Field required"),
        (["minutes=10", "patition=x"], "did you mean 'partition'"),
        (["minutes=10", "tasks_per_node=3", "gpus_per_node=4"], "gpus_per_node 4 do not divide among tasks_per_node 3"),
        (["minutes=10", "gpu=H100"], "gpu 'H100' names a device and no job has one; set gpus_per_node"),
        (["minutes=2", "save_seconds=120"], "save_seconds 120 leave nothing of 2 minutes"),
    ],
)
def test_settings_that_contradict_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        launcher.load("slurm", settings)
    assert message in schema.describe(refused.value)


@pytest.mark.parametrize(
    ("settings", "mesh", "message"),
    [
        ({"nodes": 2, "gpus_per_node": 4}, {"data": 4}, r"data 4 × fsdp 1 × tensor 1\) takes another.* the 8 of a job"),
        ({"gpus_per_node": 4}, {"fsdp": 3}, r"data any × fsdp 3 × tensor 1\) takes another number.* the 4 of a job"),
        ({"nodes": 2}, {"data": 3}, "the 3 devices of execution.mesh do not divide among 2 processes"),
        ({"nodes": 3}, {"tensor": 2}, "the 2 devices of execution.mesh do not divide among 3 processes"),
    ],
)  # fmt: skip
def test_a_mesh_that_is_not_what_a_job_has_is_refused(
    job: Callable[..., launcher.Job], settings: dict[str, Any], mesh: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        slurm.Slurm(minutes=10, **settings).device(job(**mesh))


def test_code_for_nodes_lies_neither_in_a_store_nor_where_others_may_write(
    job: Callable[..., launcher.Job], tmp_path: Path
) -> None:
    inside = slurm.Slurm(minutes=10, folder=tmp_path / "store" / "slurm")
    with pytest.raises(ValueError, match="lies in the store"):
        inside.describe(job())
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with pytest.raises(ValueError, match="lies in the store"):
        slurm.Slurm(minutes=10, folder=tmp_path / "link").describe(job())
    slurm._make_private(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "new").chmod(0o770)
    with pytest.raises(ValueError, match="others may write to folder"):
        slurm._make_private(tmp_path / "new")


def test_without_submitit_or_slurm_it_says_what_is_missing(
    job: Callable[..., launcher.Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here"):
        slurm.Slurm(minutes=10).start(job())
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'scaling\[slurm\]'"):
        slurm.Slurm(minutes=10).describe(job())


def test_the_page_names_every_setting_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    _, rows, *_ = re.split(r"\|---.*\|\n", page)
    named = [
        name for row in rows.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(named) == sorted(name for name in slurm.Slurm.model_fields if name != "kind")
    assert set(re.findall(r"--cluster '?(\w+)=", page)) < set(named)
