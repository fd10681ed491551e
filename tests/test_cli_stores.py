"""The command line on stores: tables, plots and filters by config fields, damaged runs, data that has changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from scaling import config, store
from scaling.config import grids
from scaling.data import corpus as corpora
from scaling.planning import plan, registering
from scaling.store import record
from tests import command

Make = Callable[..., config.Run]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def scaling(tmp_path: Path) -> Command:
    """`scaling ARGUMENTS…` in the folder of the test and this process; gives the exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        ended = command.here(*arguments, cwd=tmp_path)
        return ended.code, ended.out + ended.err

    return run


class Corpus:
    """A corpus as far as records need it."""

    data_sha256, unique_tokens, validation_id, tokenizer_id = "a" * 64, 100_000, "b" * 16, "bytes"


@pytest.fixture
def swept(tiny: Make, tmp_path: Path) -> Path:
    """A finished sweep over weight decay × width × tokens, as if trained: losses of a planted law."""
    decays = grids.Axis(field="optimizer.weight_decay", values=(0.0, 0.1))
    widths = grids.Axis(field="model.width", values=(16, 24, 32, 48))
    tokens = grids.Axis(field="tokens", values=(64 * 20, 64 * 40, 64 * 80))
    sweep = config.Sweep(name="small", base=tiny(), grid=grids.Product(parts=(decays, widths, tokens)))
    results = store.Store(tmp_path / "results")
    resolved = plan.resolve(sweep, lambda data: Corpus, results)  # type: ignore[arg-type, return-value]
    registering.register("small", sweep, resolved.runs, results)
    for number, planned in enumerate(resolved.runs):
        run, run_id = planned.run, str(planned.run_id)
        counted = record.columns(run, Corpus())
        loss = 1.5 + 40 / counted["params"] ** 0.35 + 90 / run.tokens**0.4 + run.optimizer.weight_decay
        held = results.claim(run_id, "me")
        assert held is not None
        ended = {"run_id": run_id, "sweep": "small", "device": "cpu", "status": "finished", "reason": None}
        measured = {"loss": loss + 1e-4 * (-1) ** number, "loss_se": 0.01, "bits_per_byte": 2.0, "seconds": 1.0}
        assert held.publish(record.result_row(counted, planned.labels, measured | ended))
    return tmp_path


def test_runs_are_told_apart_by_the_fields_in_which_they_differ(swept: Path, scaling: Command) -> None:
    assert "optimizer.weight_decay" in scaling("status", "small")[1]
    _, printed = scaling("table", "results")
    assert len(printed.splitlines()) == 25
    for name in ("t.csv", "t.parquet"):
        assert scaling("table", "results", "--out", name) == (0, f"24 rows of 39 columns in {name}\n")
    assert (swept / "t.csv").read_text() == printed
    frame, parquet = pd.read_csv(swept / "t.csv"), pd.read_parquet(swept / "t.parquet")
    assert list(parquet) == list(frame)
    assert parquet["optimizer.weight_decay"].tolist() == frame["optimizer.weight_decay"].tolist()
    assert sorted(frame["model.width"].unique()) == [16, 24, 32, 48]


@pytest.mark.parametrize(
    ("data", "where", "rows"),
    [
        ("results", ("optimizer.weight_decay=0.1",), 12),
        ("results", ("optimizer.weight_decay=0.1", "model.width=16"), 3),
        ("results", ("clip=null", "model.tied=false", "model.norm=rmsnorm"), 24),  # in which no two runs differ
        ("t.csv", ("optimizer.weight_decay=0.1",), 12),
    ],
)
def test_runs_are_chosen_by_any_field(
    swept: Path, scaling: Command, data: str, where: tuple[str, ...], rows: int
) -> None:
    scaling("table", "results", "--out", "t.csv")
    code, printed = scaling("table", data, *(word for text in where for word in ("--where", text)))
    assert (code, len(printed.splitlines())) == (0, rows + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "results", "--out", "t.xlsx"), "neither .csv nor .parquet"),
        (("table", "results", "--out", "nowhere/t.csv"), "nowhere is no folder"),
        (("table", "results", "--where", "optimizer.decay=1"), "no column 'optimizer.decay'"),
        (("table", "results", "--where", "optimizer.weight_decay=2"), "leaves none of 24 rows"),
        (("plot", "results", "--hue", "seed"), "--y and --hue belong to --x"),
        (("plot", "results", "--x", "model.widht"), "no column 'model.widht'"),
    ],
)
def test_what_is_not_there_is_refused(swept: Path, scaling: Command, arguments: tuple[str, ...], message: str) -> None:
    code, said = scaling(*arguments)
    assert code == 2
    assert message in said


def test_a_metric_is_drawn_over_a_field(swept: Path, scaling: Command) -> None:
    axes = ("--x", "optimizer.weight_decay", "--y", "perplexity", "--hue", "model.width")
    _, path = scaling("plot", "results", *axes, "--format", "png")
    assert (swept / path.strip()).read_bytes().startswith(b"\x89PNG")
    assert scaling("plot", "results", "--x", "optimizer.beta2")[1].endswith("loss_optimizer.beta2.pdf\n")


def test_a_fit_warns_of_pooled_settings_and_its_advice_ends_the_warning(swept: Path, scaling: Command) -> None:
    _, told = scaling("fit", "results", "--resamples", 20)
    (warning,) = [line for line in told.splitlines() if "optimizer.weight_decay" in line]
    advice = warning.partition("e.g. ")[2].partition(",")[0].split()
    assert advice[0] == "--where"
    assert "optimizer.weight_decay" not in scaling("fit", "results", "--resamples", 20, *advice)[1]


def test_a_damaged_store_is_shown_fitted_and_reported(swept: Path, scaling: Command) -> None:
    results = store.Store(swept / "results")
    run_ids = [member["run_id"] for member in results.sweep("small")["members"]]
    shutil.rmtree(results.folder(run_ids[3]))
    path = results.folder(run_ids[5]) / "result.json"
    path.write_text(path.read_text()[:100])
    assert "small: 22 finished, 2 damaged" in scaling("status")[1]
    _, shown = scaling("status", "small")
    for run_id, name, remedy in ((run_ids[3], "config.json", "sweep again"), (run_ids[5], "result.json", "remove it")):
        row, line = [line for line in shown.splitlines() if line.startswith(run_id)]
        assert "damaged" in row
        assert f"is damaged: {results.path}/runs/{run_id}/{name}" in line
        assert remedy in line
    scaling("table", "results", "--out", "t.csv")
    text, frame = (swept / "t.csv").read_text(), pd.read_csv(swept / "t.csv").set_index("run_id")
    assert frame["status"].value_counts().to_dict() == {"finished": 22, "damaged": 2}
    assert ",1280," in text  # whole numbers stay whole
    assert ",1280.0," not in text
    fitted = scaling("fit", "results", "--resamples", 20)[1]
    assert "22 used of 24; dropped: 2 where status is damaged" in fitted
    for arguments in (("plot", "results"), ("plot", "results", "--x", "tokens"), ("gc", "results")):
        assert scaling(*arguments)[0] == 0
    assert "22 finished of 24" in scaling("report", "results", "--out", "page", "--resamples", 20)[1]


def test_the_advice_after_an_edit_of_the_corpus_works_when_followed(tiny: Make, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"text {number} of the first version. " * 60)
    data = {"kind": "files", "glob": f"{texts}/*.txt", "validation_fraction": 0.5}
    sweep = config.Sweep(name="small", base=tiny(data__source=data))
    (tmp_path / "small.json").write_text(sweep.to_json())
    results = store.Store(tmp_path / "results")
    resolved = plan.resolve(sweep, corpora.prepare, results)
    registering.register("small", sweep, resolved.runs, results)
    (old,) = results.runs("small").to_dict("records")
    for path in texts.iterdir():
        path.write_text(path.read_text().replace("first", "second"))

    command.process("worker", "results", "small", cwd=tmp_path)
    failed = results.status(old["run_id"])
    assert failed["status"] == "failed"
    assert "start the sweep again to plan runs on the new data" in failed["reason"]
    again = command.process("sweep", "small.json", "--workers", 1, cwd=tmp_path)
    assert again.code == 0, again
    assert "the data has changed since small was planned: 1 runs on the old data" in again.out
    (new,) = store.Store(results.path).runs("small").to_dict("records")
    assert (new["status"], new["data_sha256"] == old["data_sha256"]) == ("finished", False)
