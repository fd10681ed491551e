"""Intervals are reproducible, hold what they should, and the noise between seeds is what was planted."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import analysis
from analysis import uncertainty


def test_bootstrap_is_seeded_and_brackets_the_estimate(sweep) -> None:
    fit = analysis.fit("hoffmann", sweep)
    boot, same, other = (fit.bootstrap(100, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(boot.samples, same.samples)
    assert not boot.samples.equals(other.samples)
    for name, value in fit.params.items():
        narrow, wide = boot.interval(name, 0.5), boot.interval(name, 0.95)
        assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
        assert wide[0] < value < wide[1]
    low, high = boot.predict_interval(sweep)
    assert low.shape == (len(sweep),)
    assert np.all((low < fit.predict(sweep)) & (fit.predict(sweep) < high))
    with pytest.raises(ValueError, match="no parameter"):
        boot.interval("gamma")
    with pytest.raises(ValueError, match="between 0 and 1"):
        boot.interval("alpha", 95)


def test_every_resample_is_at_its_own_minimum(sweep) -> None:
    """A resample is the weighted problem: refitting the drawn rows from scratch finds the same parameters."""
    fit = analysis.fit("hoffmann", sweep)
    boot = fit.bootstrap(8, seed=5)
    assert boot.converged == 1.0
    drawn = uncertainty.counts(len(sweep), 8, 5)
    plain = sweep[["params", "tokens", "loss"]]
    for i in range(3):
        rows = plain.loc[plain.index.repeat(drawn[i].astype(int))].reset_index(drop=True)
        again = analysis.fit("hoffmann", rows.assign(copy=range(len(rows))))
        for name, value in boot.samples.iloc[i].items():
            assert again.params[name] == pytest.approx(value, rel=1e-4), (i, name)


def test_bias_correction_moves_percentiles_as_efron_says() -> None:
    """Φ(z₀) of the resamples below the estimate: the interval is from Φ(2 z₀ − 1.96) to Φ(2 z₀ + 1.96)."""
    samples = scipy.stats.norm.ppf(np.arange(1, 4000) / 4000)
    draws = np.random.default_rng(0).permutation(samples)
    for value in (-0.4, 0.0, 0.3):
        moved = uncertainty.unbiased(draws, value)
        assert uncertainty.percentiles(moved, 0.95) == pytest.approx((2 * value - 1.96, 2 * value + 1.96), abs=0.02)
        assert (np.argsort(moved, kind="stable")[200:-200] == np.argsort(draws, kind="stable")[200:-200]).all()
        logs = np.log(uncertainty.unbiased(np.exp(draws), np.exp(value)))
        np.testing.assert_allclose(np.sort(logs)[200:-200], np.sort(moved)[200:-200], atol=1e-3)
    both = uncertainty.unbiased(np.stack([draws, 2 * draws], axis=1), np.array([0.3, -0.8]))
    np.testing.assert_array_equal(both[:, 1], uncertainty.unbiased(2 * draws, -0.8))


def test_bias_correction_leaves_a_pile_at_a_bound_alone() -> None:
    """An estimate at its bound, where most resamples lie too: plain percentiles, never outside the resamples."""
    samples = np.maximum(scipy.stats.norm.ppf(np.arange(1, 1000) / 1000) - 0.25, 0.0)
    np.testing.assert_allclose(uncertainty.unbiased(samples, 0.0), samples, atol=1e-12)
    above = uncertainty.unbiased(samples, samples.max() + 1)
    assert samples.min() <= above.min() <= above.max() <= samples.max()


def test_few_samples_do_not_narrow_a_percentile_interval() -> None:
    """39 samples: the 2.5% and 97.5% quantiles are the least and the greatest, which hold another draw 38 in 40."""
    assert uncertainty.percentiles(np.arange(39.0), 0.95) == pytest.approx((0.0, 38.0), abs=1e-9)
    low, high = uncertainty.percentiles(np.append(np.arange(39.0), np.nan), 0.5)
    assert (low, high) == pytest.approx((9.0, 29.0))


def test_intervals_cover_the_truth_about_as_often_as_they_say(planted, law_params) -> None:
    """40 replicas of a planted sweep: 95% intervals of the exponents, of the loss at 10x the compute and of a run."""
    held = dict.fromkeys(("alpha", "beta", "loss", "run"), 0)
    replicas = 40
    beyond = {"params": np.array([2e6]), "tokens": np.array([4e7 / 12])}
    exact = sum((law_params["E"], law_params["A"] / 2e6 ** law_params["alpha"],
                 law_params["B"] / (4e7 / 12) ** law_params["beta"]))  # fmt: skip
    widths = []
    for replica in range(replicas):
        frame = planted(noise=0.003, seed=100 + replica, sizes=8, width=6.0)
        fit = analysis.fit("hoffmann", frame, start=law_params)
        boot = fit.bootstrap(96, seed=replica)
        for name in ("alpha", "beta"):
            low, high = boot.interval(name)
            held[name] += low <= law_params[name] <= high
        low, high = boot.predict_interval(beyond, noise=False)
        held["loss"] += bool(low[0] <= exact <= high[0])
        wide = boot.predict_interval(beyond)
        run = exact * np.exp(0.003 * np.random.default_rng(10_000 + replica).normal())
        held["run"] += bool(wide[0][0] <= run <= wide[1][0])
        widths.append((high[0] - low[0], wide[1][0] - wide[0][0]))
    for name, count in held.items():
        assert count >= 0.85 * replicas, (name, count)
    law, run_width = np.median(widths, axis=0)
    assert run_width > law
    assert run_width < np.hypot(law, 2 * 2.5 * 0.003 * exact)  # and no wider than the two scatters together


def test_interval_of_a_new_run_is_as_wide_as_the_noise(planted) -> None:
    """Many runs, so that the law is known: what is left is ±1.96 σ of the loss, and 95% of other runs lie inside."""
    fit = analysis.fit("hoffmann", planted(noise=0.01, seed=4, budgets=10, sizes=20, two_seeds=False))
    other = planted(noise=0.01, seed=5, budgets=10, sizes=20, two_seeds=False)
    low, high = fit.bootstrap(200, seed=0).predict_interval(other)
    assert np.median(np.log(high / low)) == pytest.approx(2 * 1.96 * 0.01, rel=0.15)
    assert 0.91 <= np.mean((low < other["loss"]) & (other["loss"] < high)) <= 0.99


def test_resamples_of_the_public_rows_have_the_published_errors(table) -> None:
    """Besiroglu's 240 rows: 4,000 resamples give standard errors near 124.5, 1293, 0.0257, 0.0154, 0.0206."""
    rows = table("chinchilla_besiroglu2024.csv")
    fit = analysis.fit("hoffmann", rows[rows["excluded_in_published_fit"] == 0][["params", "tokens", "loss"]])
    boot = fit.bootstrap(500, seed=0)
    assert boot.converged == 1.0
    known = {"A": 124.5, "B": 1293.0, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, error in known.items():
        assert boot.samples[name].std() == pytest.approx(error, rel=0.15), name


def test_seed_noise_is_the_planted_one() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"params": n, "tokens": 1e6, "seed": s, "loss": 2.0 + 1e5 / n + 0.01 * rng.normal(), "status": "finished"}
        for n in np.geomspace(1e5, 1e6, 50)
        for s in range(5)
    ]
    noise = analysis.seed_noise(pd.DataFrame(rows))
    assert noise.degrees_of_freedom == 200
    assert noise.sd == pytest.approx(0.01, rel=0.15)
    by_hand = pd.DataFrame(rows).groupby("params")["loss"].var(ddof=1).mean() ** 0.5
    assert noise.sd == pytest.approx(by_hand, rel=1e-12)


def test_seed_noise_says_why_it_is_not_measured(sweep) -> None:
    one = analysis.seed_noise(sweep[sweep["seed"] == 0])
    assert np.isnan(one.sd)
    assert "no configuration was run with two seeds" in one.message
    assert "no column 'seed'" in analysis.seed_noise(sweep.drop(columns="seed")).message
    twice = pd.concat([sweep, sweep.assign(run_id=sweep["run_id"] + "b", loss=sweep["loss"] * 1.5)])
    assert "one seed twice" in analysis.seed_noise(twice).message


def test_resamples_that_stop_short_start_again(planted) -> None:
    """14 noisy runs: a third of the resamples stops between minima when started from the optimum of all runs alone."""
    fit = analysis.fit("hoffmann", planted(noise=0.03, seed=3, two_seeds=False).sample(14, random_state=3))
    boot = fit.bootstrap(100)
    assert boot.converged == 1.0
    assert boot.warnings == ()
    low, high = boot.interval("alpha")
    assert low <= np.median(boot.samples["alpha"]) <= high


@pytest.mark.parametrize(("share", "level"), [(1.0, 0.95), (0.99, 1 - 2 * 0.02 / 0.99), (0.9, 1.0)])
def test_missing_resamples_widen_intervals_and_are_named(sweep, share: float, level: float) -> None:
    """Half of them below and half above the others: the tails hold 2.5% of all resamples."""
    boot = dataclasses.replace(analysis.fit("hoffmann", sweep).bootstrap(100), converged=share)
    assert boot.level(0.95) == pytest.approx(level, abs=1e-6)
    moved = uncertainty.unbiased(boot.samples["alpha"].to_numpy(), boot.fit.params["alpha"])
    tail = 50 * (1 - level)
    assert boot.interval("alpha") == pytest.approx(
        tuple(np.percentile(moved, [tail, 100 - tail], method="weibull")), rel=1e-6
    )
    assert [f"{1 - share:.1%} of " in told for told in boot.warnings] == [True] * (share < 1)


def test_too_few_resamples_at_a_minimum_are_refused(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = analysis.fit("hoffmann", sweep)
    monkeypatch.setattr(uncertainty, "FEWEST", 1.01)
    with pytest.raises(analysis.Refused, match="100% of 20 resamples reached a minimum, from 8 other starts either"):
        fit.bootstrap(20)
