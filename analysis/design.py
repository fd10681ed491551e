"""Which runs to pay for next: `next_runs`, and its result `Design`.

The runs wanted are those after which the law predicts best where it matters: V-optimality (Fedorov 1972), the mean
variance of the prediction at the target, after paying for them. The variance is that of the law's parameters and of a
smooth misfit of the law (`analysis.information`), averaged over samples of the parameters, for a design that is best
at one estimate is worthless when the estimate is wrong (Chaloner and Verdinelli 1995, Statist. Sci. 10, 273).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import checks, errors, forms, information, laws

AVERAGED = 16  # samples of the parameters over which the variance is averaged
TARGETS = 32  # rows of the target that a plan looks at, spread evenly over those given
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the cost, by which a greedy plan divides the gain of a run
LEAST = 3  # runs below which a law says nothing and the start is without one
FULL = 1 + 1e-9  # a budget is spent to rounding

Cost = str | Callable[[pd.DataFrame], np.ndarray]
Criterion = Literal["target", "parameters"]


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """The runs to pay for, in the order of choice, and what they are expected to do.

    `chosen` holds the rows of the candidates, under their index, with `order` from 1, `cost`, `spent` up to and with
    the run, `sd_after`, the standard deviation of the prediction at the target (root of its mean square over the
    target, noise of a new run not included) once the run is measured, and `reduction`, by how much the run lowers it.
    `predicted_sd` has a row a target: `before` and `after` all of them. Both are in the units of the law's residual:
    log L, so 0.01 is one percent, unless `law.scale` says otherwise. `noise` is what one run scatters by, in the same.
    """

    law: forms.Law
    chosen: pd.DataFrame
    predicted_sd: pd.DataFrame
    budget: float
    spent: float
    noise: float
    facts: tuple[str, ...]

    @property
    def left(self) -> float:
        """What remains of the budget."""
        return self.budget - self.spent

    def summary(self) -> str:
        """A few lines for a reader: what is bought, for how much, and what it does."""
        before, after = (float(np.sqrt(np.mean(self.predicted_sd[part] ** 2))) for part in ("before", "after"))
        unit = {"log": "of log L", "log1p": "of log(1 + y)", "linear": "of the loss"}[self.law.scale]
        lines = [
            f"law: {self.law.equation}",
            *self.facts,
            f"runs chosen: {len(self.chosen)}, for {self.spent:.4g} of {self.budget:.4g}; {self.left:.3g} left",
            f"standard deviation {unit} predicted at the target: {before:.3g} now, {after:.3g} after them "
            f"(a run scatters by {self.noise:.3g})",
        ]
        if after > 0.99 * before:
            lines.append("no affordable run helps: the prediction stays as uncertain; other candidates are needed")
        for _, run in self.chosen.head(10).iterrows():
            at = ", ".join(f"{name} {run[name]:.4g}" for name in self.law.inputs if name in run)
            lines.append(f"  {run['order']:.0f}. {at}: cost {run['cost']:.3g}, then {run['sd_after']:.3g}")
        return "\n".join([*lines, *([f"  … and {len(self.chosen) - 10} more"] if len(self.chosen) > 10 else [])])


@dataclasses.dataclass(frozen=True, eq=False)
class NextRuns:
    """Positions of the candidates chosen, in order, and the target's mean variance before them and after each."""

    chosen: list[int]
    variance: list[float]


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Inputs of the candidates, of the targets that a plan looks at (`shown`), and of all targets (`wanted`)."""

    pool: dict[str, np.ndarray]
    shown: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]

    def each(self) -> tuple[dict[str, np.ndarray], ...]:
        return self.pool, self.shown, self.wanted


@dataclasses.dataclass(frozen=True, eq=False)
class Belief:
    """What is believed before the runs are bought: factors of the prediction's covariance at the `Places`.

    `deviation` is what one run scatters by; `facts` say what the belief rests on.
    """

    pool: np.ndarray
    shown: np.ndarray
    wanted: np.ndarray
    deviation: float
    facts: tuple[str, ...]


def greedy(
    candidates: Float[np.ndarray, "samples candidates rank"],
    target: Float[np.ndarray, "samples target rank"],
    cost: Float[np.ndarray, " candidates"],
    budget: float,
    noise: float,
    *,
    power: float,
    criterion: Criterion = "target",
    runs: int | None = None,
) -> NextRuns:
    """Candidates one by one, each the affordable one of the greatest gain per cost to the `power`.

    `candidates` and `target` are factors of the prediction's covariance (`Samples.factors`). The gain of a run is by
    how much it lowers the mean variance at the target, or with criterion "parameters" raises the log determinant of
    the information (D-optimality), averaged over the samples. A run measured with `noise` σ takes c cᵀ/(c_ii + σ²)
    from the covariance, c its column, for all candidates at once.
    """
    cross = target @ candidates.swapaxes(1, 2)
    factors, own = candidates.copy(), np.sum(candidates**2, axis=2)
    variance = np.sum(target**2, axis=2)
    free, left, history = np.ones(len(cost), dtype=bool), budget * FULL, [float(variance.mean())]
    chosen: list[int] = []
    while runs is None or len(chosen) < runs:
        affordable = free & (cost <= left)
        if not affordable.any():
            break
        total = own + noise**2
        gain = (np.mean(cross**2, axis=1) if criterion == "target" else np.log1p(own / noise**2) * total) / total
        score = np.where(affordable, gain.mean(axis=0) / cost**power, -np.inf)
        best = int(np.argmax(score))
        chosen.append(best)
        free[best] = False
        left -= cost[best]
        column, at, toward = factors[:, best].copy(), total[:, best].copy(), cross[:, :, best].copy()
        row = (factors @ column[:, :, None])[:, :, 0]
        variance = np.maximum(variance - toward**2 / at[:, None], 0.0)
        cross -= toward[:, :, None] * (row / at[:, None])[:, None, :]
        own = np.maximum(own - row**2 / at[:, None], 0.0)
        # the symmetric square root of the new covariance's inner matrix: I − s φφᵀ with (1 − s|φ|²)² = σ²/(|φ|² + σ²)
        shrink = (1 - np.sqrt(noise**2 / at)) / np.maximum(np.sum(column**2, axis=1), 1e-300)
        factors -= (shrink[:, None] * row)[:, :, None] * column[:, None, :]
        history.append(float(variance.mean()))
    return NextRuns(chosen, history)


def next_runs(
    law: str | forms.Law,
    done: pd.DataFrame,
    candidates: pd.DataFrame,
    target: pd.DataFrame,
    budget: float,
    cost: Cost = "flops",
    *,
    loss: str = "loss",
    runs: int | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    noise: float = information.NOISE,
    seed: int = 0,
    **columns: str,
) -> Design:
    """The candidates to run, within `budget`, after which `law` predicts best at `target`.

    `done` are the runs there are, inputs and loss, possibly none; `candidates` those that could be run, of which each
    row is bought at most once (repeat a row to allow it again under another index); `target` the inputs where the
    prediction matters. `cost` is a column of the candidates, or a function from them to an array, in the units of
    `budget`. At most `runs` are chosen. `prior` gives nonlinear parameters a centre and a standard deviation (of the
    logarithm where the law searches by it) in place of the spread of the law's starts; `noise` guesses by which
    fraction of the loss a run scatters about the law. `columns` says where an input is under another name.

    With fewer than three runs done, or none that the law has a start on, the law says nothing yet: the runs chosen are
    then those that most lower the variance of a law-free surface, linear in the logarithms of the inputs with a smooth
    misfit, and `facts` says so.
    Better than one plan for a whole budget are several: buy the first runs of `chosen`, measure, call again.
    Raises `Refused` (a ValueError) for inputs, costs or budgets that no plan can be made of, with the cheapest
    candidate named where none is affordable.
    """
    form = laws.get(law)
    _asked(form, columns, prior or {}, noise, runs)
    pool = _inputs(form, candidates, columns, "candidates")
    wanted = _inputs(form, target, columns, "target")
    _distinct(candidates)
    price = _price(candidates, cost, budget)
    known, y = _measured(form, done, columns, loss)
    places = Places(pool, {name: values[_spread(len(values))] for name, values in wanted.items()}, wanted)
    together = [pool, wanted, *([known] if len(y) else [])]
    drift = information.Drift.over(form, {name: np.concatenate([part[name] for part in together]) for name in pool})
    if len(y) < LEAST or not information.startable(form, known, y):
        belief = _without_law(form, drift, places, known, len(y), noise)
    else:
        belief = _by_law(form, drift, places, known, y, prior, noise, seed)
    plan = best_plan(belief.pool, belief.shown, price / budget, 1.0, belief.deviation, runs=runs)
    after = conditioned(belief.wanted, belief.pool[:, plan.chosen], belief.deviation)
    each = [np.sqrt(np.mean(np.sum(part**2, axis=2), axis=0)) for part in (belief.wanted, after)]
    predicted = pd.DataFrame(dict(zip(("before", "after"), each, strict=True)), index=target.index)
    return Design(
        form, _bought(candidates, price, plan), predicted, float(budget), float(price[plan.chosen].sum()),
        belief.deviation, belief.facts,
    )  # fmt: skip


def _without_law(
    law: forms.Law, drift: information.Drift, places: Places, known: Mapping[str, np.ndarray], done: int, noise: float
) -> Belief:
    """By a law-free surface, after the runs done where there are any."""
    parts = [_surface(drift, at, noise) for at in places.each()]
    if done:
        parts = [conditioned(part, _surface(drift, known, noise), noise) for part in parts]
    fact = f"start without a law: {done} runs done, too few to start {law.name!r} from; chosen by a law-free surface"
    pool, shown, wanted = parts
    return Belief(pool, shown, wanted, noise, (fact,))


def _by_law(
    law: forms.Law, drift: information.Drift, places: Places, known: Mapping[str, np.ndarray], y: np.ndarray,
    prior: Mapping[str, tuple[float, float]] | None, noise: float, seed: int,
) -> Belief:  # fmt: skip
    """By samples of the law's parameters given the runs done, and a smooth misfit of it."""
    samples = information.sample(law, known, y, drift, prior=prior, noise=noise, seed=seed)
    few = f", fewer than the {len(law.names)} parameters: the law's starts decide" * (len(y) < len(law.names))
    facts = (
        f"runs done: {len(y)}{few}",
        f"misfit of the law: {samples.ratio * samples.noise:.2g}, beside {samples.noise:.2g} for a run's own noise",
    )
    pool, shown, wanted = (samples.factors(at, AVERAGED) for at in places.each())
    return Belief(pool, shown, wanted, samples.deviation(), facts)


def _bought(candidates: pd.DataFrame, price: np.ndarray, plan: NextRuns) -> pd.DataFrame:
    """The candidates of a plan, in its order, with their costs and what each does."""
    bought = candidates.iloc[plan.chosen].copy()
    deviations = np.sqrt(plan.variance)
    bought["order"] = np.arange(1, len(bought) + 1)
    bought["cost"] = price[plan.chosen]
    bought["spent"] = bought["cost"].cumsum()
    bought["sd_after"], bought["reduction"] = deviations[1:], -np.diff(deviations)
    return bought


def best_plan(
    candidates: np.ndarray,
    target: np.ndarray,
    cost: np.ndarray,
    budget: float,
    noise: float,
    *,
    runs: int | None = None,
) -> NextRuns:
    """Of the greedy plans that divide by the cost to each of POWERS, the one with the least variance at the end.

    Per cost alone cheap runs crowd out the one dear run that decides; without it the first eats the budget.
    """
    plans = [greedy(candidates, target, cost, budget, noise, power=power, runs=runs) for power in POWERS]
    return min(plans, key=lambda plan: plan.variance[-1])


def conditioned(
    factors: Float[np.ndarray, "samples points rank"], measured: Float[np.ndarray, "samples runs rank"], noise: float
) -> Float[np.ndarray, "samples points rank"]:
    """Factors of the covariance that is left once runs with the factors `measured` are measured with `noise`."""
    information_matrix = measured.swapaxes(1, 2) @ measured / noise**2 + np.eye(measured.shape[2])
    root = np.linalg.cholesky(information_matrix)
    return np.asarray(np.linalg.solve(root, factors.swapaxes(1, 2)).swapaxes(1, 2))


def _surface(drift: information.Drift, at: Mapping[str, np.ndarray], noise: float) -> np.ndarray:
    """Factors of a law-free surface of the relative loss: a level, a slope in each logarithm, a smooth misfit.

    Over the range of the inputs the loss may change by e in each, and bend by ten times the noise of a run.
    """
    x = drift.scaled(at)
    columns = [np.ones((len(x), 1)), x, 10 * noise * drift.basis(at, information.LENGTHS[1])]
    return np.concatenate(columns, axis=1)[None]


def _spread(count: int) -> np.ndarray:
    """At most TARGETS positions, evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, TARGETS)).astype(int))


def _asked(
    law: forms.Law, columns: Mapping[str, str], prior: Mapping[str, tuple[float, float]], noise: float, runs: int | None
) -> None:
    """Refused where columns, prior, noise or the number of runs are none that a plan can be made with."""
    if unknown := set(columns) - set(law.inputs):
        raise errors.Refused(f"{sorted(unknown)} are no inputs of {law.name!r}; it takes {', '.join(law.inputs)}")
    if unknown := set(prior) - set(law.nonlinear):
        raise errors.Refused(f"prior names {sorted(unknown)}; nonlinear in {law.name!r}: {', '.join(law.nonlinear)}")
    if bad := [name for name, (at, sd) in prior.items() if not (np.isfinite(at) and 0 < sd < np.inf)]:
        raise errors.Refused(f"prior of {bad[0]} = {prior[bad[0]]}: give a centre and a positive deviation")
    if not 0 < noise < np.inf:
        raise errors.Refused(f"noise = {noise}: must be a positive fraction of the loss, such as {information.NOISE}")
    if runs is not None and runs < 1:
        raise errors.Refused(f"runs = {runs}: must be at least 1, or None for as many as the budget buys")


def _inputs(law: forms.Law, frame: pd.DataFrame, columns: Mapping[str, str], what: str) -> dict[str, np.ndarray]:
    """The law's inputs, or `Refused` for no rows or what is not a positive finite number."""
    if not isinstance(frame, pd.DataFrame):
        raise errors.Refused(f"{what} is a {type(frame).__name__}: give a DataFrame with {', '.join(law.inputs)}")
    if not len(frame):
        raise errors.Refused(f"{what} has no rows: give at least one")
    return {
        name: checks.column(frame, columns.get(name, name), f"{what} of {law.name!r}", positive=name not in law.real)
        for name in law.inputs
    }


def _distinct(candidates: pd.DataFrame) -> None:
    """Refused where the index or a row of the candidates repeats."""
    if candidates.index.has_duplicates:
        twice = candidates.index[candidates.index.duplicated()].tolist()[0]
        raise errors.Refused(f"the index of the candidates repeats {twice!r}: reset_index(drop=True) first")
    if (same := candidates.duplicated()).any():
        raise errors.Refused(
            f"candidate {candidates.index[same].tolist()[0]!r} repeats another row: drop_duplicates(), or "
            "add a column that tells a repetition, such as a seed"
        )


def _measured(
    law: forms.Law, done: pd.DataFrame, columns: Mapping[str, str], loss: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs and the loss of the runs done, both empty where there are none."""
    finished = checks.runs(done).frame if len(done) else done
    if not len(finished):
        return {}, np.empty(0)
    known = _inputs(law, finished, columns, "done")
    return known, checks.column(finished, loss, f"the loss of {law.name!r}", positive=law.scale == "log")


def _price(candidates: pd.DataFrame, cost: Cost, budget: float) -> np.ndarray:
    """What each candidate costs, positive and finite, and at least one of them within the budget."""
    if not (np.isfinite(budget) and budget > 0):
        raise errors.Refused(f"budget = {budget}: must be positive and finite, in the units of the cost")
    named = f"what {getattr(cost, '__name__', 'cost')} gives" if callable(cost) else f"column {cost!r}"
    if callable(cost):
        priced = pd.DataFrame({"cost": np.asarray(cost(candidates), dtype=np.float64)}, index=candidates.index)
    else:
        priced = pd.DataFrame({"cost": checks.column(candidates, cost, "the cost of a run")}, index=candidates.index)
    price = checks.column(priced, "cost", f"the cost of a run ({named})")
    if price.min() > budget * FULL:
        raise errors.Refused(
            f"no candidate is affordable: the cheapest, {candidates.index.tolist()[int(price.argmin())]!r}, costs "
            f"{price.min():.6g} by {named} and the budget is {budget:.6g}; raise it or add cheaper candidates"
        )
    return price
