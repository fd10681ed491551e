"""Records: a run comes back from what is stored of it, and its columns are those of the contract."""

from collections.abc import Callable
from typing import Any

import pytest

from scaling import config, counting, store
from scaling.store import record

Make = Callable[..., config.Run]


def test_a_record_gives_back_the_run(make_run: Make, identity: Any) -> None:
    run = make_run(seed=3)
    kept = record.config_record(run, identity)
    again, corpus = record.read(kept)
    assert again == run
    assert again.run_id(corpus.data_sha256) == kept["run_id"]
    assert record.columns(again, corpus) == record.columns(run, identity)


def test_a_record_that_was_edited_is_refused(make_run: Make, identity: Any) -> None:
    kept = record.config_record(make_run(), identity)
    kept["run"]["tokens"] *= 2
    with pytest.raises(ValueError, match=r"now has the id.*plan the sweep again"):
        record.read(kept)


def test_columns_are_those_of_the_store_but_what_is_measured(make_run: Make, identity: Any) -> None:
    columns = record.columns(make_run(), identity)
    later = {"run_id", "sweep", "device", "status", "reason", *store.MEASURED}
    assert set(columns) == set(store.COLUMNS) - later
    assert [name for name in store.COLUMNS if name in columns] == list(columns)


def test_columns_count_what_their_names_say(make_run: Make, identity: Any) -> None:
    run = make_run(tokens=20_480)
    columns = record.columns(run, identity)
    size = (run.model, run.vocabulary_size, run.context)
    assert columns["params"] == counting.params(*size)
    assert columns["flops_6nd"] == 6.0 * columns["params_non_embedding"] * 20_480
    assert columns["flops"] == columns["flops_spent"] == counting.flops_per_token(*size) * 20_480
    assert columns["epochs"] == 20_480 / 10_000
    assert columns["precision"] == "float32"
    mixed = make_run(precision={"compute": "bfloat16", "parameters": "float32"})
    assert record.columns(mixed, identity)["precision"] == "bfloat16/float32"


@pytest.mark.parametrize(
    ("count", "shown"), [(7, "7"), (999, "999"), (64_200, "64.2k"), (1_240_000, "1.24M"), (3e10, "30B"), (2e12, "2T")]
)
def test_counts_are_short(count: float, shown: str) -> None:
    assert record.short(count) == shown
