"""Back-tests predict what they have not seen, from several origins; laws are ranked by what they predict."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import integrate

import analysis
from analysis import comparison, criteria, doubts


def test_the_largest_budget_is_held_out_and_predicted(sweep) -> None:
    found = analysis.backtest("hoffmann", sweep, resamples=100, origins=1)
    table = found.rows
    assert len(table) == 6
    assert (table["flops_budget"] == sweep["flops_budget"].max()).all()
    assert table["error"].abs().max() < 0.03
    np.testing.assert_allclose(table["error"], table["predicted"] - table["measured"])
    assert (table["low"] < table["high"]).all()
    assert table["inside"].sum() >= 4  # 94% of held-out runs over 60 planted sweeps; this one has 4
    assert found.noise.sd == pytest.approx(analysis.seed_noise(sweep).sd)
    below = analysis.fit("hoffmann", sweep[sweep["flops_budget"] < sweep["flops_budget"].max()])
    np.testing.assert_allclose(below.predict(table), table["predicted"])


def test_the_origin_rolls_down_and_never_sees_what_it_predicts(sweep) -> None:
    found = analysis.backtest("hoffmann", sweep, resamples=50)
    budgets = np.unique(sweep["flops_budget"])
    np.testing.assert_allclose(found.origins["origin"], budgets[-2:-5:-1])
    assert found.origins["held_out"].tolist() == [6, 12, 18]
    assert (found.rows["flops"] > found.rows["origin"] * 1.01).all()
    assert found.latest["origin"].unique() == pytest.approx([budgets[-2]])
    np.testing.assert_allclose(found.rows["reach"], found.rows["flops"] / found.rows["origin"])
    again = analysis.backtest("hoffmann", sweep[sweep["flops_budget"] < budgets[-1] / 1.01], resamples=50, origins=1)
    same = found.rows[found.rows["origin"] == again.rows["origin"].iloc[0]]
    same = same[same["flops"] < budgets[-1] / 1.01]
    np.testing.assert_allclose(same["predicted"], again.rows["predicted"], rtol=1e-9)
    assert "up to 1.89e+12" in found.summary() or f"up to {budgets[-2]:.3g}" in found.summary()


@pytest.mark.parametrize(
    ("outside", "said"), [(7, []), (8, ["78% of 36 predictions of larger runs, in back-tests of h"])]
)
def test_predictions_outside_their_intervals_are_counted_over_all_origins(outside, said, sweep) -> None:
    """Of 18 runs: one is predicted from every origin below it."""
    found = analysis.backtest("hoffmann", sweep, resamples=20)
    assert len(found.rows.drop_duplicates(["params", "tokens"])) == 18
    inside = np.arange(len(found.rows)) >= outside
    lines = [*doubts.uncovered(dataclasses.replace(found, rows=found.rows.assign(inside=inside)))]
    assert [line[: len(start)] for line, start in zip(lines, said, strict=True)] == said


def test_an_origin_that_leaves_too_little_is_listed_with_its_reason(planted) -> None:
    found = analysis.backtest("hoffmann", planted(budgets=3, sizes=4, noise=1e-3, two_seeds=False), resamples=20)
    assert found.origins["refused"].iloc[0] == ""
    assert "4 runs for 5 parameters" in found.origins["refused"].iloc[1]
    assert "refused: 4 runs" in found.summary()


def test_a_backtest_by_another_column_and_its_refusal(sweep) -> None:
    frame = sweep.assign(width=np.where(sweep["params"] > sweep["params"].median(), 128, 64))
    found = analysis.backtest("hoffmann", frame, hold_out="width", resamples=100)
    assert len(found.rows) == int((frame["width"] == 128).sum())
    with pytest.raises(analysis.Refused, match="nothing is left to fit below"):
        analysis.backtest("hoffmann", frame.assign(width=1), hold_out="width")
    with pytest.raises(ValueError, match="origins = 0"):
        analysis.backtest("hoffmann", frame, origins=0)


def test_the_law_that_made_the_runs_predicts_them_best(planted) -> None:
    frame = planted(noise=5e-4, sizes=7, width=6.0)
    found = analysis.compare(["kaplan", "power_offset", "hoffmann"], frame, resamples=20, x="tokens")
    assert found.best == "hoffmann"
    by_law = found.table.set_index("law")
    assert by_law.loc["hoffmann", "held_out"] < 0.5 * by_law.loc["kaplan", "held_out"]
    assert by_law["bic"].idxmin() == by_law["aic"].idxmin() == "hoffmann"
    assert found.table["held_out"].is_monotonic_increasing
    assert "hoffmann" in found.summary()


def test_laws_that_the_runs_cannot_carry_are_listed(planted) -> None:
    frame = pd.DataFrame({"params": np.geomspace(1e6, 1e9, 20)}).assign(tokens=lambda f: 20 * f["params"])
    frame["loss"] = 2 + 400 / frame["params"] ** 0.34
    found = analysis.compare(["hoffmann", "kaplan_n"], frame, resamples=20)
    assert found.best == "kaplan_n"
    assert "one ratio of tokens to parameters" in found.table.set_index("law").loc["hoffmann", "refused"]
    assert "hoffmann: refused" in found.summary()
    with pytest.raises(analysis.Refused, match="hoffmann: all 20 runs have one ratio"):
        analysis.compare(["hoffmann"], frame)
    with pytest.raises(ValueError, match="named twice"):
        analysis.compare(["hoffmann", "hoffmann"], frame)
    with pytest.raises(ValueError, match="no inputs of these laws"):
        analysis.compare(["hoffmann"], frame, tokenz="tokens")


@pytest.mark.parametrize("kind", ["huber", "squared", "log_cosh"])
@pytest.mark.parametrize("width", [0.2, 3.0])
def test_the_likelihood_is_that_of_the_density_exp_minus_rho(kind, width) -> None:
    """Against the density normalised by quadrature, on a grid of τ around its best."""
    criterion = criteria.Criterion(kind, 0.01)
    residuals = width * 0.01 * np.random.default_rng(0).standard_t(5, size=60)
    found = comparison.minus_two_log_likelihood(residuals, criterion, np.ones(60))
    rho = criterion.rho(residuals).sum()

    def deviance(tau: float) -> float:
        reach = 60 * max(np.sqrt(tau), tau / 0.01)
        points = np.linspace(-reach, reach, 40_001)
        z = integrate.simpson(np.exp(-criterion.rho(points) / tau), x=points)
        return float(2 * (rho / tau + len(residuals) * np.log(z)))

    by_hand = min(deviance(tau) for tau in rho / len(residuals) * np.geomspace(0.2, 8, 80))
    assert found == pytest.approx(by_hand, abs=0.05)


def test_a_run_whose_last_checkpoint_is_held_out_is_held_out_whole(sweep) -> None:
    """Every run with an earlier checkpoint at half its tokens: none of the held-out runs' halves may be fitted."""
    half = sweep.assign(tokens=sweep["tokens"] / 2, flops=sweep["flops"] / 2, flops_budget=sweep["flops_budget"] / 2)
    both = pd.concat([sweep, half.assign(loss=half["loss"] * 1.05)], ignore_index=True)
    found = analysis.backtest("hoffmann", both, cluster="run_id", origins=1, resamples=30)
    top = sweep["flops_budget"].max()
    assert found.origins["fitted"].iloc[0] == 2 * (sweep["flops_budget"] < top * 0.99).sum()
    one = both.assign(run_id="only")
    with pytest.raises(analysis.Refused, match="has one value in all"):
        analysis.fit("hoffmann", one, cluster="run_id")


def test_weights_count_in_the_likelihood() -> None:
    """Squares with weights w are a normal of variance τ/w: its likelihood by hand."""
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.2, 2, 50)
    residuals = 0.03 * rng.normal(size=50) / np.sqrt(weight)
    tau = np.mean(weight * residuals**2)
    by_hand = np.sum(np.log(2 * np.pi * tau / weight) + weight * residuals**2 / tau)
    found = comparison.minus_two_log_likelihood(residuals, criteria.Criterion("squared"), weight)
    assert found == pytest.approx(by_hand, abs=1e-6)


def test_runs_are_counted_in_whole_numbers_beside_a_refused_origin(planted) -> None:
    found = analysis.backtest("hoffmann", planted(budgets=3, sizes=4, noise=1e-3, two_seeds=False), resamples=20)
    assert "(8 runs) predicts 4 runs up to" in found.summary()
    assert found.origins["unidentified"].iloc[0].startswith("8 runs for 5 parameters")
