"""What the doctor finds: each check on what is well and on what is not, and that it leaves nothing behind."""

import errno
import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling import config, store
from scaling.checks import finding, machine, places, storing, tracker, versions
from scaling.commands import doctor
from scaling.config import grids
from scaling.data import corpus
from scaling.planning import plan, registering
from scaling.storage import backends
from scaling.training.trackers import wandb as wandb_tracker
from tests import command, s3

Make = Callable[..., config.Run]
GPU = machine.Seen("gpu", {"NVIDIA H100": 2})
CPU = machine.Seen("cpu", {"cpu": 1})
Usage = namedtuple("Usage", "total used free")


def one(findings: list[finding.Finding]) -> finding.Finding:
    (only,) = findings
    return only


def levels(findings: list[finding.Finding]) -> dict[str, str]:
    return {each.check: each.level for each in findings}


# This machine


@pytest.mark.parametrize(
    ("seen", "has", "environment", "level", "words"),
    [
        (CPU, (0, 0, []), {}, "ok", "the CPU"),
        (CPU, (0, 0, ["jax_cuda13_plugin"]), {"JAX_PLATFORMS": "cpu"}, "ok", "the CPU"),
        (CPU, (2, 0, ["jax_cuda13_plugin"]), {"JAX_PLATFORMS": "cpu"}, "warning", "2 NVIDIA GPUs, which JAX_PLATFORMS"),
        (CPU, (2, 0, ["jax_cuda13_plugin"]), {"CUDA_VISIBLE_DEVICES": ""}, "warning", "unset it to use them"),
        (CPU, (2, 0, []), {}, "wrong", "pip install 'scaling[cuda]'"),
        (CPU, (2, 0, ["libtpu"]), {}, "wrong", "pip install 'scaling[cuda]'"),
        (CPU, (2, 0, ["jax_cuda12_plugin"]), {}, "wrong", "JAX_PLATFORMS=cuda python"),
        (CPU, (0, 4, []), {}, "wrong", "pip install 'scaling[tpu]'"),
        (CPU, (0, 4, ["libtpu"]), {}, "wrong", "JAX_PLATFORMS=tpu python"),
        (machine.Seen(error="RuntimeError: planted"), (0, 0, []), {}, "wrong", "RuntimeError: planted; fix"),
        (machine.Seen(error="planted"), (0, 0, []), {"JAX_PLATFORMS": "cuda"}, "wrong", "JAX_PLATFORMS=cuda allows"),
        (machine.Seen(error="in use"), (1, 0, []), {}, "wrong", "ask again when it has ended"),
    ],
)
def test_accelerators_that_lie_idle_are_told_with_the_reason(
    seen: machine.Seen, has: tuple[int, int, list[str]], environment: Mapping[str, str], level: str, words: str
) -> None:
    outcome = one(machine.devices(seen, machine.Hardware(*has), environment))
    assert outcome.level == level
    assert words in outcome.line()


def test_accelerators_that_the_launcher_does_not_see_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    has = machine.Hardware(0, 0, ["jax_cuda13_plugin"])
    monkeypatch.setattr(machine.environments, "find_accelerators", list)
    assert levels(machine.devices(GPU, has, {})) == {"devices": "ok", "launcher": "warning"}
    monkeypatch.setattr(machine.environments, "find_accelerators", lambda: [{"CUDA_VISIBLE_DEVICES": "0"}])
    assert one(machine.devices(GPU, has, {})).message == "2 × NVIDIA H100 (gpu)"


def test_jax_is_asked_in_a_process_that_may_die_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.look() == CPU
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for body, error in (
        ("raise RuntimeError('planted')", "RuntimeError: planted"),
        ("import os; os._exit(7)", "it ended with exit code 7"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ):
        (tmp_path / "jax.py").write_text(body)
        assert machine.look(seconds=2).error == error


def test_hardware_is_what_drivers_show(tmp_path: Path) -> None:
    assert machine.hardware(tmp_path).gpus == machine.hardware(tmp_path).tpus == 0
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    for name, vendor, device in (("a", "0x1ae0", "0x0063"), ("b", "0x1ae0", "0x0042"), ("c", "0x10de", "0x0063")):
        place = tmp_path / "sys/bus/pci/devices" / name
        place.mkdir(parents=True)
        (place / "vendor").write_text(f"{vendor}\n")
        (place / "device").write_text(f"{device}\n")
    has = machine.hardware(tmp_path)
    assert (has.gpus, has.tpus) == (2, 1)  # b is Google's network card


JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({}, "ok", "on its own"),
        ({"JAX_PROCESS_ID": ""}, "ok", "on its own"),
        (JAX, "ok", "process 3 of 4, which meet at 10.0.0.1:1234"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": ""}, "wrong", "JAX_COORDINATOR_ADDRESS not"),
        ({"JAX_PROCESS_ID": "0"}, "wrong", "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES not"),
        ({**JAX, "JAX_PROCESS_ID": "4"}, "wrong", "number the processes from 0"),
        ({**JAX, "JAX_NUM_PROCESSES": "many"}, "wrong", "JAX_NUM_PROCESSES=many"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "host"}, "wrong", "is no HOST:PORT"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "[fe80::1]:80"}, "ok", "meet at [fe80::1]:80"),
        ({"JAX_LOCAL_DEVICE_IDS": "0"}, "warning", "which counts only with"),
        (STEP, "ok", "task 1 of 2"),
        ({**STEP, "JAX_LOCAL_DEVICE_IDS": "0"}, "ok", "task 1 of 2"),
        ({**STEP, **JAX}, "ok", "process 3 of 4"),
        ({name: value for name, value in STEP.items() if name != "SLURM_PROCID"}, "wrong", "without SLURM_PROCID"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, "warning", "start workers by srun"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, "ok", "on its own"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "ok", "host 1 of the 2"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "wrong", "TPU_WORKER_ID is not set"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "2"}, "wrong", "TPU_WORKER_ID is 2"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, "ok", "on its own"),
    ],
)
def test_variables_for_several_processes_are_whole_or_absent(
    environment: Mapping[str, str], level: str, words: str
) -> None:
    outcome = one(machine.processes(environment))
    assert outcome.level == level
    assert words in outcome.line()


# Versions


def test_versions_here_are_those_that_the_project_requires() -> None:
    findings = [*versions.packages(*versions.required()), *versions.jax()]
    assert levels(findings) == {"versions": "ok", "jax": "ok"}
    import jax

    assert f"jax {jax.__version__}" in findings[0].message


def test_what_is_required_is_read_from_the_checkout_or_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, wanted = versions.required(tmp_path)
    assert python == ">=3.11"
    assert any(text.startswith("pydantic") for text in wanted)
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.12"\ndependencies = ["jax>9000"]\n')
    assert versions.required(tmp_path) == (">=3.12", ["jax>9000"])
    monkeypatch.setattr(versions.importlib.metadata, "metadata", _missing)
    with pytest.raises(ValueError, match="is neither a checkout nor installed"):
        versions.required(tmp_path / "none")


def _missing(name: str) -> Any:
    raise versions.importlib.metadata.PackageNotFoundError(name)


def test_requirements_that_are_not_met_are_named() -> None:
    has = {"jax": "0.9.0", "pydantic": "2.8"}.get
    wanted = ["jax>=0.10", "pydantic>=2.7", "flax", "old; python_version < '3'", "ray; extra == 'ray'"]
    outcome = one(versions.packages(">=3.99", wanted, "3.13.0rc1", has))
    assert outcome.level == "wrong"
    assert outcome.message == "python 3.13.0rc1 (needs >=3.99), jax 0.9.0 (needs >=0.10), no flax"
    assert one(versions.packages(">=3.11", wanted[1:2], "3.13.0rc1", has)).level == "ok"


WANTS = {
    "jax": [
        "jaxlib<=0.10.2,>=0.10.1", 'jaxlib==0.10.1; extra == "ci"', 'libtpu==0.0.42.*; extra == "tpu"',
        'jaxlib>=0.10.2; extra == "tpu"', 'jax-cuda13-plugin>=0.10.2; extra == "cuda13-local"',
        'jaxlib<=0.10.2,>=0.10.2; extra == "cuda13-local"', 'requests; extra == "tpu"',
    ],
    "flax": ["jax>=0.10.0", "msgpack"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"jaxlib": "0.10.1"}, None),
        ({"jaxlib": "0.11.0"}, "jax 0.10.2 with jaxlib 0.11.0 (needs <=0.10.2,>=0.10.1)"),
        ({"jaxlib": None}, "jax 0.10.2 with no jaxlib"),
        ({"libtpu": "0.0.42.1"}, None),
        ({"libtpu": "0.0.41"}, "with libtpu 0.0.41 (needs ==0.0.42.*)"),
        ({"jax-cuda13-plugin": "0.10.1"}, "with jax-cuda13-plugin 0.10.1"),
        ({"jax-cuda13-plugin": "0.10.2", "jaxlib": "0.10.1"}, "with jaxlib 0.10.1 (needs <=0.10.2,>=0.10.2)"),
        ({"jax": "0.9.9"}, "flax 0.12 with jax 0.9.9 (needs >=0.10.0)"),
        ({"requests": "2"}, None),
    ],
)
def test_jax_and_what_is_made_for_it_go_together(changes: dict[str, str | None], words: str | None) -> None:
    has = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12", **changes}
    outcome = one(versions.jax(has.get, lambda name: WANTS.get(name, [])))
    assert outcome.level == ("wrong" if words else "ok")
    assert words is None or words in outcome.message


# The tracker


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "_imported", lambda: "1.0")


@pytest.mark.parametrize(
    ("mode", "environment", "netrc", "level"),
    [
        ("offline", {}, None, "ok"),
        ("online", {}, None, "wrong"),
        ("online", {"WANDB_API_KEY": "S3CRET"}, None, "ok"),
        ("online", {"WANDB_API_KEY": " "}, None, "wrong"),
        ("online", {}, "machine api.wandb.ai login user password S3CRET", "ok"),
        ("online", {}, "machine github.com login user password S3CRET", "wrong"),
        ("online", {"WANDB_BASE_URL": "https://own.host:8080"}, "machine api.wandb.ai password S3CRET", "wrong"),
        ("online", {"WANDB_BASE_URL": "https://own.host"}, "machine own.host login user password S3CRET", "ok"),
        ("online", {}, "machine api.wandb.ai S3CRET S3CRET", "wrong"),  # which the parser's message would quote
    ],
)
def test_a_key_is_needed_online_and_never_shown(
    wandb: None, tmp_path: Path, mode: str, environment: dict[str, str], netrc: str | None, level: str
) -> None:
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
    outcome = one(tracker.trackers([config.Wandb.model_validate({"mode": mode})], environment, tmp_path))
    assert outcome.level == level
    assert "S3CRET" not in outcome.line()


def test_the_netrc_file_may_be_named(wandb: None, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("machine api.wandb.ai login user password S3CRET")
    environment = {"NETRC": str(tmp_path / "mine")}
    assert one(tracker.trackers([config.Wandb()], environment, tmp_path / "nobody")).level == "ok"


def test_a_tracker_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("raise TypeError('protobuf')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = one(tracker.trackers([config.Wandb(mode="offline")], {}, tmp_path))
    assert outcome.level == "wrong"
    assert outcome.message == "wandb cannot be imported: TypeError: protobuf; pip install --upgrade wandb"


def test_each_tracker_is_checked_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(config.Tracker):
        kind: str = "of the test of doctor"

    findings = tracker.trackers([config.TensorBoard(), Own()], {}, tmp_path)
    assert [each.level for each in findings] == ["ok", "ok"]
    assert findings[0].message.startswith("tensorboardX ")
    assert "of your own" in findings[1].message
    assert one(tracker.trackers([], {}, tmp_path)).message == "none: metrics are in the store alone"
    monkeypatch.setattr(versions.importlib.metadata, "version", _missing)
    assert one(tracker.trackers([config.TensorBoard()], {}, tmp_path)).level == "wrong"


# Folders


def test_room_is_what_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "not" / "yet"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 5e9) if place == tmp_path else 1 / 0)
    assert one(places.room("disk", new)).level == "ok"
    assert one(places.room("disk", new, 4e9, "checkpoints")).message.endswith(
        "5.0 GB free; checkpoints need at most 4 GB"
    )
    outcome = one(places.room("disk", new, 6e9, "checkpoints"))
    assert (outcome.level, "5.0 GB free, and checkpoints need 6 GB" in outcome.message) == ("wrong", True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 1e9))
    assert one(places.room("disk", new)).level == "warning"
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert one(places.room("disk", new)).level == "wrong"
    assert not new.parent.exists()


@pytest.mark.parametrize(
    ("modes", "level", "words"),
    [
        ({}, "ok", "made when first needed"),
        ({"compiled/x": 0o700}, "ok", "is yours alone"),
        ({"compiled/x": 0o755}, "warning", "chmod 700"),
        ({"compiled/x": 0o777}, "wrong", "may be written by anyone"),
        ({"compiled": 0o777}, "wrong", "compiled may be written by anyone"),
        ({"compiled": 0o1777, "compiled/x": 0o700}, "ok", "is yours alone"),
        ({"compiled": 0o775, "compiled/x": 0o700}, "warning", "chmod g-w"),
    ],
)
def test_compiled_programs_are_to_lie_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: dict[str, int], level: str, words: str
) -> None:
    folder = tmp_path / "compiled" / "x"
    monkeypatch.setattr(places.environments, "compile_folder", lambda: folder)
    for name in modes:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    for environment in ({}, {"JAX_COMPILATION_CACHE_DIR": str(folder)}):
        outcome = one(places.compiled(environment, os.getuid()))
        assert outcome.level == level
        assert words in outcome.line()


def test_compiled_programs_of_another_user_are_refused(tmp_path: Path) -> None:
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, -1)
    outcome = one(places.compiled(environment, os.getuid() if os.getuid() == 0 else 12345))
    assert (outcome.level, f"{tmp_path} belongs to another user" in outcome.message) == ("wrong", True)
    bucket = one(places.compiled({"JAX_COMPILATION_CACHE_DIR": "gs://shared/programs"}, os.getuid()))
    assert bucket.level == "warning"


# Stores


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def results(tmp_path: Path, tiny: Make) -> store.Store:
    """A store with a sweep of a trunk and two branches, none of them trained."""
    sweep = config.Sweep(
        name="mine",
        base=tiny(schedule={"kind": "wsd", "cooldown": 0.25, "warmup": {"kind": "tokens", "tokens": 64}}),
        grid=grids.Axis(field="tokens", values=(64 * 20, 64 * 40)),
        trackers=(config.Wandb(mode="offline"), config.TensorBoard()),
    )
    new = store.Store(tmp_path / "store")
    resolved = plan.resolve(sweep, lambda data: corpus.prepare(data, lambda line: None), new)
    registering.register("mine", sweep, resolved.trunks + resolved.runs, new)
    return new


ALL = ("sweeps", "write", "hard links", "exclusivity", "replacing", "listing", "clock", "disk")


def test_a_store_that_is_well_is_left_as_it_was(results: store.Store) -> None:
    before = tree(Path(results.path)), sorted(os.listdir(results.path))
    findings = storing.store(results.path)
    assert levels(findings) == dict.fromkeys(ALL, "ok")
    assert findings[0].message == "1 sweeps, 3 runs, all of format 1"
    assert (tree(Path(results.path)), sorted(os.listdir(results.path))) == before


def test_a_store_that_is_not_there_yet_is_tried_and_not_made(tmp_path: Path) -> None:
    findings = storing.store(str(tmp_path / "not" / "yet"))
    assert levels(findings) == dict.fromkeys(ALL, "ok")
    assert "there is no store at" in findings[0].message
    assert os.listdir(tmp_path) == []


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file, not a folder" in one(storing.store(str(tmp_path / "file"))).message
    assert "is not supported" in one(storing.store("ftp://host/x")).message


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.EROFS, "read-only")])
def test_a_store_that_is_read_only_is_told(
    results: store.Store, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(backends.Folder, "replace", refuse)
    before = tree(Path(results.path))
    findings = storing.store(results.path)
    assert levels(findings) == {"sweeps": "ok", "write": "wrong"}
    assert "read-only here" in findings[1].message
    assert tree(Path(results.path)) == before


def test_a_disk_without_hard_links_is_told(results: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = sorted(os.listdir(results.path))
    findings = storing.store(results.path)
    assert levels(findings) == {"sweeps": "ok", "write": "ok", "hard links": "wrong"}
    assert "has no hard links" in findings[-1].message
    assert sorted(os.listdir(results.path)) == before


class Racy(backends.Folder):
    """Looks whether there is a file, and then writes it."""

    def create(self, key: str, text: str) -> bool:
        free = not self.exists(key)
        time.sleep(0.01)
        if free:
            self.replace(key, text)
        return free


class Torn(backends.Folder):
    """Replaces a file in place."""

    def replace(self, key: str, text: str) -> None:
        self.path.mkdir(exist_ok=True)
        with open(self.path / key, "w") as file:
            for start in range(0, len(text), 1000):
                file.write(text[start : start + 1000])
                file.flush()


class Cached(backends.Folder):
    """Reads what it read before."""

    seen: dict[str, bytes] = {}  # noqa: RUF012

    def read(self, key: str) -> bytes:
        return self.seen.setdefault(f"{self.path}/{key}", super().read(key))


class Cut(backends.Folder):
    """Keeps only the start of a file."""

    def replace(self, key: str, text: str) -> None:
        super().replace(key, text[:4096])


class Late(backends.Folder):
    """Lists what was there some time ago."""

    seconds = 1.5
    before: tuple[float, list[str]] = (0.0, [])

    def names(self, key: str) -> list[str]:
        if time.monotonic() - self.before[0] > self.seconds:
            self.before = time.monotonic(), super().names(key)
        return self.before[1]


@pytest.mark.parametrize(
    ("kind", "check", "level", "words"),
    [
        (backends.Folder, storing.exclusive, "ok", "one's alone"),
        (Racy, storing.exclusive, "wrong", "2 were told that it is theirs"),
        (backends.Folder, storing.replaced, "ok", "a whole file each time"),
        (Torn, storing.replaced, "wrong", "may find a part of it"),
        (Cached, storing.replaced, "wrong", "not what was written last"),
        (backends.Folder, storing.whole, "ok", "written and read back"),
        (Cut, storing.whole, "wrong", "came back, and not the same"),
        (backends.Folder, storing.listed, "ok", "at once"),
        (Late, storing.listed, "warning", "s late"),
    ],
)
def test_storages_that_workers_cannot_rely_on_are_told(
    tmp_path: Path, kind: type[backends.Folder], check: storing.Check, level: str, words: str
) -> None:
    scratch = kind(tmp_path / "scratch")
    if kind is Late:
        scratch.names("")
    outcome = check(scratch)
    assert outcome.level == level
    assert words in outcome.message


def test_a_listing_that_never_comes_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "LISTED_SECONDS", 0.2)
    monkeypatch.setattr(Late, "seconds", 60.0)
    scratch = Late(tmp_path)
    scratch.names("")
    assert storing.listed(scratch).level == "wrong"


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0.0, "ok"), (24.0, "ok"), (26.0, "warning"), (51.0, "wrong"), (-26.0, "warning"), (-90, "warning")],
)
def test_clocks_may_differ_by_less_than_a_lease_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str
) -> None:
    scratch = backends.Folder(tmp_path)
    now = scratch.now()  # both clocks stand still: on a busy machine time passes between two looks at them
    monkeypatch.setattr(backends.Folder, "now", lambda self: now)
    monkeypatch.setattr(storing.time, "time", lambda: now + ahead)
    outcome = storing.clock(scratch, heartbeat_seconds=10.0, lease_seconds=60.0)
    assert outcome.level == level
    assert f"this host is {abs(ahead):.1f} s" in outcome.message
    assert "25 s are tolerated with leases of 60 s" in outcome.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": store.FORMAT + 1}, "1 sweeps, 1 of a newer version (this one reads format 1)"),
        ({"format": 0}, "1 sweeps, 1 of an older version"),
        (None, "is not readable as JSON"),
    ],
)
def test_sweeps_of_other_versions_and_unreadable_ones_are_told(
    results: store.Store, change: dict[str, int] | None, words: str
) -> None:
    path = results.sweep_folder("mine") / "sweep.json"
    path.write_text("{" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    findings = storing.store(results.path)
    assert findings[0].level == "wrong"
    assert words in findings[0].message
    assert {each.level for each in findings[1:]} == {"ok"}


def test_what_is_no_run_is_told(results: store.Store) -> None:
    (Path(results.path) / "runs" / "mine").mkdir()
    outcome = storing.store(results.path)[0]
    assert (outcome.level, "'mine' in" in outcome.message) == ("wrong", True)


def test_a_checkpoint_is_as_large_as_is_counted(tiny: Make) -> None:
    from scaling.training import checkpoint, programs

    size = checkpoint.size_bytes(programs.program(tiny(), config.Execution(microbatch=None)).shapes)
    assert storing.state_bytes(tiny()) == pytest.approx(size, rel=0.01)
    assert storing.KEPT == checkpoint.KEPT


def test_room_for_checkpoints_is_that_of_the_runs_that_are_left(
    results: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {member["labels"]["role"]: member["run_id"] for member in results.sweep("mine")["members"]}
    size = storing.state_bytes(config.Run.model_validate(results.config(members["trunk"])["run"]))
    # The last one of three runs, two of the trunk for its branches, and of the one that trains two and one in work.
    assert storing.checkpoint_bytes(results) == (pytest.approx((3 + 2 + 3) * size), 3, 0)
    lease = results.claim(members["trunk"], "me")
    assert lease is not None
    assert lease.publish({"status": "finished", "reason": None})
    assert storing.checkpoint_bytes(results) == (pytest.approx((2 + 3) * size), 2, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 4.9 * size))
    outcome = storing.store(results.path)[-1]
    assert (outcome.check, outcome.level) == ("disk", "wrong")
    assert "checkpoints of 2 runs without a result need" in outcome.message


def test_what_the_sweeps_of_a_store_track_is_asked_for(results: store.Store) -> None:
    offline, online = config.Wandb(mode="offline"), config.Wandb(mode="online")
    assert storing.trackers(results) == [offline, config.TensorBoard()]
    assert doctor._wanted(results.path, [online, offline]) == [online, offline, config.TensorBoard()]
    assert doctor._wanted("/dev/null", []) == []
    older = results.sweep("mine")
    settings = {name: value for name, value in older["config"].items() if name != "trackers"}
    settings["tracking"] = {"wandb": "online", "project": "p", "entity": None}
    results.add_sweep("older", settings, older["members"])
    assert config.Wandb(mode="online", project="p") in storing.trackers(results)


def test_a_tracker_is_named_by_its_kind_or_as_json() -> None:
    assert doctor.tracker_of("wandb") == config.Wandb()
    assert doctor.tracker_of('{"kind": "wandb", "mode": "offline"}') == config.Wandb(mode="offline")
    with pytest.raises(ValueError, match="no Tracker of kind 'wandbb'; did you mean 'wandb'"):
        doctor.tracker_of("wandbb")


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Server]:
    with s3.server() as running:
        yield running


def test_a_bucket_is_tried_like_a_folder(server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    place = f"s3://{s3.BUCKET}/doctor"
    findings = storing.store(place)
    assert levels(findings) == {check: "ok" for check in ALL if check not in ("hard links", "disk")}
    backends.open_storage(place).replace("sweeps/x/sweep.json", json.dumps({"format": 9}))
    assert storing.store(place)[0].level == "wrong"
    assert backends.open_storage(f"s3://{s3.BUCKET}").names("") == ["doctor"]
    assert backends.open_storage(place).names("") == ["sweeps"]
    missing = storing.store("s3://no-such-bucket/doctor")
    assert levels(missing) == {"sweeps": "ok", "write": "wrong"}
    assert "bucket does not exist" in missing[1].message


def test_a_bucket_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    settings = {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "S3CRET"}
    for name, value in {**settings, "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    outcome = one(storing.store("s3://laws/doctor"))
    s3fs.S3FileSystem.clear_instance_cache()
    assert (outcome.check, outcome.level) == ("store", "wrong")
    assert "cannot be reached" in outcome.message
    assert "S3CRET" not in outcome.line()


# The command


def command_of(tmp_path: Path, *arguments: str, **environment: str) -> command.Ended:
    """`scaling doctor` where nothing of this machine's W&B and Slurm is known."""
    (tmp_path / "temp").mkdir(exist_ok=True)
    folders = {"HOME": tmp_path / "home", "SCALING_CACHE": tmp_path / "cache", "TMPDIR": tmp_path / "temp"}
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))]:
            del os.environ[name]
        env = {**{name: str(folder) for name, folder in folders.items()}, **environment}
        return command.process("doctor", *arguments, cwd=tmp_path, env=env)


def test_the_command_prints_a_line_a_check_and_writes_nothing(tmp_path: Path) -> None:
    shown = command_of(tmp_path, "--tracker", "wandb", WANDB_API_KEY="S3CRET")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    checks = ["versions", "jax", "processes", "programs", "cache", "temporary", "devices", "tracker"]
    assert [line.split()[1].rstrip(":") for line in lines[:-1]] == checks
    assert lines[-1].endswith("0 are wrong")
    assert "S3CRET" not in shown.out
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["temp"]


def test_the_command_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    shown = command_of(tmp_path, "--store", "new", JAX_PROCESS_ID="1")
    assert (shown.code, shown.err) == (1, "")
    wrong = [line for line in shown.out.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 1
    assert wrong[0].startswith("wrong    processes: JAX_PROCESS_ID set and JAX_COORDINATOR_ADDRESS")
    assert "ok       exclusivity" in shown.out
    assert not (tmp_path / "new").exists()
