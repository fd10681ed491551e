"""A sweep in a bucket of a real S3 server on loopback, by two sweepers at once, while the server goes away."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaling import config
from scaling.sweep import grid, store
from tests import s3, test_cli

pytestmark = pytest.mark.engines

AWAY_SECONDS = 30.0


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
    sizes = grid.Ladder(sizes=(grid.Size(width=16, depth=1), grid.Size(width=32, depth=1)))
    sweep = config.Sweep(
        name="away",
        base=tiny(),
        grid=grid.IsoToken(tokens=(64 * 1000, 64 * 2000), sizes=sizes),
        execution=config.Execution(checkpoint_seconds=1.0, evaluations=4),
    )
    (tmp_path / "away.json").write_text(sweep.to_json())
    url = f"s3://{s3.BUCKET}/laws"
    command = [sys.executable, "-m", "scaling.cli", "sweep", "away.json", "--workers", "1", "--store"]
    started = [
        subprocess.Popen(
            [*command, url], cwd=tmp_path, env=test_cli.environment(**gate.environment), stdout=subprocess.PIPE,
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
    subprocess.run([*command, "folder"], cwd=tmp_path, env=test_cli.environment(), check=True, capture_output=True)
    undisturbed = store.Store(tmp_path / "folder").runs("away")
    assert frame["loss"].tolist() == undisturbed["loss"].tolist()
    for run_id in frame["run_id"]:
        assert logs.count(f"{run_id}: finished") == 1
        steps = results.history(run_id)["step"].tolist()
        assert steps == store.Store(tmp_path / "folder").history(run_id)["step"].tolist()
