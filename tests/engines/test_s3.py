"""A sweep in a bucket of a real S3 server on loopback, by two sweepers at once, while the server goes away."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaling import config, store
from scaling.config import grids
from scaling.data import corpus as corpora
from scaling.store import record
from scaling.worker import group
from tests import command, conftest, on_devices, s3

pytestmark = pytest.mark.engines

AWAY_SECONDS = 12.0  # longer than s3fs and botocore try again by themselves; 30 were tried too


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Gate]:
    """The way to the server, which can be shut."""
    with s3.server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield s3.Gate(running)


def test_two_sweepers_in_a_bucket_whose_server_goes_away(
    gate: s3.Gate, tiny: Callable[..., config.Run], tmp_path: Path
) -> None:
    """Each run is trained once and none is lost; losses are those of the same sweep in a folder, bit for bit."""
    sizes = grids.Ladder(sizes=(grids.Size(width=16, depth=1), grids.Size(width=32, depth=1)))
    sweep = config.Sweep(
        name="away",
        base=tiny(),
        grid=grids.IsoToken(tokens=(64 * 1000, 64 * 2000), sizes=sizes),
        execution=config.Execution(checkpoint_seconds=1.0, evaluations=4),
    )
    (tmp_path / "away.json").write_text(sweep.to_json())
    url = f"s3://{s3.BUCKET}/laws"
    sweep_to = command.line("sweep", "away.json", "--workers", 1, "--store")
    started = [
        subprocess.Popen(
            [*sweep_to, url], cwd=tmp_path, env=command.environment(**gate.environment), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    results = store.Store(url)
    until = time.monotonic() + 120
    while not (results.exists() and "running" in results.statuses("away").values()):
        assert time.monotonic() < until
        time.sleep(0.5)
    time.sleep(2)
    gate.shut()
    time.sleep(AWAY_SECONDS)
    gate.open()
    said = [each.communicate(timeout=300)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    logs = "".join(path.read_text() for path in (tmp_path / "results" / "sweeps" / "away" / "logs").iterdir())
    assert "paused, and trying again until it passes" in logs
    assert "going on after a pause of" in logs

    frame = results.runs("away")
    assert frame["status"].tolist() == ["finished"] * len(frame)
    subprocess.run([*sweep_to, "folder"], cwd=tmp_path, env=command.environment(), check=True, capture_output=True)
    undisturbed = store.Store(tmp_path / "folder").runs("away")
    assert frame["loss"].tolist() == undisturbed["loss"].tolist()
    for run_id in frame["run_id"]:
        assert logs.count(f"{run_id}: finished") == 1
        steps = results.history(run_id)["step"].tolist()
        assert steps == store.Store(tmp_path / "folder").history(run_id)["step"].tolist()


def test_a_run_of_two_processes_is_kept_in_a_bucket_and_goes_on_with_one(
    gate: s3.Gate, tiny: Callable[..., config.Run], tmp_path: Path
) -> None:
    """No folder is shared: process 0 writes the state that both gathered; a worker alone ends the run as two would."""
    run = tiny(tokens=64 * 240)
    kept = record.config_record(run, corpora.prepare(run.data, print))
    run_id = kept["run_id"]
    sweep = config.Sweep(
        name="together", base=run, execution=config.Execution(checkpoint_seconds=0.01, steps_per_dispatch=4)
    )
    places = [store.Store(f"s3://{s3.BUCKET}/together"), store.Store(tmp_path / "alone")]
    for results in places:
        results.add_run(run_id, kept)
        results.add_sweep("together", sweep.model_dump(mode="json"), [{"run_id": run_id, "labels": {"role": "single"}}])

    def worker(place: store.Store, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command.line("worker", place.path, "together"),
            env=command.environment(**gate.environment, XLA_FLAGS=conftest.FAST_COMPILE, **more),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    address = on_devices.address()
    both = [
        worker(places[0], **dict(zip(group.NAMES, (address, "2", str(number)), strict=True))) for number in range(2)
    ]
    until = time.monotonic() + 200
    while not places[0].has_checkpoint(run_id):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in both), [process.communicate()[0] for process in both]
        time.sleep(0.1)
    both[1].terminate()
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [143, 143], said
    status = places[0].status(run_id)
    assert status["status"] == "planned"
    assert 0 < status["step"] < run.steps
    alone = [worker(place) for place in places]
    said = [process.communicate(timeout=200)[0] for process in alone]
    assert [process.returncode for process in alone] == [0, 0], said
    resumed, undisturbed = (place.result(run_id) for place in places)
    assert resumed is not None
    assert undisturbed is not None
    assert resumed["loss"] == pytest.approx(undisturbed["loss"], rel=1e-4)
    assert places[0].history(run_id)["step"].tolist() == list(range(1, run.steps + 1))
