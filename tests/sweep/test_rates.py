"""Rules for learning rates: planted minima are found, edges refused, laws follow their formulas."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from scaling import config, counting
from scaling.config import grids, rates

Make = Callable[..., config.Run]
GRID = tuple(float(rate) for rate in 1e-3 * 2.0 ** np.arange(6))
MUP = {"kind": "mup", "base_width": 8, "base_depth": 1, "base_head_size": 4}


def parabola(best: float, curvature: float = 0.3) -> list[float]:
    return [2.0 + curvature * math.log(rate / best) ** 2 for rate in GRID]


@hypothesis.given(st.floats(1.5e-3, 2.2e-2), st.floats(0.01, 3.0))
def test_a_planted_minimum_is_found(best: float, curvature: float) -> None:
    assert rates.optimum(GRID, parabola(best, curvature)) == pytest.approx(best, rel=1e-6)


def test_a_planted_minimum_is_found_through_noise_of_seeds() -> None:
    noise = np.random.default_rng(0).normal(0, 0.002, (8, len(GRID)))
    learning_rates = [rate for _ in range(8) for rate in GRID]
    losses = [loss for row in noise for loss in np.asarray(parabola(6e-3)) + row]
    assert rates.optimum(learning_rates, losses) == pytest.approx(6e-3, rel=0.02)


def test_the_order_of_trials_does_not_matter() -> None:
    losses = parabola(5e-3)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = rates.optimum([GRID[i] for i in order], [losses[i] for i in order])
    assert shuffled == pytest.approx(rates.optimum(GRID, losses), rel=1e-12)


@pytest.mark.parametrize(("best", "side"), [(1e-4, "smaller"), (1.0, "larger")])
def test_an_optimum_at_the_edge_is_refused(best: float, side: str) -> None:
    edge = GRID[0] if side == "smaller" else GRID[-1]
    with pytest.raises(ValueError, match=f"{edge:g}, is the edge of the grid .*add {side} rates"):
        rates.optimum(GRID, parabola(best))


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_diverged_runs_are_left_out(lost: float) -> None:
    losses = [*parabola(3e-3)[:5], lost]
    assert rates.optimum(GRID, losses) == pytest.approx(3e-3, rel=1e-6)


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_rate_at_which_one_seed_diverged_is_left_out(lost: float) -> None:
    """The mean of the seeds that survived would flatter it."""
    losses = [*parabola(3e-3), *parabola(3e-3)[:4], lost, lost]
    assert rates.optimum([*GRID, *GRID], losses) == pytest.approx(3e-3, rel=1e-6)
    flattered = [*parabola(3e-3)[:5], 1.0, *parabola(3e-3)[:5], lost]
    assert rates.optimum([*GRID, *GRID], flattered) == pytest.approx(3e-3, rel=1e-6)


def test_an_optimum_beside_diverged_runs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.008, stands next to diverged ones; add rates between"):
        rates.optimum(GRID, [*parabola(0.1)[:4], math.inf, math.inf])


def test_too_few_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="only 2 learning rates have a finite loss and a parabola needs 3"):
        rates.optimum(GRID, [3.0, 2.9, *[math.inf] * 4])


def test_losses_without_a_minimum_are_refused() -> None:
    with pytest.raises(ValueError, match="no minimum there; use a finer or wider grid"):
        rates.optimum(GRID, [1.0, 3.0, 2.0, 0.999, 5.0, 0.9999])


def test_the_step_law_is_its_formula(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At N = 1e8 and D = 1e10, by hand: 1.79 · 10^(−0.713 · 8 + 0.307 · 10) = 1.79 · 10^−2.634 = 4.158e−3."""
    monkeypatch.setattr(counting, "params_non_embedding", lambda *shape: 10**8)
    assert rates.StepLaw().learning_rate(make_run(tokens=10**10), {}) == pytest.approx(4.158e-3, rel=1e-4)
    assert "2503.04715" in rates.StepLaw().describe()


def test_a_rate_as_given_is_that_of_the_run(make_run: Make) -> None:
    assert rates.AsGiven().learning_rate(make_run(optimizer__learning_rate=0.123), {}) == 0.123
    assert rates.AsGiven().tuning_points([grids.Point(make_run(), {})]) == []


def tuned(**fields: Any) -> rates.Tuned:
    return rates.Tuned(**{"learning_rates": (0.01, 0.02, 0.04), "tokens": 320, **fields})


def test_every_size_is_tuned_at_every_rate_and_seed_on_its_own_tokens(make_run: Make) -> None:
    points = [grids.Point(make_run(model__width=w, seed=s), {"role": "single"}) for w in (8, 16) for s in (0, 1)]
    made = tuned(seeds=(5, 6)).tuning_points(points)
    assert [(p.run.model.width, p.run.optimizer.learning_rate, p.run.seed) for p in made] == [
        (w, rate, seed) for w in (8, 16) for rate in (0.01, 0.02, 0.04) for seed in (5, 6)
    ]
    assert {p.run.tokens for p in made} == {320}
    assert {p.labels["stage"] for p in made} == {"tune"}


def test_each_size_takes_its_own_optimum(make_run: Make) -> None:
    small, large = make_run(), make_run(model__width=16)
    optima = {rates.model_key(small.model): 0.03, rates.model_key(large.model): 0.01}
    assert [tuned().learning_rate(run, optima) for run in (small, large)] == [0.03, 0.01]


def test_one_optimum_is_transferred_by_mup(make_run: Make) -> None:
    at = grids.Ladder(sizes=(grids.Size(width=8, depth=1), grids.Size(width=16, depth=1)))
    rule = tuned(at=at)
    base = make_run(parametrization=MUP)
    rule.check(base)
    points = [grids.Point(base.edit({"model.width": w}), {"role": "single"}) for w in (8, 32, 64)]
    assert {p.run.model.width for p in rule.tuning_points(points)} == {8, 16}
    assert rule.learning_rate(points[2].run, {"a": 0.01, "b": 0.04}) == pytest.approx(0.02)
    assert "transferred to all sizes by µP" in rule.describe()


def test_a_sweep_over_more_than_size_tokens_and_seed_is_not_tuned(make_run: Make) -> None:
    """One optimum a size would silently serve runs of another batch size."""
    same = [grids.Point(make_run(seed=seed), {}) for seed in (0, 1)]
    assert len(tuned().tuning_points(same)) == 3
    larger = grids.Point(make_run(batch_size=2 * make_run().batch_size, tokens=2 * make_run().tokens), {})
    with pytest.raises(ValueError, match=r"runs differ in 'batch_size'.*tune a sweep for each value of 'batch_size'"):
        tuned().tuning_points([*same, larger])


def test_transfer_without_mup_is_refused(make_run: Make) -> None:
    at = {"kind": "ladder", "sizes": [{"width": 8, "depth": 1}]}
    rule = {"kind": "tuned", "learning_rates": [0.1, 0.2, 0.4], "tokens": 320, "at": at}
    with pytest.raises(ValueError, match="'standard' does not allow; use 'mup', or leave `at` out"):
        config.Sweep(name="s", base=make_run(), learning_rate=rule)
    assert config.Sweep(name="s", base=make_run(parametrization=MUP), learning_rate=rule).learning_rate.kind == "tuned"


@pytest.mark.parametrize(("tokens", "near"), [(330, 320), (5, 32)])
def test_tuning_on_a_part_of_a_batch_is_refused(make_run: Make, tokens: int, near: int) -> None:
    with pytest.raises(ValueError, match=f"{tokens} is no whole number of batches; the nearest is {near}"):
        tuned(tokens=tokens).check(make_run())


def test_two_rates_are_too_few_to_tune() -> None:
    with pytest.raises(ValueError, match="at least 3 items"):
        tuned(learning_rates=(0.1, 0.2))
