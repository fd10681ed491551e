"""Rows far from a fit or from a budget's parabola are named, with the exponents without them; others are not."""

import re

import numpy as np
import pandas as pd
import pytest

import analysis

RULE = "than 6 times the median absolute deviation"


def named(warnings: tuple[str, ...]) -> list[str]:
    """The rows that a warning of outliers names, by their index."""
    return [row for told in warnings if RULE in told for row in re.findall(r"index (\S+) \(", told)]


@pytest.mark.parametrize("rows", [{}, {9: 1.3}, {9: 1.3, 20: 1.3}, {20: 0.8}, {0: 5.0}])
def test_rows_that_were_spoilt_are_named_with_what_they_move(rows, planted) -> None:
    frame = planted(noise=0.003, seed=3, sizes=9).drop(columns="run_id")
    spoilt = frame.assign(loss=frame["loss"] * [rows.get(i, 1.0) for i in frame.index])
    spoilt.index = [f"row{i}" for i in frame.index]
    names = [f"row{i}" for i in rows]
    fit = analysis.fit("hoffmann", spoilt)
    two = analysis.frontier(spoilt, 2, resamples=10)
    for warnings in (fit.warnings, two.warnings, analysis.frontier(spoilt, 3, resamples=10).warnings):
        assert sorted(named(warnings)) == sorted(names)
    if not rows:
        return
    (told,) = (told for told in fit.warnings if RULE in told)
    without = analysis.fit("hoffmann", spoilt.drop(index=names))
    assert f"alpha = {without.params['alpha']:.4g} ({fit.params['alpha']:.4g} with them)" in told
    assert all(f"loss {spoilt.loc[name, 'loss']:.4g}" in told for name in names)
    (told,) = (told for told in two.warnings if RULE in told)
    without = analysis.frontier(spoilt.drop(index=names), 2, resamples=10).exponent_params.value
    assert f"a = {without:.4g} ({two.exponent_params.value:.4g} with them)" in told


def test_a_budget_of_one_size_does_not_stop_the_naming_of_rows_in_others(planted) -> None:
    frame = planted(noise=0.003, seed=3, sizes=9).drop(columns="run_id")
    spoilt = frame.assign(loss=frame["loss"] * np.where(frame.index == 9, 1.3, 1.0))
    twice = frame.tail(1).assign(flops_budget=3e13, flops=3e13, tokens=lambda run: 3e13 / 6 / run["params"])
    seeds = pd.concat([spoilt, twice, twice.assign(seed=7, loss=twice["loss"] + 0.01)], ignore_index=True)
    assert named(analysis.frontier(seeds, 2, resamples=10).warnings) == ["9"]


def test_many_rows_that_are_off_are_no_stray_ones(planted) -> None:
    frame = planted(noise=0.0005, sizes=9)
    part = frame.index % 6 == 0
    warnings = analysis.fit("hoffmann", frame.assign(loss=frame["loss"] * np.where(part, 1.2, 1.0))).warnings
    (told,) = (told for told in warnings if RULE in told)
    assert f"({part.sum()} of {len(frame)})" in told
    assert "no stray rows" in told


def test_normal_noise_seldom_has_a_row_that_is_named(planted) -> None:
    found = [planted(noise=0.005, seed=seed, two_seeds=False) for seed in range(20)]
    assert sum(bool(named(analysis.fit("hoffmann", frame).warnings)) for frame in found) <= 1


def test_the_rows_that_besiroglu_leave_out_are_named(table) -> None:
    frame: pd.DataFrame = table("chinchilla_besiroglu2024.csv")
    left_out = frame.index[frame["excluded_in_published_fit"] == 1]
    assert {str(row) for row in left_out[:4]} <= {*named(analysis.fit("hoffmann", frame).warnings)}
