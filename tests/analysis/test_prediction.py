"""Predictions by several laws: where they land on planted sweeps, what they say, and what they refuse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import prediction

FAR = 10.0


@pytest.fixture(scope="module")
def made(planted) -> prediction.Predictor:
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
        for seed in range(12):
            runs = planted(noise=0.003, seed=seed, two_seeds=False)
            target = at(law_params, np.array([FAR * runs["flops"].max()]))
            for frame in (runs, target):
                mixed = np.log(frame["params"] / 1e5) * np.log(frame["tokens"] / 1e6)
                frame["loss"] *= np.exp(-twist * 0.01 * mixed)
            found = analysis.predict(runs, target)
            measured = target["loss"].to_numpy() * np.exp(0.003 * rng.normal())
            inside.append(bool((found.low < measured) & (measured < found.high)))
        assert sum(inside) >= 11, (twist, inside)


def test_the_mean_of_the_members_is_the_prediction_and_it_widens_with_the_factor(made, law_params) -> None:
    found = made.predict(at(law_params, 4e12 * np.array([0.5, 3.0, 30.0])))
    assert found.factor == pytest.approx([0.5, 3.0, 30.0])
    assert found.value == pytest.approx(np.exp(np.log(found.members).mean(axis=1)))
    width = np.log(found.high / found.low)
    assert (np.diff(width) > 0).all()
    assert len(found.members.columns) >= prediction.FEWEST
    target = at(law_params, np.array([1e13]))
    assert made.predict(target, level=0.5).high < made.predict(target, level=0.95).high


def test_flops_follow_from_the_rule_of_the_runs(made, law_params) -> None:
    target = at(law_params, np.array([2e13]))
    assert made.predict(target.drop(columns="flops")).factor == pytest.approx(made.predict(target).factor, rel=1e-6)


def test_a_budget_is_spent_whole_near_the_best_sizes(made, law_params) -> None:
    budget = made.allocate(4e13)
    best = at(law_params, np.array([4e13])).iloc[0]
    n, d = budget.params, budget.tokens
    assert n.value * d.value * 6 == pytest.approx(4e13, rel=1e-6)
    assert n.interval[0] <= n.value <= n.interval[1]
    assert n.interval[0] < best["params"] < n.interval[1]
    assert budget.loss.low[0] < best["loss"] < budget.loss.high[0]
    assert all(0 < lost < 0.05 for lost in budget.valley)


def test_runs_far_from_the_best_of_their_compute_count_little(planted) -> None:
    runs = planted(noise=0.0)
    clean = analysis.predict(runs, {"params": 1e6, "tokens": 1e8})
    spoilt = pd.concat([runs, runs[runs["flops"] == runs["flops"].max()].head(2).assign(loss=9.0, run_id=["x", "y"])])
    found = analysis.predict(spoilt, {"params": 1e6, "tokens": 1e8})
    assert found.value == pytest.approx(clean.value, rel=0.01)
    assert found.members["hoffmann"].item() == pytest.approx(clean.members["hoffmann"].item(), rel=0.01)


def test_it_is_saved_and_loaded_whole(made, tmp_path: Path, law_params) -> None:
    made.save(tmp_path / "p.json")
    loaded, target = prediction.load(tmp_path / "p.json"), at(law_params, np.array([1e13]))
    first, second = made.predict(target), loaded.predict(target)
    for name in ("value", "low", "high", "factor", "statements", "warnings"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert loaded.allocate(1e13).params == made.allocate(1e13).params
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a saved prediction"):
        prediction.load(tmp_path / "p.json")


def test_runs_on_one_line_of_n_and_d_are_predicted_by_the_laws_that_they_carry(planted) -> None:
    """One ratio of tokens to parameters: laws with free exponents are refused, each with its reason."""
    runs = planted(noise=0.002, two_seeds=False)
    line = runs.assign(tokens=20 * runs["params"], flops=120 * runs["params"] ** 2)
    made = analysis.predictor(line)
    assert "hoffmann" in made.refused
    assert "one ratio of tokens to parameters" in made.refused["hoffmann"]
    assert any("left out: hoffmann:" in text for text in made.predict({"params": 1e7, "tokens": 2e8}).statements)


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        (lambda runs: runs.head(3), {"params": 1e7, "tokens": 1e9}, "laws can be fitted to these runs"),
        (lambda runs: runs.drop(columns=["tokens", "flops", "flops_budget"]), {"params": 1e7}, "no column 'tokens'"),
        (lambda runs: runs, {"params": 1e7}, "needs 'params' and 'tokens'"),
        (lambda runs: runs, {"params": -1.0, "tokens": 1e9}, "needs positive"),
    ],
)
def test_what_cannot_be_predicted_is_refused(planted, change, at, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.predict(change(planted()), at)


def test_a_target_beyond_what_was_tested_is_doubted(made) -> None:
    found = made.predict({"params": 1e9, "tokens": 1e10})
    assert any("times the FLOPs of the largest run" in text for text in found.warnings)
    assert found.summary().startswith("warning: ")
