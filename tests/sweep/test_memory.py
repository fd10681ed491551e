"""Memory in a sweep: what cannot fit is refused before anything is trained or written; workers are told their share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import config, memory, store
from scaling.commands import planning
from scaling.launch import environments, stages
from scaling.launch.launchers import local
from scaling.planning import plan, report
from scaling.worker import main

Make = Callable[..., config.Run]
Launch = Callable[..., local.LocalWorkers]


def test_a_sweep_that_cannot_fit_is_refused_before_anything_is_written(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "find_accelerators", list)
    monkeypatch.setenv(memory.LIMIT, "20000")
    with pytest.raises(ValueError, match=r"run [0-9a-f]{16} .*needs .* each worker on this machine has 2e-05 GB"):
        stages.run(config.Sweep(name="small", base=make_run()), tmp_path / "store", workers=1, log=lambda line: None)
    assert not (tmp_path / "store").exists()


def test_a_worker_refuses_what_its_device_cannot_hold(
    make_run: Make, fill: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = store.Store(tmp_path)
    (run_id,) = fill(results, [make_run()])
    monkeypatch.setenv(memory.LIMIT, "20000")
    with pytest.raises(ValueError, match=f"run {run_id} .*a device here"):
        main.work(results, "small", log=lambda line: None)
    assert results.status(run_id)["status"] == "planned"


def test_workers_on_the_cpu_are_told_their_share(
    make_run: Make, fill: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    results = store.Store(tmp_path)
    fill(results, [make_run(seed=seed) for seed in range(2)])
    monkeypatch.setattr(environments, "find_accelerators", list)
    monkeypatch.setattr(local.LocalWorkers, "start", lambda self, slot: None)
    monkeypatch.setattr(memory, "available", lambda: 6e9)
    monkeypatch.delenv(memory.LIMIT, raising=False)
    told = [float(slot.environment[memory.LIMIT]) for slot in launch(tmp_path, "small", 2).slots]
    assert told == [3e9 - memory.PROCESS_BYTES] * 2
    assert local.memory_limit(2, 5, config.Mesh()) == ("cpu", told[0])
    assert local.memory_limit(4, 1, config.Mesh()) == ("cpu", 6e9 - memory.PROCESS_BYTES)


def test_a_plan_shows_the_microbatch_that_fits_and_refuses_what_does_not(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(batch_size=8, tokens=8 * 16 * 4)
    limit = memory.needed(run, config.Execution(), 4, cpu=True)
    planned = plan.Planned(run, {"family": "transformer"}, None, None)
    row = report.row(planned, 1e9, config.Execution(), limit, cpu=True)
    assert (row["microbatch"], row["memory_bytes"]) == (4, limit)
    assert planning._parts(row) == " (4 of 8)"
    assert planning._parts(report.row(planned, 1e9, config.Execution())) == ""
    file = tmp_path / "sweep.json"
    large = make_run(model__width=65536, model__depth=64, model__heads=512)
    file.write_text(config.Sweep(name="s", base=large).to_json())
    with pytest.raises(ValueError, match="one H100 has 60 GB"):
        planning.show(file, [], tmp_path / "store", "H100")
    assert capsys.readouterr().out == ""


def test_gpus_that_several_workers_share_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(local.glob, "glob", lambda pattern: [str(tmp_path / "information")])
    monkeypatch.setattr(environments, "find_accelerators", lambda: [{"CUDA_VISIBLE_DEVICES": str(n)} for n in range(4)])
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    one_each = ("NVIDIA H200", 0.75 * 141e9)
    assert local.memory_limit(None, 10, config.Mesh()) == one_each
    assert local.memory_limit(8, 3, config.Mesh()) == one_each
    assert local.memory_limit(8, 10, config.Mesh())[1] == pytest.approx(0.45 * 141e9)
    assert local.memory_limit(4, 10, config.Mesh(fsdp=2))[1] == pytest.approx(0.45 * 141e9)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert local.memory_limit(None, 10, config.Mesh()) == ("NVIDIA H200", 0.9 * 141e9)
