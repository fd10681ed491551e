"""The store: what is written, what is refused, and the tables that are read from it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling import config, store
from scaling.store import columns, record
from scaling.worker import endings, queue
from tests.sweep import trainers

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]


@pytest.fixture
def results(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "store")


def finish(results: store.Store, run_id: str, run: config.Run, outcome: Any, sweep: str = "small") -> None:
    """Publish a result as a worker does."""
    lease = results.claim(run_id, "me", {"device": "cpu"})
    assert lease is not None
    _, stored = record.read(results.config(run_id))
    item = queue.QueuedRun(run_id, run, stored, record.columns(run, stored), {"role": "single"}, None, ())
    assert lease.publish(endings.result_row(item, sweep, outcome, "cpu"))


def test_importing_the_store_imports_neither_jax_nor_pandas() -> None:
    program = "import sys; from scaling import store; print({'jax', 'pandas', 'wandb'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_a_store_that_is_a_file_is_refused_and_nothing_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="file is a file, not a folder"):
            store.Store(path)
    assert file.read_text() == "mine"


def test_a_store_that_cannot_be_written_is_refused_but_can_be_read(
    results: store.Store, make_run: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = fill(results, [make_run()])
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert len(results.runs("small")) == 1
    for write in (
        lambda: results.add_run(run_ids[0], results.config(run_ids[0])),
        lambda: results.add_sweep("other", {}, []),
        lambda: results.claim(run_ids[0], "me"),
        lambda: results.retry(run_ids[0]),
    ):
        with pytest.raises(ValueError, match="no permission to write"):
            write()


def test_a_new_store_is_empty_and_reading_writes_nothing(results: store.Store) -> None:
    assert results.runs().empty
    assert list(results.runs().columns) == list(store.COLUMNS)
    assert results.curves().empty
    assert results.sweeps() == []
    with pytest.raises(ValueError, match=r"no sweep 'x' \(its sweeps: none\)"):
        results.sweep("x")
    assert not Path(results.path).exists()


@pytest.mark.parametrize("run_id", ["../../../etc", "0123", "0123456789ABCDEF", "", "0123456789abcdef/x"])
def test_ids_that_are_none_are_refused(results: store.Store, run_id: str) -> None:
    with pytest.raises(ValueError, match="no run id"):
        results.claim(run_id, "me")


@pytest.mark.parametrize("name", ["..", "a/b", "", "-x", ".x"])
def test_names_of_sweeps_that_lead_elsewhere_are_refused(results: store.Store, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a sweep"):
        results.add_sweep(name, {}, [])


def test_a_folder_of_the_store_that_is_a_link_is_refused(results: store.Store, tmp_path: Path) -> None:
    (Path(results.path) / "runs").mkdir(parents=True)
    (Path(results.path) / "runs" / ("0" * 16)).symlink_to(tmp_path)
    with pytest.raises(ValueError, match="symbolic link"):
        results.runs()


def test_a_folder_that_is_no_run_is_told_not_skipped(results: store.Store) -> None:
    (Path(results.path) / "runs" / "notes").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'notes'.*no run id.*move it"):
        results.runs()


def test_a_run_is_added_once(results: store.Store, make_run: Make, identity: Any) -> None:
    kept = record.config_record(make_run(), identity)
    results.add_run(kept["run_id"], kept)
    path = results.folder(kept["run_id"]) / "config.json"
    before = path.stat().st_ino
    results.add_run(kept["run_id"], kept)
    assert path.stat().st_ino == before
    other = json.loads(json.dumps(kept))
    other["run"]["tokens"] = 1280
    with pytest.raises(ValueError, match=r"another config.*run\.tokens: 640 there, 1280 here"):
        results.add_run(kept["run_id"], other)


def test_a_corpus_that_moved_is_found_at_its_new_place(results: store.Store, make_run: Make, identity: Any) -> None:
    kept = record.config_record(make_run(), identity)
    moved = json.loads(json.dumps(kept))
    moved["run"]["data"]["source"] = {"kind": "elsewhere"}
    results.add_run(kept["run_id"], kept)
    results.add_run(kept["run_id"], moved)
    assert results.config(kept["run_id"]) == moved


def test_a_sweep_is_its_latest_members_and_runs_stay(results: store.Store, make_run: Make, fill: Fill) -> None:
    runs = [make_run(), make_run(seed=1), make_run(seed=2)]
    first = fill(results, runs[:2])
    second = fill(results, runs[1:])
    assert [member["run_id"] for member in results.sweep("small")["members"]] == second
    assert sorted({*first, *second}) == results.run_ids()
    assert config.Sweep.model_validate(results.sweep("small")["config"]).name == "small"
    with pytest.raises(ValueError, match=r"lists run 0{16}.*add the run first"):
        results.add_sweep("small", {}, [{"run_id": "0" * 16, "labels": {}}])


def test_runs_have_the_columns_of_the_contract_whatever_their_status(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    runs = [make_run(seed=seed) for seed in range(6)]
    done, diverged, failed, running, stopped, planned = fill(results, runs, flops_budget=1e9)
    finish(results, done, runs[0], trainers.outcome("finished", loss=2.0))
    finish(results, diverged, runs[1], trainers.outcome("diverged", step=5, reason="loss is nan"))
    for run_id, end in (
        (failed, lambda one: one.fail("ValueError: no", "tb")),
        (stopped, lambda one: one.release("bye")),
    ):
        lease = results.claim(run_id, "me")
        assert lease is not None
        end(lease)
    assert results.claim(running, "me") is not None

    frame = results.runs("small")
    assert list(frame.columns) == [*store.COLUMNS, "flops_budget"]
    assert list(frame["run_id"]) == [done, diverged, failed, running, stopped, planned]
    assert list(frame["status"]) == ["finished", "diverged", "failed", "running", "planned", "planned"]
    assert frame["reason"].isna().tolist() == [True, False, False, True, False, True]
    assert frame["loss"].tolist()[0] == 2.0
    assert frame["loss"].isna().tolist() == [False] + [True] * 5
    assert frame["flops_spent"].tolist()[1] == frame["flops"].tolist()[1] * 5 / 20
    for name in ("params", "tokens", "flops", "loss", "loss_se", "seconds", "learning_rate", "epochs", "flops_budget"):
        assert pd.api.types.is_numeric_dtype(frame[name]), name
    assert set(frame["sweep"]) == {"small"}
    counted = [name for name in store.COLUMNS if name not in ("parent_run_id", "reason", "device", *columns.MEASURED)]
    assert not frame[counted].isna().any().any()


def test_a_run_of_two_sweeps_is_one_row_with_the_labels_of_the_one_asked_for(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    run = make_run()
    (run_id,) = fill(results, [run], "first", flops_budget=1.0)
    finish(results, run_id, run, trainers.outcome("finished", loss=2.0), sweep="first")
    fill(results, [run], "second", flops_budget=2.0)
    assert results.runs()[["sweep", "status"]].to_numpy().tolist() == [["first", "finished"]]
    assert results.runs("second")[["sweep", "flops_budget"]].to_numpy().tolist() == [["second", 2.0]]


def test_curves_and_history_merge_attempts_and_the_later_one_wins(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    (run_id,) = fill(results, [make_run()])

    def attempt(*steps: int, loss: float) -> None:
        lease = results.claim(run_id, "me")
        assert lease is not None
        for step in steps:
            cost = {"step": step, "tokens": 32 * step, "flops": 1e3 * step}
            lease.metrics([{"kind": "train", **cost, "loss": loss + 1}])
            lease.metrics(
                [{"kind": "validation", **cost, "loss": loss, "loss_se": 0.1, "bits_per_byte": 1.0, "seconds": 1.0}]
            )
        lease.release("asked to stop")

    attempt(5, 10, 15, loss=3.0)
    attempt(15, 20, loss=2.0)
    curves = results.curves("small")
    assert curves["step"].tolist() == [5, 10, 15, 20]
    assert curves["loss"].tolist() == [3.0, 3.0, 2.0, 2.0]
    assert {"run_id", "tokens", "flops", "loss_se", "params", "params_non_embedding", "seed"} <= set(curves.columns)
    assert results.history(run_id)["loss"].tolist() == [4.0, 4.0, 3.0, 3.0]
    assert "kind" not in results.history(run_id).columns


def test_a_line_cut_short_by_a_crash_is_left_out_and_a_broken_one_told(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    (run_id,) = fill(results, [make_run()])
    lease = results.claim(run_id, "me")
    assert lease is not None
    lease.metrics([{"kind": "train", "step": 1, "loss": 1.0}])
    path = results.folder(run_id) / "metrics" / "000001.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "train", "ste')
    assert results.history(run_id)["step"].tolist() == [1]
    path.write_text('{"kind": "train", "ste\n' + whole)
    with pytest.raises(ValueError, match=r"000001\.jsonl, line 1, is not readable.*the run's result stays"):
        results.history(run_id)


def test_another_format_is_told_with_a_reason(results: store.Store, make_run: Make, fill: Fill) -> None:
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    for path in (results.folder(run_ids[0]) / "config.json", results.sweep_folder("small") / "sweep.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
        if path.name == "config.json":
            assert results.runs("small")["status"].tolist() == ["damaged", "planned"]
            assert "format 99" in results.runs("small")["reason"][0]
    with pytest.raises(ValueError, match=r"format 99.*use the version that wrote it"):
        results.runs("small")


def test_a_full_disk_leaves_no_half_line(results: store.Store, make_run: Make, fill: Fill) -> None:
    """The size of a file may not grow beyond a limit, as on a full disk: what was cut short is written when it may."""
    (run_id,) = fill(results, [make_run()])
    program = f"""
import resource, signal, sys
from scaling import store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
lease = store.Store({str(results.path)!r}).claim({run_id!r}, "me")
lease.metrics([{{"kind": "train", "step": 1}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
try:
    lease.metrics([{{"kind": "train", "step": step}} for step in range(2, 100)])
except OSError as error:
    print("told", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert open({str(results.folder(run_id))!r} + "/metrics/000001.jsonl").read().count("step") == 1
lease.metrics([{{"kind": "train", "step": 100}}])
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("told")
    assert results.history(run_id)["step"].tolist() == list(range(1, 101))


def test_a_store_from_before_the_scale_of_initial_values_goes_on(
    results: store.Store, make_run: Make, identity: Any
) -> None:
    """A config of then has no such field, and the run of now has the same name and is the same."""
    run = make_run()
    kept = record.config_record(run, identity)
    assert "init_scale" not in kept["run"]["parametrization"]
    results.add_run(kept["run_id"], kept)
    results.add_run(kept["run_id"], record.config_record(record.read(results.config(kept["run_id"]))[0], identity))
    other = record.config_record(make_run(parametrization__init_scale=2.0), identity)
    assert other["run_id"] != kept["run_id"]
    assert record.read(other)[0].parametrization.init_scale == 2.0
