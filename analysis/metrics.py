"""A downstream metric of a run not yet trained, in two stages: the loss from its size, the metric from the loss.

    log L = log L̂ + σ t,    y = mean of (f(L) + e) + s(L) t'

Stage 1 is `analysis.predictor`, with its L̂, σ and distribution of t. Stage 2 are laws f of one input fitted to the runs
that have both columns, e the scatter of single runs about them (two such stages predict the accuracy of a task in
Bhagia et al. 2024, arXiv 2412.04403). Larger runs reach losses that none has measured, and there the form decides: a
sigmoid bends early, an exponential hardly. So both are fitted, and s, the standard deviation of their values, counts
as that of the laws does in stage 1. The interval is that of draws of t and t', of f from its bootstrap and of e from
its residuals.

On nine back-tests (two training sets of Brandfonbrener et al. 2024, arXiv 2411.12925: the largest runs from those up to
a third, a tenth and a thirtieth of their FLOPs, the loss given) 95% intervals of this kind held 95% and had the least
mean score of those of both laws, equal draws from each among them; those of the sigmoid alone held 87%. They are wide:
on planted metrics, a sigmoid and a form of neither law, each 60 of 60 new runs at ten times the FLOPs were inside.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from analysis import checks, errors, fitting, laws, prediction, solver, uncertainty

ACCURACY, ERROR = "bhagia_accuracy", "gadre_error"  # each fitted to the metric, or to 1 less the metric
UNMOVED = {"k": 0.0, "gamma": 1.0}  # parameters of ERROR with which it is the same at every loss
DELTA = 0.01  # Huber's δ on shares of answers
DRAWS = 4000  # of which either end of the interval leaves out one or more
FEW = 12  # runs below which the second stage is doubted: three a parameter
UNRELATED = 0.001  # p of the rank correlation from which on FEW runs or more do not show a metric to follow the loss
UNCERTAIN = 0.05  # the same of fewer runs, which say nothing of the metric beyond their losses then


@dataclasses.dataclass(frozen=True, eq=False)
class Downstream:
    """Metrics of new runs: an entry a row of what was asked for, in `value`, `low` and `high` (interval at `level`).

    `loss` is the prediction in between; `members` has a column a law of the second stage, `fits` the laws. `shares` has
    a column a stage: its part of the squared width of the interval. `warnings` say what to doubt.
    """

    metric: str
    via: str
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    loss: prediction.Prediction
    fits: dict[str, fitting.Fit]
    members: pd.DataFrame
    shares: pd.DataFrame
    statements: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Warnings first, then a line a prediction and what it was made from."""
        lines = [f"warning: {text}" for text in self.warnings]
        for i, value in enumerate(self.value):
            each = ", ".join(f"{name} {row:.4f}" for name, row in self.members.iloc[i].items())
            shares = self.shares.iloc[i]
            lines.append(
                f"{self.metric} {value:.4f} ({100 * self.level:g}% of new runs: {self.low[i]:.4f} to "
                f"{self.high[i]:.4f}), at {self.loss.factor[i]:.3g} times the FLOPs of the largest run, by {self.via} "
                f"{self.loss.value[i]:.4f} ({self.loss.low[i]:.4f} to {self.loss.high[i]:.4f}); by law: {each}; of the "
                f"squared width {shares['loss']:.0%} is the loss, {shares['metric']:.0%} the metric at a loss"
            )
        return "\n".join([*lines, *self.statements])


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A law of the metric at a loss; `turned` where it is fitted to 1 less the metric."""

    fit: fitting.Fit
    boot: uncertainty.Bootstrap
    turned: bool

    def value(self, losses: np.ndarray) -> np.ndarray:
        return self._oriented(self.fit.predict({self.fit.law.inputs[0]: losses}))

    def single(
        self, losses: Float[np.ndarray, "draws rows"], place: Float[np.ndarray, "2 draws"]
    ) -> Float[np.ndarray, "draws rows"]:
        """The metric of single runs, by draw under the resample, and with the residual of the run, at its `place`."""
        law, samples, residuals = self.fit.law, self.boot.samples, self.fit.residuals
        resample, run = (place * [[len(samples)], [len(residuals)]]).astype(int)
        drawn = samples.iloc[resample]
        with solver.precise():
            values = law({law.inputs[0]: losses}, {name: drawn[name].to_numpy()[:, None] for name in law.names})
        free = len(law.names) - len(self.fit.fixed)
        scatter = residuals[run, None] * np.sqrt(len(residuals) / max(len(residuals) - free, 1))
        criterion = self.fit.criterion
        return self._oriented(criterion.invert(criterion.transform(np.asarray(values, dtype=np.float64)) + scatter))

    def _oriented(self, values: np.ndarray) -> np.ndarray:
        return np.clip(1 - values if self.turned else values, 0.0, 1.0)


def downstream(
    frame: pd.DataFrame,
    at: pd.DataFrame | Mapping[str, Any],
    metric: str = "accuracy",
    via: str = "loss",
    level: float = 0.95,
    *,
    law: str | laws.Law | None = None,
    resamples: int = 200,
    seed: int = 0,
    **columns: str,
) -> Downstream:
    """The share of right or wrong answers (0 to 1) of new runs at `at`, by way of the loss in column `via`.

    `at` is that of `Predictor.predict`, `columns` those of `analysis.predictor` (params, tokens, flops). `law`, of one
    input, is the second stage instead of both that ship. Without it, a metric that does not follow the loss is
    predicted to be anything beyond the losses of the runs and, where these are FEW or more, to stay where it is among
    them. Raises ValueError where `level` needs more than DRAWS draws, and `Refused` where the metric leaves 0 to 1,
    where no more runs have both columns than a law has parameters, or where the runs do not carry a prediction of the
    loss.
    """
    _refuse_level(level)
    forms = [laws.get(name) for name in ((ACCURACY, ERROR) if law is None else (law,))]
    losses, both, omitted = _rows(checks.runs(frame), metric, via, forms)
    rank, p = _correlation(both[via].to_numpy(), both[metric].to_numpy())
    unrelated = law is None and p >= (UNRELATED if len(both) >= FEW else UNCERTAIN)
    unmoved = unrelated and len(both) >= FEW
    if unmoved:
        forms = [laws.get(ERROR)]
    stages, left_out = _fitted(forms, both, metric, via, rank > 0, UNMOVED if unmoved else {}, resamples, seed)
    loss = prediction.predictor(losses, loss=via, **columns).predict(at, level)
    low, high, shares = _interval(list(stages.values()), loss, level, np.random.default_rng(seed))
    if unrelated:
        beyond = (loss.low < both[via].min()) | (loss.high > both[via].max())
        low, high = np.where(beyond, 0.0, low), np.where(beyond, 1.0, high)
    members = pd.DataFrame({name: stage.value(loss.value) for name, stage in stages.items()})
    several = f"{via} by several laws:"
    return Downstream(
        metric=metric,
        via=via,
        value=members.mean(axis=1).to_numpy(),
        low=low,
        high=high,
        level=level,
        loss=loss,
        fits={name: stage.fit for name, stage in stages.items()},
        members=members,
        shares=shares,
        statements=(*_statements(stages, metric, via), *left_out, *omitted, several, *loss.statements),
        warnings=(
            *_doubts(both, metric, via, loss.value, rank, p, unrelated),
            *_warnings(stages, loss.warnings),
            *loss.warnings,
        ),
    )


def _refuse_level(level: float) -> None:
    checks.level(level)
    if level > (most := 1 - 2 / DRAWS):
        raise ValueError(
            f"level = {level}: above {most:g} an end of the interval leaves out less than one of its {DRAWS} draws; "
            f"pass {most:g} or less, 0.95 is usual"
        )


def _rows(
    chosen: checks.Selection, metric: str, via: str, forms: Sequence[laws.Law]
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """The runs that have the loss, those of them that have the metric too, both as numbers, and what is left out.

    `Refused` where these cannot be used.
    """
    for form in forms:
        if len(form.inputs) != 1:
            raise errors.Refused(
                f"{form.name!r} takes {', '.join(form.inputs)}: the second stage has one input, the loss; pass a law "
                f"such as {ACCURACY!r}"
            )
    runs = chosen.frame
    for name, purpose in ((metric, "the metric"), (via, "the loss that it follows from")):
        checks.there(runs, name, purpose)
    losses = runs.assign(**{via: checks.numbers(runs, via)}).dropna(subset=[via])
    losses = losses.assign(**{metric: checks.numbers(losses, metric)})
    both = losses.dropna(subset=[metric])
    if len(both) <= (needed := max(len(form.names) for form in forms)):
        raise errors.Refused(
            f"{len(both)} runs have both {metric!r} and {via!r}: the second stage needs more than {needed}, the "
            "parameters of its law; evaluate more runs"
        )
    values = checks.column(both, metric, "the metric", positive=False)
    if values.min() < 0 or values.max() > 1:
        raise errors.Refused(
            f"column {metric!r} lies in {values.min():g} to {values.max():g}: a share of answers lies in 0 to 1; "
            f"divide percent by 100, frame.assign({metric}=frame[{metric!r}] / 100)"
        )
    omitted = [*checks.left_out(chosen)]
    if lacking := len(runs) - len(losses):
        omitted.append(f"{lacking} runs without {via} are left out")
    if lacking := len(losses) - len(both):
        omitted.append(f"{lacking} runs without {metric} count for the loss alone")
    return losses, both, tuple(omitted)


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation and its p; 0 and 1 where all values of one are the same."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 1.0
    result = scipy.stats.spearmanr(x, y)
    return float(result.statistic), float(result.pvalue)


def _fitted(
    forms: Sequence[laws.Law],
    both: pd.DataFrame,
    metric: str,
    via: str,
    falls: bool,
    fixed: Mapping[str, float],
    resamples: int,
    seed: int,
) -> tuple[dict[str, _Stage], tuple[str, ...]]:
    """The second stage by each law that the runs carry, and why others are left out; `falls`: with the loss."""
    stages, refused = dict[str, _Stage](), dict[str, str]()
    for form in forms:
        turned = form.name == (ACCURACY if falls else ERROR)
        table = both.assign(**{metric: 1 - both[metric]}) if turned else both
        columns: dict[str, Any] = {form.inputs[0]: via}
        try:
            fit = fitting.fit(form, table, loss=metric, delta=DELTA, fixed=fixed, **columns)
            fitting.refuse_unconverged(fit)
            stages[form.name] = _Stage(fit, fit.bootstrap(resamples, seed), turned)
        except errors.Refused as reason:
            refused[form.name] = str(reason)
    if not stages:
        raise errors.Refused(f"{metric!r} cannot be predicted from {via!r}: {next(iter(refused.values()))}")
    return stages, tuple(f"left out: {name}: {reason}" for name, reason in refused.items())


def _interval(
    stages: Sequence[_Stage], loss: prediction.Prediction, level: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Low and high of the metric of a new run, and what each stage brings of the squared width.

    Draws whose resample of a law reached no minimum are missing: half of them count below and half above the others.
    """
    within = uncertainty.among(level, math.prod(stage.boot.converged for stage in stages))
    even = (np.arange(DRAWS) + 0.5) / DRAWS  # every quantile as often as any other, in random orders
    student = np.array([np.sign(u - 0.5) * prediction.quantile(abs(2 * u - 1)) for u in even])
    t, form, *place = (rng.permutation(values)[:, None] for values in (student, student, even, even))
    scale = np.log(loss.high / loss.low) / 2 / prediction.quantile(loss.level)
    drawn = loss.value * np.exp(t * scale)

    def metrics(losses: np.ndarray) -> np.ndarray:
        each = np.mean([stage.single(losses, np.stack(place)[:, :, 0]) for stage in stages], axis=0)
        apart = np.std([stage.value(losses) for stage in stages], axis=0, ddof=1) if len(stages) > 1 else 0.0
        return np.asarray(np.clip(each + form * apart, 0.0, 1.0))

    low, high = uncertainty.percentiles(metrics(drawn), within)
    parts = (
        uncertainty.percentiles(np.mean([stage.value(drawn) for stage in stages], axis=0), level),
        uncertainty.percentiles(metrics(np.broadcast_to(loss.value, drawn.shape)), within),
    )
    squares = np.stack([np.subtract(*part) ** 2 for part in parts], axis=1)
    shares = squares / np.maximum(squares.sum(axis=1, keepdims=True), 1e-300)
    return low, high, pd.DataFrame(shares, columns=["loss", "metric"])


def _statements(stages: Mapping[str, _Stage], metric: str, via: str) -> Iterator[str]:
    for name, stage in stages.items():
        what = f"1 - {metric}" if stage.turned else metric
        held = "".join(f", {key} held at {value:g}" for key, value in stage.fit.fixed.items())
        yield (
            f"{what} from {via} by {name}, {stage.fit.law.equation}{held}, fitted to {len(stage.fit.runs)} runs; rms "
            f"residual {np.sqrt(np.mean(stage.fit.residuals**2)):.4f}"
        )


def _warnings(stages: Mapping[str, _Stage], said: Sequence[str]) -> Iterator[str]:
    """What the fits and resamples of the second stage warn of, each once with its laws, without what is `said`."""
    names: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for text in dict.fromkeys((*stage.fit.warnings, *stage.boot.warnings)):
            names.setdefault(text, []).append(name)
    return (f"{', '.join(of)}: {text}" for text, of in names.items() if text not in said)


def _doubts(
    both: pd.DataFrame, metric: str, via: str, at: np.ndarray, rank: float, p: float, unrelated: bool
) -> Iterator[str]:
    """What to doubt of the second stage; `rank` is the rank correlation of metric and loss, with its `p`."""
    low, high = both[via].min(), both[via].max()
    correlation = f"(rank correlation {rank:.2f}, p = {p:.2g})"
    anything = "it is predicted to be anything beyond their losses" if unrelated else ""
    if len(both) < FEW:
        follows = "" if p < UNRELATED else f"; whether {metric} follows {via} is not certain {correlation}"
        yield (
            f"{len(both)} runs have both {metric} and {via}, fewer than {FEW}: the second stage hangs on each of them"
            f"{follows}{anything and f': {anything}'}"
        )
    elif p >= UNRELATED:
        stays = f"{anything} and to stay where it is among them; " if unrelated else ""
        yield (
            f"{metric} does not follow {via} in these {len(both)} runs {correlation}: {stays}predict the loss alone, "
            "or measure on more questions, easier ones where all runs guess, harder ones where all are right"
        )
    if (at < low).any() or (at > high).any():
        yield (
            f"{via} {at.min() if (at < low).any() else at.max():.4f} lies outside the {low:.4f} to {high:.4f} of the "
            f"runs that {metric} was measured on: the second stage extrapolates, and there its form decides"
        )
