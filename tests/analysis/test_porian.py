"""Porian et al. 2024, arXiv 2406.19146: all 15 exponents from their optima and from their iso-FLOP points."""

import numpy as np
import pytest

import analysis
from analysis import frontiers

KEYS = ["dataset", "hparams", "warmup", "decay", "param_count", "loss_kind"]


@pytest.fixture(scope="module")
def published(table):
    exponents = table("porian2024_published_exponents.csv").set_index(KEYS)
    assert len(exponents) == 15
    return exponents


def test_all_exponents_from_the_optimal_points(table, published) -> None:
    names = {"params": "params_opt", "tokens": "tokens_opt", "loss": "loss_opt"}
    errors_of = {"params_se": "log_params_opt_std", "tokens_se": "log_tokens_opt_std"}
    for key, rows in table("porian2024_optimal_points.csv").groupby(KEYS):
        weighted = frontiers.through(rows, **names, **errors_of, resamples=200)
        even = frontiers.through(rows, **names, resamples=200)
        want = published.loc[key]
        assert weighted.exponent_params.value == pytest.approx(want["a_weighted"], abs=1e-6), key
        assert weighted.exponent_tokens.value == pytest.approx(want["b_tokens_weighted"], abs=1e-6), key
        assert even.exponent_params.value == pytest.approx(want["a_unweighted"], abs=1e-6), key
        assert weighted.allocate(1.0).params.value == pytest.approx(want["coef_weighted"], rel=1e-6), key
        assert even.allocate(1.0).params.value == pytest.approx(want["coef_unweighted"], rel=1e-6), key
        low, high = weighted.exponent_params.interval
        assert 0.005 < high - low < 0.12, key


def test_all_exponents_from_the_isoflop_points_by_interpolation(table, published) -> None:
    """±0.02 of the published, by exactly the curves they used; the parabola's stands beside it, and its bias."""
    off = {"parabola": [], "akima": []}
    for key, rows in table("porian2024_isoflop.csv").groupby(KEYS):
        found = analysis.frontier(rows, 2, minimum="akima", resamples=200)
        want = published.loc[key, "a_weighted"]
        assert found.exponent_params.value == pytest.approx(want, abs=0.02), key
        low, high = found.exponent_params.interval
        assert low < want < high, key
        beside = found.methods.set_index("minimum")
        assert beside.loc["akima", "exponent_params"] == found.exponent_params.value
        difference = beside.loc["parabola", "exponent_params"] - found.exponent_params.value
        assert beside.loc["parabola", "difference"] == pytest.approx(difference)
        assert abs(beside.loc["akima", "bias_exponent"]) < 0.01
        assert abs(np.log(beside.loc["akima", "bias_params"])) < 0.02
        assert any("by parabolas: a = " in told and f"{difference:+.4f}" in told for told in found.statements)
        for kind, values in off.items():
            values.append(beside.loc[kind, "exponent_params"] - want)
    assert np.sqrt(np.mean(np.square(off["akima"]))) < 0.008
    assert np.sqrt(np.mean(np.square(off["parabola"]))) > 0.012
    assert np.abs(off["parabola"]).max() < 0.035
