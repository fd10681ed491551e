"""Columns that follow from others are made in one way everywhere, and stated; a budget that is given is used."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import definitions

BARE = ["params", "tokens", "loss"]
RATIO = "tokens_per_parameter = tokens / params"
SIX = "flops = 6 · params · tokens (Kaplan et al. 2020, arXiv 2001.08361)"
TOKENS = "tokens = flops / (6 · params) (Kaplan et al. 2020, arXiv 2001.08361)"
BUDGET = "flops = flops_budget (the budget that is given)"


@pytest.fixture(scope="module")
def runs(sweep: pd.DataFrame) -> pd.DataFrame:
    return sweep[sweep["seed"] == 0].drop(columns=["run_id", "role", "seed"])


@pytest.mark.parametrize(
    ("change", "law", "told"),
    [
        (lambda f: f[BARE], "gadre", (SIX, RATIO)),
        (lambda f: f[["params", "flops", "loss"]], "gadre", (TOKENS, RATIO)),
        (lambda f: f[["params", "flops", "loss"]], "hoffmann", (TOKENS,)),
        (lambda f: f[["params", "flops_budget", "loss"]], "hoffmann", (BUDGET, TOKENS)),
        (lambda f: f[["tokens", "flops", "loss"]], "hoffmann", ("params = flops / (6 · tokens) (Kaplan",)),
        (lambda f: f[BARE].assign(flops=np.nan), "kaplan_c", (SIX,)),
        (
            lambda f: f.rename(columns={"params": "n", "flops": "c"})[["n", "c", "loss"]],
            "hoffmann",
            ("tokens = c / (6 · n)",),
        ),
    ],
)
def test_a_law_is_fitted_to_what_its_inputs_follow_from(change, law, told, runs) -> None:
    frame = change(runs)
    columns = {"params": "n", "flops": "c"} if "n" in frame else {}
    found = analysis.fit(law, frame, **columns)
    whole = analysis.fit(law, runs.assign(tokens_per_parameter=runs["tokens"] / runs["params"]))
    assert found.params == pytest.approx(whole.params, rel=1e-6)
    for line in told:
        assert sum(fact.startswith(line) for fact in found.facts) == 1, line
        assert line in found.checklist()
    test = analysis.backtest(law, frame, origins=1, resamples=10, **columns)
    assert all(line in test.summary() for line in told)


def test_what_is_there_is_not_made(runs) -> None:
    made, told = definitions.complete(runs, definitions.QUANTITIES - {"flops_budget"})
    assert [line.partition(" =")[0] for line in told] == ["tokens_per_parameter"]
    pd.testing.assert_frame_equal(made[runs.columns], runs)
    with pytest.raises(analysis.Refused, match="no inputs of 'hoffmann'"):
        analysis.fit("hoffmann", runs, flops="flops")
    with pytest.raises(analysis.Refused, match="nearest are token"):
        analysis.fit("hoffmann", runs.rename(columns={"tokens": "token"}))
    with pytest.raises(analysis.Refused, match="nearest are parameters"):
        analysis.fit("hoffmann", runs.rename(columns={"params": "parameters"}))
    with pytest.raises(analysis.Refused, match="no column 'seen'"):
        analysis.fit("hoffmann", runs.drop(columns="tokens"), tokens="seen")


def test_laws_are_compared_by_inputs_that_follow_from_others(runs) -> None:
    laws = ["hoffmann_shared", "gadre", "kaplan_c"]
    found = analysis.compare(laws, runs[BARE], origins=1, resamples=10)
    assert not found.table["refused"].any()
    table = found.table.set_index("law")
    assert table.loc["gadre", "held_out"] == pytest.approx(table.loc["hoffmann_shared", "held_out"], rel=1e-3)
    assert f"made (gadre): {RATIO}" in found.summary()
    assert f"made: {SIX}" in found.summary()
    named = runs.rename(columns={"flops": "c"})[["params", "c", "loss"]]
    again = analysis.compare(laws, named, origins=1, resamples=10, flops="c").table
    assert sorted(again["held_out"]) == pytest.approx(sorted(found.table["held_out"]), rel=1e-3)
    with pytest.raises(ValueError, match=r"flops_budget.* are no inputs"):
        analysis.compare(["hoffmann"], runs, flops_budget="flops_budget")


@pytest.mark.parametrize("approach", [1, 2, 3])
def test_an_empty_column_of_flops_is_as_none_and_a_budget_that_is_given_is_used(approach, runs) -> None:
    """FLOPs are not 6ND here: by 6ND the runs of one budget would differ by a factor of two."""
    bent = runs.assign(tokens=runs["tokens"] * (runs["params"] / 1e5) ** 0.35)
    whole = analysis.frontier(bent, approach, resamples=10).exponent_params.value
    for frame, why in (
        (bent.drop(columns="flops"), "the table has no column 'flops'"),
        (bent.assign(flops=np.nan), f"column 'flops' is empty in all {len(runs)} finished rows"),
    ):
        found = analysis.frontier(frame, approach, resamples=10)
        assert found.exponent_params.value == pytest.approx(whole, rel=1e-6)
        assert f"{BUDGET}: {why}" in found.statements
    some = bent.assign(flops=np.nan, flops_budget=bent["flops_budget"].where(bent.index != bent.index[-1]))
    told = analysis.frontier(some, approach, resamples=10).statements
    assert any(f"{BUDGET}, in 1 of {len(runs)} rows without it 6 · params · tokens" in line for line in told)
    with pytest.raises(analysis.Refused, match=f"'flops' is NaN in 3 of {len(runs)} rows"):
        analysis.frontier(bent.assign(flops=bent["flops"].where(np.arange(len(bent)) > 2)), approach, resamples=10)


def test_a_report_and_a_prediction_of_what_follows_from_others(runs, tmp_path) -> None:
    frame = runs.drop(columns=["tokens", "flops_budget"])
    told = analysis.report.write(frame, tmp_path, "Without tokens", resamples=10)
    assert TOKENS in str(told)
    assert TOKENS in told.markdown.read_text()
    fit = analysis.fit("gadre", runs)
    at = {"params": 1e6, "tokens": 3e7, "flops": 1.8e14}
    assert fit.predict(at) == fit.predict({**at, "tokens_per_parameter": 30.0})
    with pytest.raises(ValueError, match="needs 'flops'"):
        fit.predict({"params": 1e6, "tokens": 3e7})
