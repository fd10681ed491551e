"""The choice of the next runs: what it buys, that it helps, and what it refuses."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis import design, errors, information, laws

TRUE = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.37}
HOFFMANN = laws.get("hoffmann")
NOISE = 0.004


def _grid(low: float, high: float, count: int) -> pd.DataFrame:
    """Sizes and lengths between `low` and `high` FLOPs, `count` budgets of five sizes each."""
    budget, shape = np.meshgrid(np.geomspace(low, high, count), np.geomspace(0.2, 5, 5), indexing="ij")
    params = np.sqrt(budget / 120) * shape
    frame = pd.DataFrame({"params": params.ravel(), "tokens": (budget / (6 * params)).ravel()})
    return frame.assign(flops=6 * frame["params"] * frame["tokens"])


def _loss(frame: pd.DataFrame, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    exact = TRUE["E"] + TRUE["A"] / frame["params"] ** TRUE["alpha"] + TRUE["B"] / frame["tokens"] ** TRUE["beta"]
    return np.asarray(exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(frame))))


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    return _grid(1e17, 1e20, 10)


@pytest.fixture(scope="module")
def target() -> pd.DataFrame:
    return _grid(2e21, 4e21, 2)


@pytest.fixture(scope="module")
def done(pool: pd.DataFrame) -> pd.DataFrame:
    few = pool.iloc[:8]
    return few.assign(loss=_loss(few, NOISE, seed=99))


@pytest.fixture(scope="module")
def chosen(done: pd.DataFrame, pool: pd.DataFrame, target: pd.DataFrame) -> design.Design:
    return design.next_runs("hoffmann", done, pool, target, 3e20)


def test_it_spends_within_the_budget_and_says_what_each_run_does(
    chosen: design.Design, pool: pd.DataFrame, target: pd.DataFrame
) -> None:
    bought = chosen.chosen
    assert bought["order"].tolist() == list(range(1, len(bought) + 1))
    assert bought.index.is_unique
    assert bought["cost"].tolist() == pool.loc[bought.index, "flops"].tolist()
    assert chosen.spent == pytest.approx(bought["cost"].sum())
    assert chosen.spent <= chosen.budget == 3e20
    assert chosen.left == pytest.approx(3e20 - chosen.spent)
    assert (pool.drop(bought.index)["flops"] > chosen.left).all(), "what is left buys another run"
    assert (bought["reduction"] >= 0).all()
    assert bought["sd_after"].is_monotonic_decreasing
    predicted = chosen.predicted_sd
    assert predicted.index.equals(target.index)
    assert (predicted["after"] <= predicted["before"]).all()
    assert np.sqrt(np.mean(predicted["after"] ** 2)) == pytest.approx(bought["sd_after"].iloc[-1], rel=1e-6)
    assert np.sqrt(np.mean(predicted["before"] ** 2)) == pytest.approx(
        bought["sd_after"].iloc[0] + bought["reduction"].iloc[0], rel=1e-6
    )
    text = chosen.summary()
    assert f"runs chosen: {len(bought)}" in text
    assert "1. params" in text


def test_it_is_the_same_again_and_in_other_units_and_columns(
    chosen: design.Design, done: pd.DataFrame, pool: pd.DataFrame, target: pd.DataFrame
) -> None:
    again = design.next_runs("hoffmann", done, pool, target, 3e20)
    pd.testing.assert_frame_equal(again.chosen, chosen.chosen)
    dollars = design.next_runs("hoffmann", done, pool, target, 3e2, cost=lambda frame: frame["flops"].to_numpy() / 1e18)
    assert dollars.chosen.index.tolist() == chosen.chosen.index.tolist()
    assert dollars.spent == pytest.approx(chosen.spent / 1e18)
    renamed = [frame.rename(columns={"params": "size"}) for frame in (done, pool, target)]
    other = design.next_runs("hoffmann", *renamed, 3e20, params="size")
    assert other.chosen.index.tolist() == chosen.chosen.index.tolist()


def test_at_most_so_many_runs(done: pd.DataFrame, pool: pd.DataFrame, target: pd.DataFrame) -> None:
    assert len(design.next_runs("hoffmann", done, pool, target, 3e20, runs=3).chosen) == 3


def test_chosen_runs_predict_better_than_random_ones_of_the_same_cost(pool: pd.DataFrame, target: pd.DataFrame) -> None:
    """Mean over 8 sweeps of the rms error of log L at the target, from the five cheapest runs and 1% of all cost."""
    few, budget = pool.iloc[:5], 1e19
    drift, truth = information.Drift.over(HOFFMANN, pd.concat([pool, target])), np.log(_loss(target))
    ours, random = [], []
    for seed in range(8):
        losses = pd.Series(_loss(pool, NOISE, seed), index=pool.index)
        done = few.assign(loss=losses[few.index])
        bought = design.next_runs("hoffmann", done, pool.drop(few.index), target, budget, seed=seed).chosen.index
        order = np.random.default_rng(seed).permutation(pool.index[len(few) :])
        picked: list[int] = []
        for i in order:
            if pool["flops"][[*picked, i]].sum() <= budget:
                picked.append(i)
        assert pool["flops"][bought].sum() <= budget
        for rows, errors_ in ((bought, ours), (picked, random)):
            runs = pool.loc[[*few.index, *rows]]
            samples = information.sample(HOFFMANN, runs, losses[runs.index].to_numpy(), drift, seed=seed)
            errors_.append(np.sqrt(np.mean((np.log(samples.predict(target)) - truth) ** 2)))
    assert np.mean(ours) < 0.8 * np.mean(random), (np.mean(ours), np.mean(random))


def test_a_plan_is_what_the_covariances_say() -> None:
    """One greedy step against the covariance of a linear model written out."""
    rng = np.random.default_rng(0)
    candidates, target = rng.normal(size=(1, 6, 3)), rng.normal(size=(1, 4, 3))
    cost, noise = rng.uniform(1, 2, 6), 0.7

    def after(rows: list[int]) -> float:
        inner = np.linalg.inv(np.eye(3) + candidates[0, rows].T @ candidates[0, rows] / noise**2)
        return float(np.trace(target[0] @ inner @ target[0].T) / 4)

    first = int(np.argmax([(after([]) - after([i])) / cost[i] for i in range(6)]))
    plan = design.greedy(candidates, target, cost, cost.sum(), noise, power=1.0)
    assert plan.chosen[0] == first
    assert sorted(plan.chosen) == list(range(6))
    assert plan.variance == pytest.approx([after(plan.chosen[:k]) for k in range(7)])
    left = design.conditioned(target, candidates[:, plan.chosen[:2]], noise)
    assert np.mean(np.sum(left**2, axis=2)) == pytest.approx(plan.variance[2])
    dear = design.greedy(candidates, target, cost, cost.sum(), noise, power=0.0, criterion="parameters")
    leverage = np.sum(candidates[0] ** 2, axis=1)
    assert dear.chosen[0] == int(np.argmax(leverage))


def test_the_best_plan_is_no_worse_than_any_of_its_kind(pool: pd.DataFrame, target: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    candidates, there, cost = rng.normal(size=(2, 30, 4)), rng.normal(size=(2, 5, 4)), np.geomspace(0.01, 1, 30)
    best = design.best_plan(candidates, there, cost, 1.0, 0.5)
    each = [design.greedy(candidates, there, cost, 1.0, 0.5, power=power).variance[-1] for power in design.POWERS]
    assert best.variance[-1] == min(each)


@pytest.mark.parametrize("count", [0, 2])
def test_a_start_without_a_law(pool: pd.DataFrame, target: pd.DataFrame, count: int) -> None:
    some = pool.iloc[:count]
    some = some.assign(loss=_loss(some))
    made = design.next_runs("hoffmann", some, pool, target, 1e20, runs=8)
    assert "start without a law" in made.summary()
    for name in ("params", "tokens"):
        assert np.ptp(np.log(made.chosen[name])) > 0.3 * np.ptp(np.log(pool[name]))
    assert made.spent <= 1e20


def test_samples_hold_the_truth_and_narrow_with_runs(pool: pd.DataFrame, target: pd.DataFrame) -> None:
    drift, truth = information.Drift.over(HOFFMANN, pd.concat([pool, target])), np.log(_loss(target))
    widths = []
    for rows in (pool.iloc[:10], pool):
        samples = information.sample(HOFFMANN, rows, _loss(rows, NOISE, seed=3), drift)
        drawn = samples.evaluate(target)
        assert (np.abs(np.median(drawn, axis=0) - truth) < 4 * drawn.std(axis=0) + 2 * NOISE).all()
        widths.append(drawn.std(axis=0).mean())
        local = np.sqrt(np.sum(samples.factors(target, 4) ** 2, axis=2)).mean()
        assert 0 < local < 1
    assert widths[1] < 0.5 * widths[0]
    assert NOISE / 2 < samples.noise < 2 * NOISE


def test_a_prior_narrows_what_few_runs_leave_open(pool: pd.DataFrame, target: pd.DataFrame) -> None:
    rows, drift = pool.iloc[:4], information.Drift.over(HOFFMANN, pd.concat([pool, target]))
    spread = [
        information.sample(HOFFMANN, rows, _loss(rows), drift, prior=prior).theta[:, 3:].std()
        for prior in (None, {"alpha": (0.34, 0.02), "beta": (0.37, 0.02)})
    ]
    assert spread[1] < 0.5 * spread[0]


def test_the_drift_is_a_smooth_gaussian_process(pool: pd.DataFrame) -> None:
    drift = information.Drift.over(HOFFMANN, pool)
    basis = drift.basis(pool, 0.5)
    x = drift.scaled(pool)
    exact = np.exp(-0.5 * np.sum((x[:, None] - x[None]) ** 2, axis=2) / 0.25)
    assert np.abs(basis @ basis.T - exact).max() < 0.02
    assert x.min() == 0
    assert x.max() == 1


def test_a_misfit_is_seen_and_named(pool: pd.DataFrame, target: pd.DataFrame, done: pd.DataFrame) -> None:
    """Runs off the law by a smooth 3% have a larger misfit than noise; runs on the law the reverse."""
    drift = information.Drift.over(HOFFMANN, pd.concat([pool, target]))
    bent = _loss(pool, 0.001) * np.exp(0.03 * np.sin(1.2 * np.log(pool["params"].to_numpy())))
    off, on = (
        information.sample(HOFFMANN, pool, y, drift) for y in (bent, _loss(pool, 0.01, seed=5))
    )  # fmt: skip
    assert off.ratio >= 2
    assert on.ratio <= 1


Change = Callable[[dict[str, object]], dict[str, object]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: {"budget": 1e10}, "cheapest, 0, costs 1e\\+17"),
        (lambda a: {"budget": -1.0}, "budget = -1"),
        (lambda a: {"budget": float("nan")}, "budget = nan"),
        (lambda a: {"cost": lambda f: -f["flops"].to_numpy()}, "cost"),
        (lambda a: {"cost": lambda f: f["flops"].where(f.index > 0).to_numpy()}, "NaN"),
        (lambda a: {"cost": "dollars"}, "dollars"),
        (lambda a: {"candidates": pd.concat([a["candidates"]] * 2)}, "index of the candidates repeats"),
        (lambda a: {"candidates": pd.concat([a["candidates"]] * 2, ignore_index=True)}, "repeats another row"),
        (lambda a: {"candidates": a["candidates"].assign(params=np.nan)}, "params"),
        (lambda a: {"candidates": a["candidates"].assign(flops=0.0)}, "flops"),
        (lambda a: {"candidates": a["candidates"].iloc[:0]}, "candidates has no rows"),
        (lambda a: {"target": a["target"].drop(columns="tokens")}, "tokens"),
        (lambda a: {"target": a["target"].to_dict()}, "target is a dict"),
        (lambda a: {"done": a["done"].assign(loss=np.nan)}, "loss"),
        (lambda a: {"runs": 0}, "runs = 0"),
        (lambda a: {"noise": 0.0}, "noise = 0"),
        (lambda a: {"prior": {"E": (1.0, 0.1)}}, "prior names \\['E'\\]"),
        (lambda a: {"prior": {"alpha": (0.3, 0.0)}}, "positive deviation"),
        (lambda a: {"experts": "E"}, "experts"),
        (lambda a: {"law": "hofmann"}, "hoffmann"),
    ],
)
def test_what_no_plan_can_be_made_of_is_refused(
    change: Change, told: str, done: pd.DataFrame, pool: pd.DataFrame, target: pd.DataFrame
) -> None:
    given: dict[str, object] = {
        "law": "hoffmann", "done": done, "candidates": pool, "target": target, "budget": 1e20,
    }  # fmt: skip
    with pytest.raises(ValueError, match=told) as caught:
        design.next_runs(**{**given, **change(given)})
    assert isinstance(caught.value, errors.Refused) or told == "hoffmann"


def test_the_result_cannot_be_changed(chosen: design.Design) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.budget = 1.0
