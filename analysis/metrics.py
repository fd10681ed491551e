"""A downstream metric of a run not yet trained, in two stages: the loss from its size, the metric from the loss.

    log L = log L̂ + σ t,    y = f(L) + e

Stage 1 is `analysis.predictor`, with its L̂, σ and distribution of t. Stage 2 is a law f of one input fitted to the runs
that have both columns, e the scatter of single runs about it (two such stages predict the accuracy of a task in Bhagia
et al. 2024, arXiv 2412.04403). Larger runs reach losses that none has measured, and there the form decides: a sigmoid
bends early, an exponential hardly. So both are fitted, the value is their mean, and the interval is that of equally
many draws from each: of t, of f from its bootstrap and of e from its residuals.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from analysis import checks, errors, fitting, laws, prediction, solver, uncertainty

ACCURACY, ERROR = "bhagia_accuracy", "gadre_error"  # each fitted to the metric, or to 1 less the metric
DELTA = 0.01  # Huber's δ on shares of answers
DRAWS = 4000  # of each law
FEW = 12  # runs below which the second stage is doubted: three a parameter
CHANCE = 0.001  # p of the rank correlation of metric and loss above which the metric is taken to be at chance


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
                f"{self.metric} {value:.4f} ({self.level:.0%} of new runs: {self.low[i]:.4f} to {self.high[i]:.4f}), "
                f"at {self.loss.factor[i]:.3g} times the FLOPs of the largest run, through {self.via} "
                f"{self.loss.value[i]:.4f} ({self.loss.low[i]:.4f} to {self.loss.high[i]:.4f}); by law: {each}; of the "
                f"squared width {shares['loss']:.0%} is the loss, {shares['metric']:.0%} the metric given the loss"
            )
        return "\n".join([*lines, *self.statements])


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A law of the metric given the loss; `turned` where it is fitted to 1 less the metric."""

    fit: fitting.Fit
    boot: uncertainty.Bootstrap
    turned: bool

    def value(self, losses: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return self._oriented(self.fit.predict({self.fit.law.inputs[0]: losses}))

    def draws(
        self, losses: Float[np.ndarray, "draws rows"], rng: np.random.Generator
    ) -> Float[np.ndarray, "draws rows"]:
        """The metric of single runs of these losses, each under another resample and with another residual."""
        law, samples, residuals = self.fit.law, self.boot.samples, self.fit.residuals
        drawn = samples.iloc[rng.integers(len(samples), size=len(losses))]
        with solver.precise():
            values = law({law.inputs[0]: losses}, {name: drawn[name].to_numpy()[:, None] for name in law.names})
        scatter = rng.choice(residuals, size=(len(losses), 1)) * np.sqrt(
            len(residuals) / max(len(residuals) - len(law.names), 1)
        )
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
    resamples: int = 500,
    seed: int = 0,
    **columns: str,
) -> Downstream:
    """The share of right or wrong answers (0 to 1) of new runs at `at`, by way of the loss in column `via`.

    `at` is that of `Predictor.predict`, `columns` those of `analysis.predictor` (params, tokens, flops). `law`, of one
    input, is the second stage's instead of both that ship. Raises `Refused` where the metric leaves 0 to 1, where no
    more runs have both columns than a law has parameters, or where the runs do not carry a prediction of the loss.
    """
    forms = [laws.get(name) for name in ((ACCURACY, ERROR) if law is None else (law,))]
    chosen = checks.runs(frame)
    losses, both = _rows(chosen.frame, metric, via, forms)
    correlation, p = scipy.stats.spearmanr(both[via], both[metric])
    stages, left_out = _fitted(forms, both, metric, via, bool(correlation > 0), resamples, seed)
    loss = prediction.predictor(losses, loss=via, **columns).predict(at, level)
    rng = np.random.default_rng(seed)
    drawn = _losses(loss, rng)
    members = pd.DataFrame({name: stage.value(loss.value) for name, stage in stages.items()})
    low, high = _interval([stage.draws(drawn, rng) for stage in stages.values()], level)
    still = np.broadcast_to(loss.value, drawn.shape)
    first = _interval([np.mean([stage.value(drawn) for stage in stages.values()], axis=0)], level)
    second = _interval([stage.draws(still, rng) for stage in stages.values()], level)
    squares = np.stack([(end - start) ** 2 for start, end in (first, second)], axis=1)
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
        shares=pd.DataFrame(
            squares / np.maximum(squares.sum(axis=1, keepdims=True), 1e-300), columns=["loss", "metric"]
        ),
        statements=(*_statements(stages, both, losses, metric, via), *left_out, *loss.statements),
        warnings=(*_doubts(both, metric, via, loss.value, correlation, p), *loss.warnings),
    )


def _rows(runs: pd.DataFrame, metric: str, via: str, forms: Sequence[laws.Law]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs that have the loss, and those of them that have the metric too; `Refused` where these cannot be used."""
    for name, purpose in ((metric, "the metric"), (via, "the loss that it follows from")):
        checks.there(runs, name, purpose)
    losses = runs[~np.isnan(checks.numbers(runs, via))]
    both = losses[~np.isnan(checks.numbers(losses, metric))]
    for form in forms:
        if len(form.inputs) != 1:
            raise errors.Refused(
                f"{form.name!r} takes {', '.join(form.inputs)}: the second stage has one input, the loss; pass a law "
                f"such as {ACCURACY!r}"
            )
    needed = max(len(form.names) for form in forms)
    if len(both) <= needed:
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
    return losses, both


def _fitted(
    forms: Sequence[laws.Law], both: pd.DataFrame, metric: str, via: str, falls: bool, resamples: int, seed: int
) -> tuple[dict[str, _Stage], tuple[str, ...]]:
    """The second stage by each law that the runs carry, and why others are left out; `falls`: with the loss."""
    stages, refused = dict[str, _Stage](), dict[str, str]()
    for form in forms:
        turned = form.name == (ACCURACY if falls else ERROR)
        table = both.assign(**{metric: 1 - both[metric]}) if turned else both
        try:
            fit = fitting.fit(form, table, loss=metric, delta=DELTA, **{form.inputs[0]: via})
            fitting.refuse_unconverged(fit)
            stages[form.name] = _Stage(fit, fit.bootstrap(resamples, seed), turned)
        except errors.Refused as reason:
            refused[form.name] = str(reason)
    if not stages:
        raise errors.Refused(f"{metric!r} cannot be predicted from {via!r}: {next(iter(refused.values()))}")
    return stages, tuple(f"left out: {name}: {reason}" for name, reason in refused.items())


def _losses(loss: prediction.Prediction, rng: np.random.Generator) -> Float[np.ndarray, "draws rows"]:
    """Losses of single runs by the predictor's distribution, every quantile of it as often as any other."""
    place = (np.arange(DRAWS) + 0.5) / DRAWS
    t = np.array([np.sign(u - 0.5) * prediction.quantile(abs(2 * u - 1)) for u in rng.permutation(place)])
    scale = np.log(loss.high / loss.low) / 2 / prediction.quantile(loss.level)
    return np.asarray(loss.value * np.exp(t[:, None] * scale))


def _interval(draws: Sequence[np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
    return uncertainty.percentiles(np.concatenate(draws), level)


def _statements(
    stages: Mapping[str, _Stage], both: pd.DataFrame, losses: pd.DataFrame, metric: str, via: str
) -> Iterator[str]:
    for name, stage in stages.items():
        what = f"1 - {metric}" if stage.turned else metric
        yield (
            f"{what} from {via} by {name}, {stage.fit.law.equation}, fitted to {len(both)} runs; rms residual "
            f"{np.sqrt(np.mean(stage.fit.residuals**2)):.4f}"
        )
    if lacking := len(losses) - len(both):
        yield f"{lacking} runs without {metric} count for the loss alone"
    yield f"{via} by several laws:"


def _doubts(both: pd.DataFrame, metric: str, via: str, at: np.ndarray, correlation: float, p: float) -> Iterator[str]:
    """What to doubt of the second stage."""
    low, high = both[via].min(), both[via].max()
    if not p < CHANCE:
        yield (
            f"{metric} does not follow {via} in these runs (rank correlation {correlation:.2f}): it is at the chance "
            "level all along, and no run says where it leaves it"
        )
    if len(both) < FEW:
        yield f"{len(both)} runs have both {metric} and {via}, fewer than {FEW}: the second stage hangs on each of them"
    if (at < low).any() or (at > high).any():
        yield (
            f"{via} {at.min() if (at < low).any() else at.max():.4f} lies outside the {low:.4f} to {high:.4f} of the "
            f"runs that {metric} was measured on: the second stage extrapolates, and there its form decides"
        )
