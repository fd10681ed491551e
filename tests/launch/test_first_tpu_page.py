"""docs/first-tpu-pod-sweep.md: its commands of `scaling`, in order, against a bucket that is a folder."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from fsspec.implementations import dirfs, local

from scaling import store
from scaling.worker import main
from tests import command, conftest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-tpu-pod-sweep.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]
TINY = f"""
from scaling import config
from scaling.config import grids

def sweep():
    base = config.Run.model_validate({{**{conftest.TINY!r}, "batch_size": 16}})
    sizes = grids.Ladder(sizes=tuple(grids.Size(width=w, depth=1, heads=1) for w in (8, 12, 16, 24)))
    return config.Sweep(name="first-tpu", base=base, grid=grids.IsoFlop(budgets=(2e8, 4e8, 8e8), sizes=sizes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the page's variables set, and gs:// in a folder of this machine."""
    bucket = dirfs.DirFileSystem(path=str(tmp_path / "gs"), fs=local.LocalFileSystem(auto_mkdir=True))
    filesystem = fsspec.filesystem
    monkeypatch.setattr(
        fsspec, "filesystem", lambda name, **options: bucket if name == "gs" else filesystem(name, **options)
    )
    for line in COMMANDS:
        if line.startswith("export "):
            for word in shlex.split(line)[1:]:
                name, _, value = word.partition("=")
                monkeypatch.setenv(name, value)
    folder = tmp_path / "here"
    (folder / "configs").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(here: Path) -> Callable[[str], tuple[int, str]]:
    """Runs a command of `scaling` in this process; its code, and what it printed."""

    def call(line: str) -> tuple[int, str]:
        ended = command.here(*shlex.split(os.path.expandvars(line))[1:], cwd=here)
        return ended.code, ended.out + ended.err

    return call


def commands(*words: str) -> list[str]:
    """Lines of the page that begin with these words, in order."""
    return [line for line in COMMANDS if shlex.split(line)[: len(words)] == list(words)]


def test_the_page_has_all_that_is_run_here() -> None:
    verbs = [shlex.split(line)[1] for line in commands("scaling")]
    assert verbs == ["prepare", "plan", "sweep", "sweep", "status", "report", "fit", "predict", "sweep"]


def test_its_config_is_planned_and_its_manifests_and_scripts_are_written(here: Path, run: Any) -> None:
    (here / "configs" / "first_tpu.py").write_text((ROOT / "configs" / "first_tpu.py").read_text())
    (here / "text").mkdir()
    source = b"".join(path.read_bytes() for path in sorted((ROOT / "scaling").rglob("*.py")))
    for number in range(60):
        (here / "text" / f"{number}.py").write_bytes(source[number * 1000 :][:300_000])
    (prepare,), (plan,) = commands("scaling", "prepare"), commands("scaling", "plan")
    assert run(prepare)[0] == 0
    code, printed = run(plan)
    assert code == 0
    assert "sweep, 15 runs" in printed
    assert "of one worker on TPU v5 lite" in printed
    dry, on_gke, on_vms = commands("scaling", "sweep")
    assert shlex.split(dry)[:-1] == shlex.split(on_gke)
    code, described = run(dry)
    assert code == 0
    assert not store.Store(os.environ["STORE"]).exists()
    code, printed = run(on_gke)
    assert code == 1
    manifest = here / "launch" / "first-tpu" / "jobset.yaml"
    (apply,) = [line for line in commands("kubectl", "apply") if "launch/" in line]
    assert (here / shlex.split(apply)[-1]).samefile(manifest)
    assert apply in printed
    assert manifest.read_text() in described
    sent, jobset = yaml.safe_load_all(manifest.read_text())
    assert sent["data"]["first_tpu.py"] == (here / "configs" / "first_tpu.py").read_text()
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpu-queue"
    assert run(on_vms)[0] == 1
    (script,) = commands("bash")
    subprocess.run(["bash", "-n", shlex.split(script)[-1]], check=True)
    assert len(store.Store(os.environ["STORE"]).sweep("first-tpu")["members"]) >= 15


def test_the_queue_on_the_page_is_the_one_that_the_command_names() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    queues = {each["kind"]: each for each in yaml.safe_load_all(text)}
    assert f"queue={queues['LocalQueue']['metadata']['name']}" in PAGE
    assert queues["LocalQueue"]["spec"]["clusterQueue"] == queues["ClusterQueue"]["metadata"]["name"]
    (flavor,) = queues["ClusterQueue"]["spec"]["resourceGroups"][0]["flavors"]
    assert flavor["name"] == queues["ResourceFlavor"]["metadata"]["name"]


@pytest.mark.slow
def test_from_the_first_command_to_the_prediction(here: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "configs" / "first_tpu.py").write_text(TINY)
    _, on_gke, _ = commands("scaling", "sweep")
    assert run(on_gke)[0] == 1
    documents = yaml.safe_load_all((here / "launch" / "first-tpu" / "jobset.yaml").read_text())
    container = list(documents)[1]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    *_, verb, path, name, _option, config = container["command"]
    assert (verb, config) == ("worker", "/etc/scaling/first_tpu.py")
    assert main.main(store.Store(path), name) == 0
    code, printed = run(commands("scaling", "status")[0])
    assert code == 0
    assert "12 finished" in printed
    for line in (*commands("scaling", "report"), *commands("scaling", "fit"), *commands("scaling", "predict")):
        code, printed = run(line)
        assert code == 0, printed
    assert "at 1e+17 FLOPs: params" in printed
    assert (here / "first-tpu-report" / "report.html").exists()
    assert run(on_gke)[0] == 0  # nothing is left to start
