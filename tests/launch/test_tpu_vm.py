"""The scripts for Cloud TPU VMs: as recorded, sound to a shell, and run against a `gcloud` that only pretends."""

import collections
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from scaling.launch import launcher
from scaling.launch.launchers.tpu import slices, vm
from tests.launch import golden

FAKE = Path(__file__).parent / "fake_gcloud.py"
RUN, INSTALL, STOP = ("bash scaling/worker.sh run", "bash scaling/worker.sh install", "bash scaling/worker.sh stop")
FIRST = f"{slices.base_name(golden.JOB)}-0"
SETUP = ["create", "mkdir -p scaling", "scp", INSTALL]


class Cloud:
    """A pretended Google Cloud, and run.sh on this machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder / "cloud"
        self.folder.mkdir()
        monkeypatch.setenv("CLOUD", str(self.folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        subprocess.run([sys.executable, FAKE, "install", folder / "bin"], check=True)
        self.launch = folder / "launch"

    def render(self, *, quick_seconds: int = 60, **changes: Any) -> Path:
        """run.sh with the sweep's files beside it, as `start` writes them."""
        job = dataclasses.replace(golden.JOB, **{"workers": 1, **changes})
        self.launch.mkdir()
        for name, text in golden.VM.files(job).items():
            (self.launch / name).parent.mkdir(parents=True, exist_ok=True)
            (self.launch / name).write_text(text)
        run = self.launch / "run.sh"
        text = run.read_text()
        assert "quick_seconds=60" in text
        run.write_text(text.replace("quick_seconds=60", f"quick_seconds={quick_seconds}"))
        return run

    def plan(self, *outcomes: str | int) -> None:
        (self.folder / "outcomes").write_text("".join(f"{each}\n" for each in outcomes))

    def run(self, path: Path) -> int:
        return subprocess.run(["bash", str(path)], timeout=300, stdin=subprocess.DEVNULL).returncode

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def asked(self, name: str = FIRST) -> list[str]:
        """What was asked of a slice, in order, without what its hosts did."""
        inside = ("worker", "fetch", "uv venv", "uv pip", "describe")
        return [each["what"] for each in self.calls() if each["name"] == name and each["what"] not in inside]

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "queued").iterdir())

    def log(self) -> str:
        return (self.launch / "log.txt").read_text()


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    made = Cloud(tmp_path, monkeypatch)
    yield made
    for path in (made.folder / "hosts").glob("*/*/scaling/worker.pid"):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return golden.VM.files(golden.JOB)


# The text


@pytest.mark.parametrize("name", ["run.sh", "worker.sh"])
def test_scripts_are_the_recorded_ones(name: str, rendered: dict[str, str]) -> None:
    golden.compare(name, rendered[name])
    assert f"# ==> launch/isoflop.v2/{name}\n{rendered[name]}" in golden.VM.describe(golden.JOB)


@pytest.mark.parametrize("name", ["run.sh", "worker.sh"])
def test_scripts_are_sound(name: str, rendered: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(rendered[name])
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):  # a package of Debian, not one of Python's index: bash itself checks everywhere
        subprocess.run(["shellcheck", str(path)], check=True)


def test_no_key_is_written(rendered: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    assert golden.VM.files(golden.JOB) == rendered
    assert "very-secret" not in "".join(rendered.values())


AWKWARD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40)


@hypothesis.settings(max_examples=10)
@hypothesis.given(AWKWARD)
@hypothesis.example("$(touch /tmp/owned) `id` \"'; exit 1; # & | \\ ~ * ! {a,b}")
def test_what_a_user_says_is_never_a_command(text: str) -> None:
    job = dataclasses.replace(golden.JOB, store_path=f"gs://my-bucket/{text}")
    head, _, _ = golden.VM.files(job)["worker.sh"].partition("\n\n")
    shown = subprocess.run(
        [shutil.which("bash") or "bash", "-c", head + '\nprintf "%s\\0" "${command[@]}"'],
        capture_output=True,
        check=True,
        env={"PATH": "/nowhere"},
    )
    words = shown.stdout.decode().split("\0")
    assert words[3:-1] == ["worker", job.store_path, job.sweep_name, "--config", "sweep/sweep.py"]
    assert shown.stderr == b""


def test_outside_a_checkout_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vm, "CHECKOUT", tmp_path)
    with pytest.raises(ValueError, match="run from one"):
        golden.VM.describe(golden.JOB)


# What it does


def test_a_slice_that_is_taken_away_is_asked_for_again_and_deleted_at_the_end(cloud: Cloud) -> None:
    cloud.plan("preempted", 0)
    assert cloud.run(cloud.render()) == 0
    assert cloud.asked() == [*SETUP, RUN, "delete", *SETUP, RUN, "delete"]
    assert cloud.left() == []
    create = next(each for each in cloud.calls() if each["what"] == "create")["arguments"]
    assert create[:2] == [FIRST, f"--node-id={FIRST}"]
    assert {
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--service-account=scaling@my-project.iam.gserviceaccount.com",
    } <= set(create)
    assert "is SUSPENDING" in cloud.log()
    assert "nothing is left to claim" in cloud.log()


def test_workers_get_the_code_their_command_and_their_environment(cloud: Cloud) -> None:
    cloud.plan(0)
    assert cloud.run(cloud.render(workers=1)) == 0
    workers = [each for each in cloud.calls() if each["what"] == "worker"]
    assert {each["host"] for each in workers} == {0, 1}
    for each in workers:
        assert each["arguments"] == (
            ["-m", "scaling.cli", "worker", "gs://my-bucket/scaling", "isoflop.v2", "--config", "sweep/sweep.py"]
        )
        environment = each["environment"]
        assert environment["JAX_PLATFORMS"] == "tpu,cpu"
        assert environment["SCALING_WORKERS"] == "1"
        assert environment["WANDB_API_KEY"] == "very-secret"  # from Secret Manager, by the host
        assert environment["JAX_COMPILATION_CACHE_DIR"].startswith(str(cloud.folder / "hosts"))
    fetched = [each["arguments"] for each in cloud.calls() if each["what"] == "fetch"]
    assert fetched == [["-m", "scaling.launch.fetch", "gs://my-bucket/text", "text"]] * 2
    pip = next(each["arguments"] for each in cloud.calls() if each["what"] == "uv pip")
    assert pip[-3:] == ["--constraint", "source/constraints.txt", "./source[tpu,gcs]"]
    copied = next(each for each in cloud.calls() if each["what"] == "scp")["arguments"]
    assert copied[:5] == ["--recurse", "worker.sh", "code.tgz", "sweep", f"{FIRST}:scaling/"]
    packed = subprocess.run(["tar", "-tzf", cloud.launch / "code.tgz"], capture_output=True, text=True, check=True)
    assert {"pyproject.toml", "constraints.txt", "scaling/launch/launchers/tpu/vm_run.sh"} <= set(
        packed.stdout.splitlines()
    )
    assert "__pycache__" not in packed.stdout
    assert "hello from host 1" in cloud.log()
    assert "very-secret" not in cloud.log()


def test_a_refused_worker_is_not_started_again(cloud: Cloud) -> None:
    cloud.plan(2, 0)
    assert cloud.run(cloud.render()) == 2
    assert cloud.asked() == [*SETUP, RUN, "delete"]
    assert cloud.left() == []


def test_infrastructure_is_tried_again_for_ever(cloud: Cloud) -> None:
    cloud.plan(75, 143, 129, 130, 0)
    assert cloud.run(cloud.render(quick_seconds=0)) == 0
    assert cloud.asked().count(RUN) == 5
    assert cloud.asked().count("create") == 1
    installed = [each for each in cloud.calls() if each["what"] == "uv pip"]
    assert len(installed) == 2  # once a host: the code is the same


@pytest.fixture
def one_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is given up when it crashes for the second time."""
    monkeypatch.setattr(launcher, "RESTARTS", 1)


@pytest.mark.usefixtures("one_restart")
@pytest.mark.parametrize("code", [1, 75])  # 75, but at once every time
def test_a_worker_that_crashes_again_and_again_is_given_up_and_its_slice_deleted(cloud: Cloud, code: int) -> None:
    cloud.plan(*[code] * 9)
    assert cloud.run(cloud.render()) == 1
    assert cloud.asked().count(RUN) == 2
    assert cloud.left() == []
    assert "given up" in cloud.log()


@pytest.mark.usefixtures("one_restart")
def test_a_slice_that_cannot_be_had_is_given_up(cloud: Cloud) -> None:
    (cloud.folder / "futures").write_text("FAILED\n" * 9)
    assert cloud.run(cloud.render()) == 1
    assert cloud.asked() == ["create", "delete"] * 2
    assert cloud.left() == []


def test_without_a_login_nothing_is_asked_for(cloud: Cloud) -> None:
    (cloud.folder / "no-login").touch()
    assert cloud.run(cloud.render()) == 2
    assert cloud.calls() == []


def test_slices_are_kept_one_by_one(cloud: Cloud) -> None:
    cloud.plan("preempted", 0, 0)
    assert cloud.run(cloud.render(workers=2)) == 0
    names = [f"{slices.base_name(golden.JOB)}-{number}" for number in range(2)]
    runs = collections.Counter(each["name"] for each in cloud.calls() if each["what"] == RUN)
    assert sorted(runs) == names
    assert sorted(runs.values()) == [1, 2]
    assert cloud.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_runs_and_deletes_the_slices(cloud: Cloud, number: int) -> None:
    cloud.plan("until stopped")
    script = subprocess.Popen(["bash", str(cloud.render())], stdin=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 30
    while sum(each["what"] == "worker" for each in cloud.calls()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(script.pid, number)  # as a terminal does: to gcloud and its children too
    assert script.wait(30) == 1
    assert cloud.asked() == [*SETUP, RUN, STOP, "delete"]
    assert cloud.left() == []
    assert cloud.log().count("saved") == 2


def test_a_slice_that_is_there_already_is_used(cloud: Cloud) -> None:
    cloud.plan(0)
    (cloud.folder / "queued" / FIRST).write_text("ACTIVE")
    for number in range(2):
        (cloud.folder / "hosts" / FIRST / str(number)).mkdir(parents=True)
    assert cloud.run(cloud.render()) == 0
    assert cloud.asked() == [*SETUP[1:], RUN, "delete"]


# worker.sh on a host


@pytest.fixture
def host(cloud: Cloud) -> Path:
    """A host's home with the scripts in it, installed."""
    cloud.render()
    home = cloud.folder / "hosts" / FIRST / "0"
    (home / "scaling").mkdir(parents=True)
    shutil.copy(cloud.launch / "worker.sh", home / "scaling")
    subprocess.run(["tar", "-czf", home / "scaling" / "code.tgz", "-C", vm.CHECKOUT, "constraints.txt"], check=True)
    assert on_host(home, "install").wait(20) == 0
    return home


def on_host(home: Path, verb: str) -> "subprocess.Popen[str]":
    command = ["bash", "scaling/worker.sh", verb]
    return subprocess.Popen(command, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, text=True)


def test_a_worker_outlives_its_connection_and_is_followed_again(cloud: Cloud, host: Path) -> None:
    cloud.plan("until stopped")
    first = on_host(host, "run")
    assert first.stdout is not None
    assert first.stdout.readline() == "hello from host 0\n"
    first.kill()
    again = on_host(host, "run")
    assert again.stdout is not None
    assert again.stdout.readline() == "hello from host 0\n"
    assert on_host(host, "stop").wait(20) == 0
    assert again.wait(20) == 143
    assert "saved" in again.stdout.read()
    assert [each["what"] for each in cloud.calls()].count("worker") == 1
    cloud.plan(0)
    assert on_host(host, "run").wait(20) == 0


def test_other_code_ends_the_worker_before_it_is_installed(cloud: Cloud, host: Path) -> None:
    cloud.plan("until stopped")
    worker = on_host(host, "run")
    assert worker.stdout is not None
    worker.stdout.readline()
    subprocess.run(["tar", "-czf", host / "scaling" / "code.tgz", "-C", vm.CHECKOUT, "LICENSE"], check=True)
    assert on_host(host, "install").wait(20) == 0
    assert worker.wait(20) == 143
    assert sorted(path.name for path in (host / "scaling" / "source").iterdir()) == ["LICENSE"]


def test_without_secrets_no_key_is_asked_for(cloud: Cloud) -> None:
    cloud.plan(0)
    assert cloud.run(cloud.render(secrets=())) == 0
    workers = [each for each in cloud.calls() if each["what"] == "worker"]
    assert workers
    assert all("WANDB_API_KEY" not in each["environment"] for each in workers)


def test_a_path_with_blanks_and_quotes_is_no_trouble(cloud: Cloud, tmp_path: Path) -> None:
    cloud.launch = tmp_path / "it's a $(folder)"
    cloud.plan(0)
    assert cloud.run(cloud.render()) == 0
    assert shlex.quote(str(cloud.launch)) != str(cloud.launch)
