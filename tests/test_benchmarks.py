"""Benchmarks: the parts that measure nothing. PyTorch is never needed here."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest

from benchmarks import train_step
from scaling import counting


@pytest.mark.parametrize("target", train_step.SIZES)
def test_sizes_are_near_their_names(target: float) -> None:
    size = train_step.size_of(target, vocabulary=256, context=256)
    assert abs(size.params_non_embedding / target - 1) < 0.15
    width, depth, _ = train_step.SIZES[target]
    assert size.params_non_embedding == depth * (12 * width**2 + 13 * width) + 2 * width  # GPT-2 by hand
    assert size.params == size.params_non_embedding + (256 + 256) * width


def test_a_size_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no size of 3 million parameters; choose from 0\.1, 0\.4, 1\.6, 6, 25"):
        train_step.size_of(3e6, 256, 256)


def test_medians_and_ratios_are_taken_round_by_round() -> None:
    rounds = [
        {"ours": 100.0, "torch compiled": 50.0, "torch eager": 10.0},
        {"ours": 30.0, "torch compiled": 10.0, "torch eager": 20.0},  # a slow round for all: the ratio stays
        {"ours": 90.0, "torch compiled": 100.0, "torch eager": 10.0},
    ]
    result = train_step.compare(rounds)
    assert result.medians == {"ours": 90.0, "torch compiled": 50.0, "torch eager": 10.0}
    assert (result.lowest, result.ratio, result.highest) == (0.9, 1.5, 2.0)
    with pytest.raises(ValueError, match="measure at least 1"):
        train_step.compare([])


def test_every_round_measures_every_contender_and_rounds_alternate() -> None:
    for number in range(3):
        assert {name for name, _ in train_step.order(number)} == set(train_step.CONTENDERS)
    assert train_step.order(1) == train_step.order(2)[::-1]
    assert {huge for name, huge in train_step.order(0) if name == "torch eager"} == {True, False}


def test_the_default_takes_under_25_minutes_and_quick_about_two() -> None:
    peak = 2e11  # of two cores with AVX2, in FLOP/s
    for settings, minutes in ((train_step.Settings(), 25), (train_step.Settings(quick=True), 2.5)):
        settled = train_step.settle(settings)
        sizes = [train_step.size_of(round(n * 1e6), 256, 256) for n in settled.sizes]
        assert train_step.predicted_seconds(settled, sizes, peak) < 60 * minutes


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rounds": 0}, "rounds is 0"), ({"rest": -1.0}, "rest is -1"), ({"vocabulary": 100}, "at least 258")],
)
def test_settings_that_measure_nothing_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_step.settle(dataclasses.replace(train_step.Settings(), **change))  # type: ignore[arg-type]


def test_both_sides_are_told_the_same() -> None:
    settings = train_step.settle(train_step.Settings(context=128, batch=4, vocabulary=512))
    size = train_step.size_of(0.4e6, 512, 128)
    spec = train_step.spec_of(settings, size, "torch eager", "float32")
    run = train_step.run_of(spec)
    assert (run.model, run.context, run.batch_size, run.vocabulary_size) == (size.model, 128, 4, 512)
    assert counting.params(run.model, run.vocabulary_size, run.context) == size.params
    assert math.isclose(run.optimizer.decay(spec["learning_rate"]), spec["learning_rate"] * spec["weight_decay"])


def test_a_python_without_torch_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install torch"):
        train_step.torch_version(tmp_path / "no-python")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')  # no site-packages
    bare.chmod(0o755)
    with pytest.raises(ValueError, match=r"No module named 'numpy'|No module named 'torch'"):
        train_step.torch_version(bare)
