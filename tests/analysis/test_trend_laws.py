"""Laws of learning rates and batches, of transfer and of calendar time: planted truths, StepLaw's sweep, doublings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import laws, solver, trends

_RNG = np.random.default_rng(0)
ROWS = 120
INPUTS = {
    "params": np.exp(_RNG.uniform(np.log(1e6), np.log(1e9), ROWS)),
    "tokens": np.exp(_RNG.uniform(np.log(1e8), np.log(1e11), ROWS)),
    "flops": np.exp(_RNG.uniform(np.log(1e17), np.log(1e22), ROWS)),
    "steps": np.exp(_RNG.uniform(np.log(1e3), np.log(2e5), ROWS)),
    "finetune": np.exp(_RNG.uniform(np.log(1e5), np.log(1e9), ROWS)),
    "pretrained": (_RNG.random(ROWS) < 0.5).astype(float),
    "reached": _RNG.uniform(2, 6, ROWS),
    "time": _RNG.uniform(1990, 2024, ROWS),
}
TRUTHS = {  # the published constants of each law
    "best_rate": {"a": 1.79, "b": -0.713, "c": 0.307},
    "best_batch": {"a": 0.58, "b": 0.571},
    "best_rate_compute": {"a": 0.3118, "b": -0.125},
    "best_batch_compute": {"a": 0.2920, "b": 0.3271},
    "critical_batch": {"B_star": 2e8, "alpha_B": 0.21},
    "kaplan_s": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
    "transferred": {"k": 1.9e4, "alpha": 0.18, "beta": 0.38},
    "transfer": {
        "N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103, "k": 1.9e4, "alpha": 0.18, "beta": 0.38,
    },
    "trend": {"a": 1e18, "doublings": 12 / 5.7},
    "trend_break": {"a": 1e16, "before": 12 / 21.3, "after": 12 / 5.7, "moment": 2010.3},
    "progress": {"E": 1.1, "A": 60.0, "B": 120.0, "alpha": 0.3, "beta": 0.28, "alpha_year": 0.05, "beta_year": 0.09},
}  # fmt: skip
TIMED = ("trend", "trend_break", "progress")
FITTED = [name for name in TRUTHS if name not in ("best_batch", "best_rate_compute", "best_batch_compute")]


def _planted(name: str, noise: float = 0.0) -> pd.DataFrame:
    law = laws.get(name)
    with solver.precise():
        exact = np.asarray(law(INPUTS, TRUTHS[name]), dtype=np.float64)
    normal = np.random.default_rng(7).normal(size=ROWS)
    return pd.DataFrame({**{key: INPUTS[key] for key in law.inputs}, "y": exact * np.exp(noise * normal)})


def _fit(name: str, noise: float = 0.0) -> analysis.Fit:
    fixed = {"E": TRUTHS[name]["E"]} if name == "progress" else {}  # the published model has E = 0
    return analysis.fit(name, _planted(name, noise), loss="y", objective="squared", fixed=fixed)


@pytest.mark.parametrize("name", FITTED)
def test_planted_laws_are_found_and_their_intervals_hold_the_truth(name: str) -> None:
    exact = _fit(name)
    assert exact.status == "converged"
    noisy = _fit(name, 0.002)
    boot = noisy.bootstrap(resamples=96, seed=0)
    for key, value in TRUTHS[name].items():
        assert exact.params[key] == pytest.approx(value, rel=1e-4), key
        middle, half = boot.samples[key].mean(), 4 * boot.samples[key].std()
        assert abs(middle - value) <= half + 1e-12, key


@pytest.mark.parametrize("name", list(TRUTHS))
def test_values_are_positive_and_derivatives_finite_at_every_bound(name: str) -> None:
    law, truth = laws.get(name), solver.coordinates(laws.get(name), TRUTHS[name])[0]
    low, high = solver.box(law)
    points = [truth]
    for i, (_, parameter) in enumerate(law.parameters):
        for end in (low[i], high[i]) if np.isfinite(parameter.upper) else (low[i],):
            points.append(np.where(np.arange(len(truth)) == i, end, truth))
    inputs = {key: np.quantile(INPUTS[key], [0.0, 0.5, 1.0]) for key in law.inputs}
    with solver.precise():

        def value(t: jax.Array) -> jax.Array:
            return jnp.asarray(law({key: jnp.asarray(v) for key, v in inputs.items()}, solver.named(law, t)))

        theta = jnp.array(points)
        parts = value, jax.jacfwd(value), jax.jacfwd(jax.jacfwd(value))
        values, slopes, curvatures = map(np.asarray, jax.jit(jax.vmap(lambda t: [part(t) for part in parts]))(theta))
    assert (values >= 0).all()
    assert (values[0] > 0).all()
    for part in (values, slopes, curvatures):
        assert np.isfinite(part).all()


def test_published_laws_give_the_published_numbers() -> None:
    """StepLaw at 1B parameters and 100B tokens; Kaplan's critical batch at 3 nats; Hernandez at 1e5 characters."""
    with solver.precise():
        assert laws.get("best_rate")({"params": 1e9, "tokens": 1e11}, TRUTHS["best_rate"]) == pytest.approx(
            1.79 * 10 ** (-0.713 * 9 + 0.307 * 11)
        )
        assert laws.get("critical_batch")({"reached": 3.0}, TRUTHS["critical_batch"]) == pytest.approx(
            2e8 / 3 ** (1 / 0.21)
        )
        scratch = {"params": 1e8, "finetune": 1e5, "pretrained": 0.0}
        worth = 1e5 + 1.9e4 * 1e5**0.18 * 1e8**0.38
        transfer = laws.get("transfer")
        tuned = transfer({**scratch, "pretrained": 1.0}, TRUTHS["transfer"])
        assert tuned == pytest.approx(float(transfer({**scratch, "finetune": worth}, TRUTHS["transfer"])))


def _optima(frame: pd.DataFrame) -> pd.DataFrame:
    """The best rate and batch of each (N, D): the mean, in logs, of the ten best runs of its sweep."""
    rows = []
    for (params, tokens), sweep in frame.groupby(["params", "tokens"]):
        best = np.log(sweep.nsmallest(10, "smoothed_loss")[["lr", "batch_size_tokens"]]).mean()
        rows.append({"params": params, "tokens": tokens, "rate": np.exp(best.iloc[0]), "batch": np.exp(best.iloc[1])})
    return pd.DataFrame(rows)


def test_the_sweep_of_steplaw(table: Callable[[str], pd.DataFrame]) -> None:
    """17 sweeps: exponents -0.81 and 0.27 of the rate, 0.54 of the batch; published -0.713, 0.307 and 0.571."""
    optima = _optima(table("li2025_steplaw_dense.csv"))
    assert len(optima) == 17
    rate = analysis.fit("best_rate", optima, loss="rate", objective="squared")
    batch = analysis.fit("best_batch", optima, loss="batch", objective="squared")
    for fit, name, key in ((rate, "best_rate", "b"), (rate, "best_rate", "c"), (batch, "best_batch", "b")):
        low, high = fit.profile(key, level=0.95).interval
        assert low <= TRUTHS[name][key] <= high
    assert np.abs(rate.residuals).max() < np.log(2)


def test_doubling_times() -> None:
    grows, breaks, better = (trends.doubling_time(_fit(name, 0.002), resamples=96) for name in TIMED)
    assert grows[0].years.value == pytest.approx(5.7 / 12, rel=0.01)
    assert grows[0].years.interval[0] < 5.7 / 12 < grows[0].years.interval[1]
    assert "months" in str(grows[0])
    assert [round(12 * one.years.value, 1) for one in breaks] == [21.3, 5.7]
    compute, size, data = (one.rate.value for one in better)
    assert compute == pytest.approx(size + data)
    truth = 0.05 / 0.3 / np.log(2) + 0.09 / 0.28 / np.log(2)
    assert better[0].rate.interval[0] < truth < better[0].rate.interval[1]


def test_a_flat_or_falling_trend() -> None:
    time = np.linspace(2010, 2020, 60)
    wobble = np.exp(0.3 * np.random.default_rng(1).normal(size=60))
    flat = analysis.fit("trend", pd.DataFrame({"time": time, "loss": wobble}), objective="squared")
    (told,) = trends.doubling_time(flat, resamples=96)
    assert not np.isfinite(told.years.interval).all()
    falling = pd.DataFrame({"time": time, "loss": 2 ** (-(time - 2010) / 2) * np.exp(0.01 * np.sin(9 * time))})
    (told,) = trends.doubling_time(analysis.fit("trend", falling, objective="squared"), resamples=96)
    assert told.years.value == pytest.approx(-2.0, rel=0.01)
    assert told.years.interval[0] < told.years.value < told.years.interval[1] < 0


def test_other_laws_have_no_doubling_time() -> None:
    fit = analysis.fit("best_batch", _planted("best_batch"), loss="y", objective="squared")
    with pytest.raises(ValueError, match="no doubling time"):
        trends.doubling_time(fit)
