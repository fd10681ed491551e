"""The command line as a person meets it: light to start, clear when refused, and a whole sweep from plan to report."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import config, store
from scaling.config import grids, rates
from tests import command
from tests.command import Ended

Make = Callable[..., config.Run]
HEAVY = ("jax", "wandb", "pandas", "matplotlib", "flax", "optax", "scipy")


def imported(*arguments: object, cwd: Path) -> set[str]:
    """Which heavy packages a command imports."""
    code = (
        f"import sys; sys.argv = {['scaling', *map(str, arguments)]!r}\nfrom scaling import cli\n"
        f"try: cli.main()\nexcept SystemExit: pass\nprint('IMPORTED', *(m for m in {HEAVY} if m in sys.modules))"
    )
    ended = command.ran([sys.executable, "-c", code], cwd, command.environment())
    assert ended.code == 0, ended
    return set(ended.out.rpartition("IMPORTED")[2].split())


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def sizes() -> grids.Ladder:
    return grids.Ladder(sizes=(grids.Size(width=16, depth=1), grids.Size(width=24, depth=1)))


@pytest.fixture(scope="module")
def small(tiny: Make, sizes: grids.Ladder) -> config.Sweep:
    """Two sizes on two numbers of tokens."""
    return config.Sweep(name="small", base=tiny(), grid=grids.IsoToken(tokens=(64 * 20, 64 * 40), sizes=sizes))


@pytest.fixture
def file(small: config.Sweep, tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(small.to_json())
    return path


# Light to start


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    ended = [command.process("--help", cwd=tmp_path) for _ in range(3)]
    assert [each.code for each in ended] == [0, 0, 0]
    for name in (
        "plan", "sweep", "status", "doctor", "gc", "laws", "fit", "predict", "compare", "backtest", "next", "table",
        "plot", "report", "reproduce",
    ):  # fmt: skip
        assert name in ended[0].out
    assert min(each.cpu_seconds for each in ended) < 0.8
    assert imported("--help", cwd=tmp_path) == set()


@pytest.mark.parametrize("prepared", [False, True])
def test_a_plan_starts_no_backend_and_writes_nothing(file: Path, prepared: bool) -> None:
    if prepared:
        assert command.here("prepare", file, cwd=file.parent).code == 0
    before = written(file.parent)
    ended = command.here("plan", file, "--store", "new", "--set", "base.seed=1", cwd=file.parent)
    assert (ended.code, ended.err) == (0, "")
    assert "small: sweep, 4 runs" in ended.out
    assert "7,680 tokens" in ended.out
    assert written(file.parent) == before
    assert imported("plan", file, cwd=file.parent) <= {"scipy"}


# Clear when refused


def edited(file: Path, **changes: Any) -> None:
    tree = json.loads(file.read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        part = tree
        for each in path:
            part = part[each]
        part[last] = value
    file.write_text(json.dumps(tree))


def files_source(pattern: str) -> str:
    return json.dumps({"kind": "files", "glob": pattern, "validation_fraction": 0.5})


REFUSALS: dict[str, tuple[Sequence[str], str]] = {
    "an unknown field": (["--set", "base.modle.width=8"], "Run has no field 'modle'; did you mean 'model'?"),
    "an unknown field within": (["--set", "base.model.widht=8"], "no field 'widht'; did you mean 'width'?"),
    "a negative width": (["--set", "base.model.width=-8"], "width: Input should be greater than 0 (got -8)"),
    "heads that do not divide": (["--set", "base.model.heads=3"], "3 heads do not divide width 16"),
    "tokens fewer than a batch": (["--set", "base.tokens=10"], "10 tokens are fewer than one batch of 64"),
    "a budget fewer than a batch": (["--set", "grid.tokens=[10]"], "10 tokens are fewer than a batch of 64"),
    "a word for a number": (["--set", "base.seed=first"], "seed: Input should be a valid integer"),
    "no override": (["--set", "base.seed"], "write FIELD=VALUE"),
    "a missing dataset of files": (["--set", f"base.data.source={files_source('nowhere/*.txt')}"], "matches no file"),
    "an empty corpus": (["--set", f"base.data.source={files_source('void/*.txt')}"], "holds no text"),
    "a missing dataset of TFDS": (
        ["--set", 'base.data.source={"kind": "tfds", "name": "no_such_set", "train_split": "train", '
         '"validation_split": "test", "text_key": "text", "data_dir": "datasets"}'],
        "no_such_set",
    ),
    "a store that is a file": (["--store", "file"], "file is a file, not a folder"),
    "a store below a file": (["--store", "file/below"], "file is a file, not a folder"),
}  # fmt: skip


def refused(ended: Ended, message: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("error: "), ended.err
    assert message in " ".join(ended.err.split()), ended.err
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_trained_is_refused_in_a_message_and_nothing_is_written(file: Path, case: str) -> None:
    arguments, message = REFUSALS[case]
    void = file.parent / "void"
    void.mkdir()
    for number in range(8):
        (void / f"{number}.txt").touch()
    (file.parent / "file").write_text("here")
    before = written(file.parent)
    cache = {"SCALING_CACHE": str(file.parent / "cache")}
    ended = command.here("sweep", file, *arguments, "--workers", 1, cwd=file.parent, env=cache)
    refused(ended, message)
    after = [name for name in written(file.parent) if not name.endswith(".lock")]
    assert [name for name in after if name not in ("cache", "cache/corpora")] == before


@pytest.mark.parametrize(
    "case", ["an unknown field", "heads that do not divide", "a missing dataset of files", "a store that is a file"]
)
def test_a_plan_refuses_the_same(file: Path, case: str) -> None:
    arguments, message = REFUSALS[case]
    (file.parent / "file").write_text("here")
    before = written(file.parent)
    refused(command.here("plan", file, *arguments, cwd=file.parent), message)
    assert written(file.parent) == before


def test_a_config_with_an_unknown_field_is_refused(file: Path) -> None:
    edited(file, base__batchsize=4)
    refused(command.here("plan", file, cwd=file.parent), "did you mean 'batch_size'?")


def test_a_full_disk_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = written(file.parent)
    ended = command.here("sweep", file, cwd=file.parent, env={"SCALING_CACHE": str(file.parent / "cache")})
    refused(ended, "disk has 0.0 MB free; free some space")
    assert [name for name in written(file.parent) if not name.startswith("cache")] == before
    assert not list((file.parent / "cache").rglob("*.bin"))


HEADER = "params,tokens,loss\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not UTF-8 text"),
        (b"", "is empty"),
        (b"params,tokenz,loss\n1,2,3\n", "no column 'tokens' for input 'tokens' of hoffmann"),
        ((HEADER + "1e6,1e8,3.0\n").encode(), "1 runs for 5 parameters"),
        ((HEADER + "1e6,many,3.0\n" * 9).encode(), "many"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "table.csv").write_bytes(content)
    before = written(tmp_path)
    refused(command.here("fit", "table.csv", "--save", "fit.json", cwd=tmp_path), message)
    assert written(tmp_path) == before


def test_a_store_that_is_not_there_and_one_without_the_sweep_are_refused(tmp_path: Path) -> None:
    refused(command.here("status", "--store", "nothing", cwd=tmp_path), "there is no store at nothing")
    (tmp_path / "empty").mkdir()
    refused(
        command.here("status", "small", "--store", "empty", cwd=tmp_path), "has no sweep 'small' (its sweeps: none)"
    )
    refused(command.here("fit", "empty", cwd=tmp_path), "holds 0 sweeps (none); name one with --sweep")


def test_what_is_no_saved_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text("{}")
    refused(command.here("predict", "fit.json", "--params", 1, "--tokens", 1, cwd=tmp_path), "is not a saved fit")


def test_a_traceback_is_there_for_who_asks(file: Path) -> None:
    ended = command.process("plan", file, "--set", "base.tokens=10", cwd=file.parent, env={"SCALING_DEBUG": "1"})
    assert ended.code == 1
    assert "Traceback" in ended.err


# Fit and predict


def test_a_planted_law_is_fitted_saved_and_predicts(tmp_path: Path) -> None:
    lines = [
        f"{n:.0f},{d:.0f},{1.7 + 400 / n**0.34 + 410 / d**0.28}"
        for n in np.geomspace(1e5, 1e8, 5) for d in np.geomspace(1e7, 1e10, 5)
    ]  # fmt: skip
    (tmp_path / "law.csv").write_text(HEADER + "\n".join(lines))
    fitted = command.here("fit", "law.csv", "--save", "law.json", cwd=tmp_path)
    assert fitted.code == 0, fitted.err
    values = dict(line.split("95%")[0].split("=") for line in fitted.out.splitlines() if "95% interval" in line)
    found = {name.strip(): float(value) for name, value in values.items()}
    assert found == pytest.approx({"E": 1.7, "A": 400, "B": 410, "alpha": 0.34, "beta": 0.28}, rel=1e-3)
    predicted = command.here("predict", "law.json", "--params", 1e9, "--tokens", 1e11, cwd=tmp_path)
    assert predicted.code == 0, predicted.err
    loss = float(predicted.out.split("if hoffmann is right, ")[1].split("loss ")[1].split(",")[0])
    assert loss == pytest.approx(1.7 + 400 / 1e9**0.34 + 410 / 1e11**0.28, abs=1e-3)
    refused(command.here("predict", "law.json", "--params", 1e9, cwd=tmp_path), "needs --tokens")
    one = command.here("fit", "law.csv", "--law", "power", "--column", "x=tokens", cwd=tmp_path)
    assert one.code == 0, one.err
    assert "y = a · x^(-b)" in one.out
    refused(command.here("fit", "law.csv", "--column", "tokens", cwd=tmp_path), "write INPUT=COLUMN")


# A whole sweep


def attempts(folder: Path) -> dict[str, int]:
    """Attempts at each run of a store: its segments of metrics."""
    return {run.name: len(list((run / "metrics").glob("*.jsonl"))) for run in (folder / "runs").iterdir()}


def rows_of(folder: Path) -> dict[str, list[int]]:
    """Steps recorded of each run, over all its attempts."""
    return {
        run.name: sorted(
            row["step"]
            for segment in (run / "metrics").glob("*.jsonl")
            for row in map(json.loads, segment.read_text().splitlines())
            if row["kind"] == "train"
        )
        for run in (folder / "runs").iterdir()
    }


@pytest.fixture(scope="module")
def swept(small: config.Sweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A sweep of four runs whose learning rate is tuned at one width and transferred, by two workers."""
    folder = tmp_path_factory.mktemp("swept")
    rule = rates.Tuned(
        learning_rates=(1e-3, 2e-2, 0.4), tokens=64 * 20, at=grids.Ladder(sizes=(grids.Size(width=16, depth=1),))
    )
    mup = {"kind": "mup", "base_width": 16, "base_depth": 1, "base_head_size": 8}
    sweep = small.edit({"base.parametrization": mup, "learning_rate": rule})
    (folder / "small.json").write_text(sweep.to_json())
    return folder, command.process("sweep", "small.json", "--workers", 2, cwd=folder)


@pytest.mark.smoke
def test_a_sweep_tunes_trains_and_reports(swept: tuple[Path, Ended]) -> None:
    folder, ended = swept
    assert ended.code == 0, ended
    assert "learning rates at the minimum of a parabola in log lr" in ended.out
    assert "transferred to all sizes by µP" in ended.out
    results = store.Store(folder / "results")
    assert results.sweeps() == ["small", "small.tune"]
    tune, frame = results.runs("small.tune"), results.runs("small")
    assert len(tune) == 3
    assert frame["status"].tolist() == ["finished"] * 4
    (rate,) = set(frame["learning_rate"])
    assert 1e-3 < rate < 0.4
    assert rate not in set(tune["learning_rate"])
    assert frame["loss"].between(1.0, math.log(256)).all()
    assert sorted(frame["tokens"]) == [1280, 1280, 2560, 2560]
    assert attempts(folder / "results") == dict.fromkeys([*tune["run_id"], *frame["run_id"]], 1)
    assert (results.sweep_folder("small") / "report" / "report.html").is_file()
    assert len(results.curves("small")) == 4


def test_a_sweep_started_again_trains_nothing(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    results = store.Store(folder / "results")
    before = {name: (folder / "results" / name).stat().st_mtime_ns for name in written(folder / "results")
              if name.startswith("runs/") and (folder / "results" / name).is_file()}  # fmt: skip
    ended = command.process("sweep", "small.json", "--workers", 2, cwd=folder)
    assert ended.code == 0, ended
    after = {name: (folder / "results" / name).stat().st_mtime_ns for name in written(folder / "results")
             if name.startswith("runs/") and (folder / "results" / name).is_file()}  # fmt: skip
    assert after == before
    assert set(attempts(Path(results.path)).values()) == {1}


def test_status_shows_every_run_whole(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    ended = command.here("status", "small", cwd=folder, env={"COLUMNS": ""})
    assert ended.code == 0, ended
    frame = store.Store(folder / "results").runs("small")
    for row in frame.itertuples():
        (line,) = [line for line in ended.out.splitlines() if str(row.run_id) in line]
        assert f"{row.loss:.4f}" in line
        assert "finished" in line
    listed = command.here("status", cwd=folder)
    assert "small: 4 finished" in listed.out.splitlines()
    assert "small.tune: 3 finished" in listed.out.splitlines()


def test_a_plan_marks_what_the_store_has(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    ended = command.here("plan", "small.json", cwd=folder)
    assert ended.code == 0, ended
    assert ended.out.count("finished") == 7
    assert "(0.0 s to do)" in ended.out
    assert "runs of this store, 2 sizes of step" in ended.out


def test_a_stored_sweep_is_reported_and_its_fit_refused_where_runs_are_few(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    ended = command.here("report", "results", "--out", "pages", "--title", "Four runs", cwd=folder)
    assert ended.code == 0, ended
    assert "Four runs" in (folder / "pages" / "report.html").read_text()
    refused(command.here("fit", "results", cwd=folder), "4 runs for 5 parameters")


def test_a_stored_run_is_trained_again_from_its_config_under_its_own_name(swept: tuple[Path, Ended]) -> None:
    folder, _ = swept
    results = store.Store(folder / "results")
    first = results.runs("small").iloc[0]
    path = results.folder(first["run_id"]) / "config.json"
    ended = command.process("sweep", path, "--store", "again", "--workers", 1, cwd=folder)
    assert ended.code == 0, ended
    again = store.Store(folder / "again")
    (row,) = again.runs(f"run-{first['run_id']}").to_dict("records")
    assert row["run_id"] == first["run_id"]
    # This worker has all cores, those of the sweep one each: another order of float32 sums (1e-7 of the loss was seen),
    # which 40 steps amplify. Another seed or learning rate differs by 1e-3 and more.
    assert row["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert again.config(row["run_id"]) == results.config(row["run_id"])


@pytest.mark.engines
def test_two_sweepers_at_once_train_each_run_once(small: config.Sweep, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(small.to_json())
    started = [
        subprocess.Popen(
            command.line("sweep", "small.json", "--workers", 1), cwd=tmp_path, env=command.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [each.communicate()[0].decode() for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    results = store.Store(tmp_path / "results")
    frame = results.runs("small")
    assert frame["status"].tolist() == ["finished"] * 4
    assert attempts(Path(results.path)) == dict.fromkeys(frame["run_id"], 1)
    steps = dict(zip(frame["run_id"], frame["tokens"] // 64, strict=True))
    assert rows_of(Path(results.path)) == {run_id: list(range(1, count + 1)) for run_id, count in steps.items()}
    leases = [sorted(p.name for p in (results.folder(r) / "leases").iterdir()) for r in frame["run_id"]]
    assert leases == [["000001.json", "000002.json"]] * 4  # one taken, one that sealed the result
