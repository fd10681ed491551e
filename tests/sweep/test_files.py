"""Sweeps from files: Python, stored JSON, overrides, and what is no sweep."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, store
from scaling.config import grids, loading
from scaling.store import record

Make = Callable[..., config.Run]

PYTHON = """
from scaling import config
def sweep():
    return config.Sweep(name="from-python", base=config.Run.from_json({run!r}))
"""


@pytest.fixture
def python(make_run: Make, tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(PYTHON.format(run=make_run().to_json()))
    return path


def test_a_python_file_gives_its_sweep(python: Path, make_run: Make) -> None:
    assert loading.load(python) == config.Sweep(name="from-python", base=make_run())


def test_overrides_are_applied_in_one_go(python: Path) -> None:
    sweep = loading.load(
        python, ["base.model.width=15", "base.model.heads=3", "base.model.position=none", "name=other", "base.seed=4"]
    )
    assert (sweep.base.model.width, sweep.name, sweep.base.seed) == (15, "other", 4)
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        loading.load(python, ["base.sed=4"])
    with pytest.raises(ValueError, match="no override"):
        loading.load(python, ["base.seed"])


def test_the_last_of_two_overrides_of_a_field_counts(python: Path) -> None:
    assert loading.load(python, ["base.seed=1", "base.seed=2"]).base.seed == 2


def test_a_sweep_is_read_from_its_json_and_from_the_store(
    make_run: Make, fill: Callable[..., list[str]], tmp_path: Path
) -> None:
    sweep = config.Sweep(name="small", base=make_run(), grid=grids.Axis(field="seed", values=(0, 1)))
    (tmp_path / "plain.json").write_text(sweep.to_json())
    assert loading.load(tmp_path / "plain.json") == sweep
    results = store.Store(tmp_path / "store")
    fill(results, [make_run()])
    again = loading.load(results.sweep_folder("small") / "sweep.json", ["base.seed=3"])
    assert again == config.Sweep(name="small", base=make_run(seed=3))


def test_a_stored_run_is_a_sweep_of_itself_under_the_same_name(
    make_run: Make, fill: Callable[..., list[str]], identity: Any, tmp_path: Path
) -> None:
    results = store.Store(tmp_path / "store")
    (run_id,) = fill(results, [make_run(seed=9)])
    sweep = loading.load(results.folder(run_id) / "config.json")
    assert sweep.name == f"run-{run_id}"
    assert [p.run.run_id(identity.data_sha256) for p in sweep.points()] == [run_id]
    assert record.config_record(sweep.base, identity) == results.config(run_id)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "x = 1", r"has no function sweep\(\); define one"),
        ("a.py", "sweep = 3", r"has no function sweep\(\)"),
        ("a.py", "def sweep(): return {}", r"returns a dict; it must return a scaling.config.Sweep"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[1]", "valid dictionary|Sweep"),
        ("a.json", '{"nme": "x"}', "no field 'nme'; did you mean 'name'"),
        ("a.yaml", "name: x", r"neither .py nor .json"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        loading.load(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no file .*nothing.py; give a Python file with a function sweep\(\)"
    ):
        loading.load(tmp_path / "nothing.py")


def test_a_run_of_another_version_is_refused_by_its_unknown_field(
    make_run: Make, fill: Callable[..., list[str]], tmp_path: Path
) -> None:
    results = store.Store(tmp_path / "store")
    (run_id,) = fill(results, [make_run()])
    path = results.folder(run_id) / "config.json"
    content = json.loads(path.read_text())
    content["run"]["dropout"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Run has no field 'dropout'"):
        loading.load(path)
