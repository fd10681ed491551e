"""Predictions by several laws: where they land on planted sweeps, what they say, and what they refuse."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import fitting, members, prediction

FAR = 10.0


@pytest.fixture(scope="module")
def several(planted) -> prediction.Predictor:
    return analysis.predictor(planted(noise=0.003, width=4.0))


def at(law: dict[str, float], flops: np.ndarray) -> pd.DataFrame:
    """The best sizes of a planted law at 6ND = C, and their losses."""
    alpha, beta = law["alpha"], law["beta"]
    n = (alpha * law["A"] / (beta * law["B"]) * (flops / 6) ** beta) ** (1 / (alpha + beta))
    d = flops / 6 / n
    loss = law["E"] + law["A"] / n**alpha + law["B"] / d**beta
    return pd.DataFrame({"params": n, "tokens": d, "flops": flops, "loss": loss})


def test_intervals_hold_a_run_above_where_one_law_is_right_and_where_none_is(planted, law_params) -> None:
    """Ten times the FLOPs: the law of the first half, and with a term of N and D of the second, that no member has."""
    rng = np.random.default_rng(0)
    for twist in (0.0, 0.15):
        inside = []
        for seed in range(6):
            runs = planted(noise=0.003, seed=seed, two_seeds=False)
            target = at(law_params, np.array([FAR * runs["flops"].max()]))
            for frame in (runs, target):
                mixed = np.log(frame["params"] / 1e5) * np.log(frame["tokens"] / 1e6)
                frame["loss"] *= np.exp(-twist * 0.01 * mixed)
            result = analysis.predict(runs, target)
            measured = target["loss"].to_numpy() * np.exp(0.003 * rng.normal())
            inside.append(bool((result.low < measured) & (measured < result.high)))
        assert all(inside), (twist, inside)


def test_the_mean_of_the_members_is_the_prediction_and_it_widens_with_the_factor(several, law_params) -> None:
    result = several.predict(at(law_params, 4e12 * np.array([0.5, 3.0, 30.0])))
    assert result.factor == pytest.approx([0.5, 3.0, 30.0])
    assert result.value == pytest.approx(np.exp(np.log(result.members).mean(axis=1)))
    width = np.log(result.high / result.low)
    assert (np.diff(width) > 0).all()
    assert len(result.members.columns) >= members.FEWEST
    target = at(law_params, np.array([1e13]))
    assert several.predict(target, level=0.5).high < several.predict(target, level=0.95).high


def test_flops_follow_from_the_rule_of_the_runs(several, law_params) -> None:
    target = at(law_params, np.array([2e13]))
    assert several.predict(target.drop(columns="flops")).factor == pytest.approx(
        several.predict(target).factor, rel=1e-6
    )


def test_a_budget_is_spent_whole_near_the_best_sizes(several, law_params) -> None:
    budget = several.allocate(4e13)
    best = at(law_params, np.array([4e13])).iloc[0]
    least, most = budget.params_by_law
    assert budget.params * budget.tokens * 6 == pytest.approx(4e13, rel=1e-6)
    assert least <= budget.params <= most
    assert least < best["params"] < most
    assert budget.loss.params == pytest.approx(budget.params)
    assert budget.loss.low[0] < best["loss"] < budget.loss.high[0]
    assert all(0 < lost < 0.05 for lost in budget.valley)


def test_runs_far_from_the_best_of_their_compute_count_little(planted) -> None:
    runs = planted(noise=0.0)
    clean = analysis.predict(runs, {"params": 1e6, "tokens": 1e8})
    spoilt = pd.concat([runs, runs[runs["flops"] == runs["flops"].max()].head(2).assign(loss=9.0, run_id=["x", "y"])])
    result = analysis.predict(spoilt, {"params": 1e6, "tokens": 1e8})
    assert result.value == pytest.approx(clean.value, rel=0.01)
    assert result.members["hoffmann"].item() == pytest.approx(clean.members["hoffmann"].item(), rel=0.01)


def with_a_head(runs: pd.DataFrame) -> pd.DataFrame:
    """FLOPs of a head beside N, whose share falls with N: no power of N."""
    return runs.assign(flops=6 * runs["params"] * runs["tokens"] * (1 + 2 * (runs["params"] / 1e5) ** -0.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda runs: runs,
        with_a_head,
        lambda runs: runs.assign(tokens=20 * runs["params"], flops=120 * runs["params"] ** 2),
    ],
    ids=["6ND", "bent FLOPs", "one ratio"],
)  # fmt: skip
def test_it_is_saved_and_loaded_whole(change, planted, tmp_path: Path) -> None:
    several = analysis.predictor(change(planted(noise=0.002, two_seeds=False)))
    several.save(tmp_path / "p.json")
    loaded, target = prediction.load(tmp_path / "p.json"), {"params": [1e6, 2e6], "tokens": [2e7, 4e7]}
    first, second = several.predict(target), loaded.predict(target)
    for name in ("value", "low", "high", "factor", "statements", "warnings"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    if several.line is None:
        assert loaded.allocate(1e13).params == several.allocate(1e13).params
    for text, message in (
        ("{}", "is not a saved prediction"),
        (f'{{"format": "{prediction.FORMAT}"}}', "it lacks fits"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            prediction.load(tmp_path / "p.json")


def test_runs_on_one_line_of_n_and_d_are_predicted_by_the_laws_that_they_carry(planted) -> None:
    """One ratio of tokens to parameters: laws with free exponents are refused, each with its reason."""
    runs = planted(noise=0.002, two_seeds=False)
    line = runs.assign(tokens=20 * runs["params"], flops=120 * runs["params"] ** 2)
    several = analysis.predictor(line)
    assert "one ratio of tokens to parameters" in several.refused["hoffmann"]
    assert any("left out: hoffmann:" in text for text in several.predict({"params": 1e7, "tokens": 2e8}).statements)
    for elsewhere in (lambda: several.predict({"params": 1e7, "tokens": 4e8}), lambda: several.allocate(1e14)):
        with pytest.raises(analysis.Refused, match="one ratio of tokens to parameters"):
            elsewhere()


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        (lambda runs: runs.head(3), {"params": 1e7, "tokens": 1e9}, "3 runs for 3 parameters"),
        (
            lambda runs: runs.head(7),
            {"params": 1e7, "tokens": 1e9},
            "7 runs of .* sizes: predictions were tested from 8",
        ),
        (lambda runs: runs.assign(status="failed"), {"params": 1e7, "tokens": 1e9}, "0 of .* rows are finished runs"),
        (lambda runs: runs.assign(epochs=40.0), {"params": 1e7, "tokens": 1e9}, "saw their data up to 40 times"),
        (
            lambda runs: runs.assign(validation_id=np.arange(len(runs)) % 2),
            {"params": 1e7, "tokens": 1e9},
            "validation_id takes 2 values",
        ),
        (lambda runs: runs, {"tokens": 1e10, "flops": 1e12}, "is what no model of"),
        (lambda runs: runs, {"flops": 1e3}, "buys no token"),
        (
            lambda runs: runs.drop(columns=["tokens", "flops", "flops_budget"]),
            {"params": 1e7, "tokens": 1e9},
            "no column 'tokens'",
        ),
        (lambda runs: runs, {"params": 1e7}, "needs 'params' and 'tokens'"),
        (lambda runs: runs, {"params": -1.0, "tokens": 1e9}, "needs positive"),
    ],
)
def test_what_cannot_be_predicted_is_refused(planted, change, at, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.predict(change(planted()), at)


def test_columns_under_other_names_are_those_of_the_new_run_too(planted) -> None:
    runs = planted(noise=0.002, two_seeds=False)
    renamed = runs.assign(bare=runs["params"], params=3 * runs["params"])
    there = pd.DataFrame({"bare": [1e6], "params": [3e6], "tokens": [2e7]})
    expected = analysis.predict(runs, {"params": 1e6, "tokens": 2e7})
    assert analysis.predict(renamed, there, params="bare").value == pytest.approx(expected.value)
    assert expected.params == pytest.approx(1e6)


def test_two_of_params_tokens_and_flops_give_the_third(several) -> None:
    whole = several.predict({"params": [1e6, 3e6], "tokens": [2e7, 5e7]})
    for given in ({"params": [1e6, 3e6], "flops": 6 * np.array([2e13, 15e13])},
                  {"tokens": [2e7, 5e7], "flops": 6 * np.array([2e13, 15e13])}):  # fmt: skip
        assert several.predict(given).value == pytest.approx(whole.value, rel=1e-6)


def test_of_checkpoints_the_last_of_each_run_counts(planted) -> None:
    runs = planted(noise=0.002, two_seeds=False).assign(run=lambda frame: np.arange(len(frame)))
    early = runs.assign(tokens=runs["tokens"] / 2, flops=runs["flops"] / 2, loss=runs["loss"] + 0.5)
    result = analysis.predict(pd.concat([early, runs]), {"params": 1e6, "tokens": 2e7}, cluster="run")
    assert result.value == pytest.approx(analysis.predict(runs, {"params": 1e6, "tokens": 2e7}).value, rel=1e-6)
    assert any(f"the last checkpoints of {len(runs)} runs count" in text for text in result.statements)


def test_a_law_that_does_not_converge_is_left_out_and_one_at_a_bound_is_named(planted, monkeypatch) -> None:
    runs, whole = planted(noise=0.002, two_seeds=False), fitting.fit
    runs = runs.assign(loss=40 / runs["params"] ** 0.3 + 60 / runs["tokens"] ** 0.3)  # no irreducible loss

    def stuck(law: str, *values, **options) -> fitting.Fit:
        fit = whole(law, *values, **options)
        return dataclasses.replace(fit, status="not converged") if law == "kaplan_offset" else fit

    monkeypatch.setattr(fitting, "fit", stuck)
    several = analysis.predictor(runs)
    assert "not converged" in several.refused["kaplan_offset"]
    assert "kaplan_offset" not in several.predict({"params": 1e6, "tokens": 2e7}).members
    assert any(text.startswith("hoffmann, α = β: at a bound: E = 0") for text in several.statements)


def test_a_target_beyond_what_was_tested_is_doubted(several) -> None:
    result = several.predict({"params": 1e9, "tokens": 1e10})
    assert any("times the FLOPs of the largest run" in text for text in result.warnings)
    assert result.summary().startswith("warning: ")
