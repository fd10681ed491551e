"""Optima of the fitted law with the cost of inference (Sardana et al. 2024, arXiv 2401.00448), against searches."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import laws, surfaces

EXPONENT = st.floats(0.15, 0.8)


def surface(alpha: float, beta: float, kappa: float, k: float = 6.0) -> surfaces.Surface:
    law = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": alpha, "beta": beta}
    rule = surfaces.FlopRule(k, kappa, "test")
    params = {name: np.array([value, value]) for name, value in law.items()}
    return surfaces.Surface(laws.get("hoffmann"), params, rule, 1e20)


def loss(alpha: float, beta: float, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 1.7 + 400 / params**alpha + 900 / tokens**beta


@settings(max_examples=60)
@given(EXPONENT, EXPONENT, st.floats(0.7, 1.3), st.floats(14, 26), st.floats(6, 16))
def test_a_budget_with_inference_buys_the_least_loss(alpha, beta, kappa, power, served) -> None:
    flops, inference = 10.0**power, 10.0**served
    (params, tokens, least), again = surface(alpha, beta, kappa).at(flops, inference)
    assert (again == [params, tokens, least]).all()
    assert 6 * params**kappa * (tokens + inference / 3) == pytest.approx(flops, rel=1e-8)
    log_n = np.log(params) + np.linspace(-3, 3, 4001)
    left = flops / 6 / np.exp(kappa * log_n) - inference / 3
    possible = left > 0
    found = loss(alpha, beta, np.exp(log_n[possible]), left[possible])
    assert least == pytest.approx(loss(alpha, beta, params, tokens))
    assert least <= found.min() * (1 + 1e-10)


@settings(max_examples=60)
@given(EXPONENT, EXPONENT, st.floats(0.7, 1.3), st.floats(0.05, 1.0), st.floats(0, 16))
def test_a_loss_is_reached_at_the_least_cost(alpha, beta, kappa, room, served) -> None:
    inference = 10.0**served
    ((flops, params, tokens), _) = surface(alpha, beta, kappa).reach(1.7 + room, inference)
    assert loss(alpha, beta, params, tokens) == pytest.approx(1.7 + room, rel=1e-9)
    assert flops == pytest.approx(6 * params**kappa * (tokens + inference / 3), rel=1e-8)
    share = 1 / (1 + np.exp(-np.linspace(-20, 20, 8001)))
    log_n, log_d = np.log(400 / (share * room)) / alpha, np.log(900 / ((1 - share) * room)) / beta
    cost = np.log(6) + kappa * log_n + np.logaddexp(log_d, np.log(inference / 3))
    assert np.log(flops) <= cost.min() + 1e-9


def test_no_inference_is_what_there_was(planted) -> None:
    found = analysis.frontier(planted(noise=0.002), 3, resamples=100)
    plain, none = found.allocate(1e14), found.allocate(1e14, inference_tokens=0)
    assert plain == none
    assert plain.training_flops.interval == (1e14, 1e14)
    little = found.allocate(1e14, inference_tokens=1e-3)
    assert little.params.value == pytest.approx(plain.params.value, rel=1e-6)
    assert little.params.interval == pytest.approx(plain.params.interval, rel=1e-6)


def test_inference_makes_models_smaller_and_trained_for_longer(planted) -> None:
    found = analysis.frontier(planted(noise=0.002), 3, resamples=100)
    bought = [found.allocate(1e14, served) for served in (0.0, 1e7, 1e8, 1e9)]
    assert (np.diff([b.params.value for b in bought]) < 0).all()
    assert (np.diff([b.tokens.value for b in bought]) > 0).all()
    assert (np.diff([b.loss.value for b in bought]) > 0).all()
    assert (np.diff([b.training_flops.value for b in bought]) < 0).all()
    for b in bought:
        assert b.params.interval[0] <= b.params.value <= b.params.interval[1]
        back = found.reach(b.loss.value, b.inference_tokens)
        assert back.flops.value == pytest.approx(1e14, rel=1e-6)
        assert back.params.value == pytest.approx(b.params.value, rel=1e-4)
        assert back.reachable == 1.0


def test_a_loss_near_the_floor_has_no_upper_bound(planted) -> None:
    found = analysis.frontier(planted(noise=0.01), 3, resamples=200)
    floor = found.fit.params["E"]
    near = found.reach(floor + 1e-3)
    assert near.reachable < 0.975
    assert np.isinf(near.flops.interval[1])
    assert near.flops.interval[0] < near.flops.value < np.inf
    with pytest.raises(analysis.Refused, match="reaches no loss at or below E"):
        found.reach(floor)
    for loss in (np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match=f"loss = {loss}: must be finite; pass a loss"):
            found.reach(loss)


@pytest.mark.parametrize("approach", [1, 2])
def test_approaches_without_a_law_refuse_inference(approach, sweep) -> None:
    found = analysis.frontier(sweep, approach, resamples=20)
    with pytest.raises(analysis.Refused, match=f"approach {approach} knows only"):
        found.allocate(1e13, inference_tokens=1e9)
    with pytest.raises(analysis.Refused, match="needs the loss elsewhere"):
        found.reach(2.0)
    with pytest.raises(ValueError, match="at least 0"):
        found.allocate(1e13, inference_tokens=-1.0)


def counted(per_token, sizes: np.ndarray) -> pd.DataFrame:
    """A sweep of a planted law whose FLOPs a token are a function of N."""
    flops, params = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e17, 1e19, 5), sizes))
    tokens = flops / per_token(params)
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": flops}).assign(
        loss=1.8 + 480 / params**0.35 + 2100 / tokens**0.37
    )


WIDTHS = np.array([128, 192, 256, 384, 512, 768, 1024])
NON_EMBEDDING = 12 * WIDTHS**3 / 64


def head(params: np.ndarray) -> np.ndarray:
    """A head of 50,304 words for N = 12 L d², L = d/64."""
    return 50304 * (params * 64 / 12) ** (1 / 3)


@pytest.mark.parametrize(
    ("per_token", "rule"),
    [
        (lambda n: 3.6 * n, "C = 3.6 · N · D"),
        (lambda n: 10.2 * n, "C = 10.2 · N · D"),
        (lambda n: 10.2 * n**0.9, "N^0.9000"),
        (lambda n: 6 * (n + head(n)), "(1 + "),
        (lambda n: 6 * (n - 800 * n ** (1 / 3)), "(1 - "),
    ],
)
@pytest.mark.parametrize("served", [0.0, 1e10])
def test_an_allocation_costs_its_budget_by_the_accounting_of_the_runs(per_token, rule, served) -> None:
    """A law of N that leaves out the head, or counts embeddings, far beyond the runs."""
    found = analysis.frontier(counted(per_token, NON_EMBEDDING), 3, resamples=5)
    assert rule in found.statements[0]
    for flops in (1e19, 1e22, 1e25):
        bought = found.allocate(flops, served)
        cost = per_token(bought.params.value) * (bought.tokens.value + served / 3)
        assert cost == pytest.approx(flops, rel=0.02)
        others = bought.params.value * np.array([0.97, 1.03])
        left = [flops / per_token(n) - served / 3 for n in others]
        fit = found.fit.predict({"params": others, "tokens": np.array(left)})
        assert (fit > bought.loss.value * (1 - 2e-4)).all()
    target = found.reach(2.2, served)
    cost = per_token(target.params.value) * (target.tokens.value + served / 3)
    assert cost == pytest.approx(target.flops.value, rel=0.02)


def test_runs_far_from_any_rule_are_warned_about() -> None:
    frame = counted(lambda n: 6 * n, NON_EMBEDDING)
    spread = frame.assign(flops=frame["flops"] * np.tile([0.8, 1.25, 1.0, 0.7, 1.1], 7))
    assert any("scatter by" in told for told in analysis.frontier(spread, 3, resamples=5).warnings)
    assert not any("scatter by" in told for told in analysis.frontier(frame, 3, resamples=5).warnings)
