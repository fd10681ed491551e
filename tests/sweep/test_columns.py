"""The table of columns: what is written, read and documented follows it, and the analysis has its flags."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import checks
from analysis import settings as analysis_settings
from scaling import config, counting, human, store
from scaling.commands import tabling
from scaling.launch import watch
from scaling.store import columns, record

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


def test_the_page_of_columns_is_the_table() -> None:
    page = ROOT / "docs" / "columns.md"
    assert page.read_text() == columns.document(), "write columns.document() to docs/columns.md"


def test_every_column_of_a_config_is_counted(make_run: Make, identity: Any) -> None:
    counted = record.columns(make_run(), identity)
    by_origin = {column.name for column in columns.TABLE if column.origin == "config"}
    assert by_origin == set(counted) - {"role", "parent_run_id"}
    kinds = {"string": str, "int": int, "float": float}
    for column in columns.TABLE:
        if column.origin == "config":
            assert type(counted[column.name]) is kinds[column.dtype], column.name


@pytest.mark.parametrize("column", [column for column in columns.TABLE if column.fields], ids=lambda each: each.name)
def test_a_fit_warns_of_the_fields_that_may_not_be_pooled(column: columns.Column) -> None:
    """The analysis imports nothing of the store: its rules are held equal to the table's flags here."""
    of_its_own = {*checks.ONE_EACH, *checks.KINDS, "schedule"}  # refused or warned of by the fixed column
    for field in column.fields:
        allowed = analysis_settings.may_differ(field, ("params", "tokens"))
        covered = analysis_settings.COVERED.get(field, column.name) in of_its_own
        assert column.pooled == (allowed and not covered), field


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ({"loss": 2.0, "tokens": 640, "context": 16}, {"perplexity": math.exp(2.0), "examples": 40}),
        ({"loss": None, "tokens": 640, "context": 16}, {"perplexity": None, "examples": 40}),
        ({"loss": 1e9}, {"perplexity": math.inf}),
        ({"loss": 2.0, "vocabulary_size": None}, {"perplexity": None}),
        ({"loss": 2.0, "perplexity": None}, {}),
        ({"status": "damaged"}, {}),
    ],
)
def test_rows_of_earlier_versions_get_the_columns_that_follow(row: dict[str, Any], more: dict[str, Any]) -> None:
    assert columns.derived(row) == {**row, **more}


def test_a_row_is_in_the_order_of_the_table_with_metrics_after_it(make_run: Make, identity: Any) -> None:
    ended = {"run_id": "0" * 16, "sweep": "s", "seconds": 1.0, "device": "cpu", "status": "finished", "reason": None}
    measured = {"metric/accuracy": 0.5, "metric/accuracy_se": 0.1, "loss": 2.0, "loss_se": 0.1, "bits_per_byte": None}
    row = record.result_row(record.columns(make_run(), identity), {"role": "single", "stage": "x"}, measured | ended)
    assert list(row) == [*columns.COLUMNS, "metric/accuracy", "metric/accuracy_se"]
    assert row["perplexity"] == math.exp(2.0)


FIRST_VERSION = (  # in this order in the result.json of every store so far
    "run_id", "sweep", "family", "role", "parent_run_id", "width", "depth", "params", "params_non_embedding",
    "params_with_head", "tokens", "unique_tokens", "epochs", "flops", "flops_spent", "flops_6nd", "batch_tokens",
    "context", "vocabulary_size", "tokenizer_id", "data_sha256", "validation_id", "precision", "parametrization",
    "optimizer", "schedule", "learning_rate", "seed", "loss", "loss_se", "bits_per_byte", "seconds", "device", "status",
    "reason",
)  # fmt: skip


def test_the_columns_of_earlier_versions_stay_in_order_and_their_results_are_read(
    results: store.Store, make_run: Make, fill: Fill, identity: Any
) -> None:
    assert tuple(name for name in columns.COLUMNS if name in FIRST_VERSION) == FIRST_VERSION
    (run_id,) = fill(results, [make_run()])
    row = {**dict.fromkeys(FIRST_VERSION), **record.columns(make_run(), identity), "run_id": run_id, "loss": 2.0}
    row = {name: {**row, "status": "finished"}[name] for name in FIRST_VERSION}
    from scaling.storage import atomic

    results.run(run_id).create("result.json", atomic.dumps(row))
    (read,) = results.runs("small").to_dict("records")
    assert (read["perplexity"], read["examples"], read["status"]) == (math.exp(2.0), 40, "finished")


def put(results: store.Store, fill: Fill, runs: list[config.Run]) -> Any:
    fill(results, runs)
    return results.runs("small")


SETTINGS: dict[str, tuple[list[dict[str, Any]], dict[str, list[Any]]]] = {
    "nothing differs but the seed": ([{}, {"seed": 1}], {}),
    "a field of the optimizer": (
        [{"optimizer__weight_decay": 0.1}, {"optimizer__weight_decay": 0.2}], {"optimizer.weight_decay": [0.1, 0.2]},
    ),
    "a field that was added": (
        [{}, {"parametrization__init_scale": 2.0}], {"parametrization.init_scale": [1.0, 2.0]},
    ),
    "a field at the top": ([{"clip": 1.0}, {"clip": 2.0}], {"clip": [1.0, 2.0]}),
    "the place of the data": (
        [{"data__source__seed": 0}, {"data__source__seed": 1, "seed": 1}], {},  # of one content
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_fields_in_which_runs_differ_are_columns(results: store.Store, make_run: Make, fill: Fill, case: str) -> None:
    changes, expected = SETTINGS[case]
    frame = put(results, fill, [make_run(**change) for change in changes])
    more = {name: frame[name].tolist() for name in frame if name not in columns.COLUMNS}
    assert more == expected
    whole, none = results.runs("small", settings="all"), results.runs("small", settings="none")
    assert set(whole) >= {*frame, "optimizer.weight_decay", "model.heads", "schedule.warmup.fraction", "clip"}
    assert list(none) == [name for name in frame if name in columns.COLUMNS]


def test_a_variant_lacks_what_another_has(results: store.Store, make_run: Make, fill: Fill) -> None:
    sgd = {"kind": "sgd", "learning_rate": 0.01}
    frame = put(results, fill, [make_run(), make_run(optimizer=sgd)])
    assert frame["optimizer.kind"].tolist() == ["adamw", "sgd"] == frame["optimizer"].tolist()
    assert frame["optimizer.beta2"].isna().tolist() == [False, True]


def test_a_trunk_does_not_make_fields_differ(results: store.Store, make_run: Make, fill: Fill) -> None:
    wsd = {"kind": "wsd", "warmup": {"kind": "tokens", "tokens": 64}, "cooldown": 0.25}
    fill(results, [make_run(), make_run(schedule=wsd)])
    members = results.sweep("small")["members"]
    members[0]["labels"]["role"] = "trunk"
    results.add_sweep("small", results.sweep("small")["config"], members)
    assert set(results.runs("small")) == set(columns.COLUMNS)


def test_status_shows_the_fields_that_its_columns_do_not_say(results: store.Store, make_run: Make, fill: Fill) -> None:
    runs = [make_run(model__width=8, optimizer__weight_decay=0.1), make_run(model__width=16, context=32)]
    fill(results, runs)
    table = watch.table(results, "small")
    headers = [str(column.header) for column in table.columns]
    assert headers[:7] == ["run", "model", "params", "tokens", "FLOPs", "lr", "seed"]
    assert headers[7:-5] == ["context", "optimizer.weight_decay"]
    assert list(table.columns[8].cells) == ["0.1", human.value(runs[1].optimizer.model_dump()["weight_decay"])]


def test_columns_count_what_their_names_say(make_run: Make, identity: Any) -> None:
    run = make_run(tokens=20_480)
    counted = record.columns(run, identity)
    size = (run.model, run.vocabulary_size, run.context)
    assert counted["params"] == counting.params(*size)
    assert counted["flops_6nd"] == 6.0 * counted["params_non_embedding"] * 20_480
    assert counted["flops"] == counted["flops_spent"] == counting.flops_per_token(*size) * 20_480
    assert (counted["epochs"], counted["examples"]) == (20_480 / 10_000, 20_480 / 16)
    assert counted["precision"] == "float32"
    mixed = make_run(precision={"compute": "bfloat16", "parameters": "float32"})
    assert record.columns(mixed, identity)["precision"] == "bfloat16/float32"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (human.count(7), "7"), (human.count(999), "999"), (human.count(64_200), "64.2k"), (human.count(3e10), "30B"),
        (human.count(1_240_000), "1.24M"), (human.count(2e12), "2T"), (human.size(12_345_678), "12.3 MB"),
        (human.size(2.5e9), "2.5 GB"), (human.duration(12.34), "12.3 s"), (human.duration(600), "10.0 min"),
        (human.duration(7200), "2.0 h"), (human.value(None), ""), (human.value(float("nan")), ""),
        (human.value(3.0), "3"), (human.value(0.000123456), "0.000123"), (human.value(True), "True"),
        (human.value("adamw"), "adamw"),
    ],
)  # fmt: skip
def test_numbers_are_short(shown: str, text: str) -> None:
    assert shown == text


def test_a_table_for_a_terminal_shows_what_tells_runs_apart(results: store.Store, make_run: Make, fill: Fill) -> None:
    runs = [make_run(optimizer__weight_decay=0.1), make_run(optimizer__weight_decay=0.2, seed=1)]
    shown = tabling.table(put(results, fill, runs))
    headers = [str(column.header) for column in shown.columns]
    assert headers == ["run_id", "seed", "optimizer.weight_decay", "status"]
    assert list(shown.columns[2].cells) == ["0.1", "0.2"]
