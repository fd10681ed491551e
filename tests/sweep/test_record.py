"""Records: a run comes back from what is stored of it."""

from collections.abc import Callable
from typing import Any

import pytest

from scaling import config
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
    with pytest.raises(ValueError, match=r"now has the id.*start the run's sweep again"):
        record.read(kept)
