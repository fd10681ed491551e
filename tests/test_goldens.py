"""What an earlier commit stored keeps its names, is read, and is continued: see `tests/goldens`."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from scaling import config
from tests.goldens import __main__ as goldens
from tests.goldens import running

# Each case: a run's config, the digest of its corpus, and the name that the commit before the rebuild gave it.
NAMED = json.loads((running.HERE / "ids.json").read_text())
STORE = running.HERE / "store"
# The results of the same sweep in that commit, trained without a stop, and the stack that it was trained on.
CONTINUED = json.loads((running.HERE / "continued.json").read_text())


@pytest.mark.parametrize("case", NAMED, ids=[case["run_id"] for case in NAMED])
def test_a_run_keeps_its_name(case: dict[str, Any]) -> None:
    assert config.Run.model_validate(case["run"]).run_id(case["data_sha256"]) == case["run_id"]


def content(store: Path) -> dict[str, bytes]:
    """The files of runs that have a result, but for what a lease may tidy up."""
    ended = [path.parent for path in store.glob("runs/*/result.json")]
    files = [file for run in ended for file in run.rglob("*") if file.is_file() and "checkpoints" not in file.parts]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def results(store: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in store.glob("runs/*/result.json")}


def ran(arguments: list[str], cache: Path) -> str:
    ended = running.command(arguments, running.TREE, cache, running.cores()[0])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_stopped_sweep_is_continued_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    shutil.copytree(STORE, store)
    before = content(store)
    open_before = CONTINUED["results"].keys() - results(store).keys()
    assert len(before) > 0
    assert len(open_before) == 3  # stopped at a checkpoint; and two that are planned, to start from a stored trunk

    listed = ran(["status", "kept", "--store", str(store)], cache).splitlines()
    for run_id in CONTINUED["results"]:
        state = results(store).get(run_id, {"status": "planned"})["status"]
        assert [run_id for line in listed if run_id in line and state in line] == [run_id]

    ran(["sweep", str(store / "sweeps/kept/sweep.json"), "--store", str(store), "--workers", "1"], cache)
    assert {name: (store / name).read_bytes() for name in before} == before
    here = running.stack(running.TREE) == CONTINUED["stack"]
    after = results(store)
    assert after.keys() == CONTINUED["results"].keys()
    for run_id, expected in CONTINUED["results"].items():
        row = {name: after[run_id].get(name, "missing") for name in expected}
        if here:
            assert row == expected
        else:
            assert row["loss"] == (expected["loss"] and pytest.approx(expected["loss"], rel=1e-4))
    stopped = next(path for path in store.glob("runs/*/metrics") if len(list(path.iterdir())) == 2)
    again = [json.loads(line)["step"] for line in (stopped / "000002.jsonl").read_text().splitlines()]
    assert min(again) == 106  # it was saved after step 105

    assert (store / "sweeps/kept/report/report.html").stat().st_size > 0


OLD: dict[str, Any] = {"run_id": "a", "result": {"loss": 2.0, "reason": None}, "train": {"loss": [3.0, 2.5]}}


@pytest.mark.parametrize(
    ("changed", "different", "words"),
    [
        ({"more": 1}, False, "id equal, 5 values equal"),
        ({"run_id": "b"}, True, "id DIFFERS (b now)"),
        ({"train": {"loss": [3.0, math.nextafter(2.5, 3.0)]}}, True, "1.8e-16 in train.loss[1]"),
        ({"train": {"loss": [3.0]}}, True, "train.loss: [3.0, 2.5] before, [3.0] now"),
        ({"train": {}}, True, "train.loss: [3.0, 2.5] before, 'missing' now"),
        ({"result": {"loss": None, "reason": None}}, True, "result.loss: 2.0 before, None now"),
    ],
)
def test_a_comparison_tells_what_differs(changed: dict[str, Any], different: bool, words: str) -> None:
    new: dict[str, None] = {}
    found, told = goldens.difference(OLD, {**OLD, **changed}, new)
    assert (found, list(new)) == (different, [name for name in changed if name not in OLD])
    assert words in told
