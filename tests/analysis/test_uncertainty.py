"""Intervals are reproducible, hold what they should, and the noise between seeds is what was planted."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import uncertainty


def test_bootstrap_is_seeded_and_brackets_the_estimate(sweep) -> None:
    fit = analysis.fit("hoffmann", sweep)
    boot, same, other = (fit.bootstrap(200, seed=s) for s in (0, 0, 1))
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


def test_intervals_cover_the_truth_about_as_often_as_they_say(planted, law_params) -> None:
    """40 replicas of a planted sweep: 95% intervals of the exponents and of the loss at 10x the compute."""
    held = dict.fromkeys(("alpha", "beta", "loss"), 0)
    replicas = 40
    beyond = {"params": np.array([2e6]), "tokens": np.array([4e7 / 12])}
    exact = sum((law_params["E"], law_params["A"] / 2e6 ** law_params["alpha"],
                 law_params["B"] / (4e7 / 12) ** law_params["beta"]))  # fmt: skip
    for replica in range(replicas):
        fit = analysis.fit("hoffmann", planted(noise=0.003, seed=100 + replica, sizes=8, width=6.0))
        boot = fit.bootstrap(96, seed=replica)
        for name in ("alpha", "beta"):
            low, high = boot.interval(name)
            held[name] += low <= law_params[name] <= high
        low, high = boot.predict_interval(beyond)
        held["loss"] += bool(low[0] <= exact <= high[0])
    for name, count in held.items():
        assert count >= 0.85 * replicas, (name, count)


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
