"""Extrapolations correct what back-tests show, and leave alone what they do not."""

import numpy as np
import pytest

import analysis


@pytest.mark.parametrize(("train_set", "alone"), [("slimpajama-chunk1", 0.0391), ("starcoder", 0.0505)])
def test_the_held_out_run_of_brandfonbrener_is_inside_and_nearer(table, train_set: str, alone: float) -> None:
    runs = table("brandfonbrener2024_two_sets.csv").rename(columns={"loss_own_val": "loss"})
    runs = runs[runs["train_set"] == train_set][["split", "params", "tokens", "flops", "loss"]]
    below, above = (runs[runs["split"] == split].drop(columns="split") for split in ("fit", "extrapolate"))
    measured = float(above["loss"].iloc[0])
    found = analysis.extrapolate("hoffmann", below, above, resamples=60)
    assert found.plain[0] / measured - 1 == pytest.approx(alone, abs=2e-4)  # as the authors' own fit
    assert not found.plain_interval[0][0] <= measured <= found.plain_interval[1][0]
    assert found.interval[0][0] <= measured <= found.interval[1][0]
    assert abs(found.predicted[0] / measured - 1) < 0.6 * alone
    assert found.interval[1][0] / found.interval[0][0] < 1.2
    assert f"corrected {found.predicted[0]:.4f}" in found.summary()


def test_a_law_that_is_right_is_left_nearly_alone(planted, law_params) -> None:
    frame = planted(noise=5e-4, sizes=7, width=6.0, budgets=6)
    params, tokens = 3e6, 4e7
    exact = law_params["E"] + law_params["A"] / params ** law_params["alpha"]
    exact += law_params["B"] / tokens ** law_params["beta"]
    at = {"params": params, "tokens": tokens, "flops": 6 * params * tokens}
    found = analysis.extrapolate("hoffmann", frame, at, resamples=60)
    assert found.reach[0] == pytest.approx(6 * params * tokens / frame["flops"].max())
    assert found.predicted[0] == pytest.approx(exact, rel=0.01)
    assert found.interval[0][0] <= exact <= found.interval[1][0]
    again = analysis.extrapolate("hoffmann", frame, at, resamples=60)
    np.testing.assert_array_equal(found.interval, again.interval)


def test_a_target_that_is_no_extrapolation_is_refused(planted) -> None:
    frame = planted(noise=1e-3)
    with pytest.raises(analysis.Refused, match="does not lie above the runs"):
        analysis.extrapolate("hoffmann", frame, {"params": 1e5, "tokens": 1e6, "flops": 6e11}, resamples=20)
    with pytest.raises(ValueError, match="also needs 'flops'"):
        analysis.extrapolate("hoffmann", frame, {"params": 1e5, "tokens": 1e6}, resamples=20)
    few = frame[frame["flops_budget"] >= np.unique(frame["flops_budget"])[-3]]
    with pytest.raises(analysis.Refused, match="a correction needs 3"):
        analysis.extrapolate("hoffmann", few, {"params": [1e6], "tokens": [1e8], "flops": [6e14]}, resamples=20)


def test_origins_that_do_not_identify_the_law_are_not_counted(planted, law_params) -> None:
    """Two and three budgets of four noisy runs: counted, how their fits err moves the prediction the wrong way."""
    frame = planted(noise=0.01, seed=2, sizes=4, budgets=9, width=2.0, two_seeds=False, low=2e9, high=4e12)
    params, tokens = 2e6, 4e8
    exact = law_params["E"] + law_params["A"] / params ** law_params["alpha"]
    exact += law_params["B"] / tokens ** law_params["beta"]
    at = {"params": params, "tokens": tokens, "flops": 6 * params * tokens}
    found = analysis.extrapolate("hoffmann", frame, at, resamples=30, origins=8)
    assert found.predicted[0] == pytest.approx(exact, rel=0.03)
    assert "8 runs for 5 parameters" in found.left_out[-1]
    assert f"left out: {found.left_out[0]}" in found.summary()
    assert found.errors["origin"].nunique() + len(found.left_out) == len(found.backtest.usable)
