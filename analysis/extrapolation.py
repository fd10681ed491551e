"""A prediction far above the runs, corrected by how the law erred when it was fitted below and predicted above.

A law whose form is slightly wrong errs in one direction when it extrapolates, the more the further it reaches: its
bootstrap interval knows nothing of that. Rolling back-tests do, and so the prediction here is the law's, less the error
that they lead one to expect. How an error goes on beyond the largest runs no measurement says: the prediction is the
mean over three ways, and the interval holds them all. Measured on the two training sets of Brandfonbrener et al.
2024 (arXiv 2411.12925), predicting 1e21 FLOPs from runs of up to 4.84e19: the Hoffmann form alone is 3.9% and 5.0% too
high, its 95% interval without the measurement; see the tests for what the correction leaves.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import backtests, checks, definitions, errors, fitting, laws

DRAWS = 4000  # of each of the three ways
FURTHEST = 2.0  # times the largest reach back-tested, in logs: beyond, a drift is not carried on
FEWEST = 3  # held-out runs of an origin, and origins: two fix a line, the third says how well it holds


@dataclasses.dataclass(frozen=True, eq=False)
class Extrapolation:
    """A law's prediction at `at`, corrected by its back-tests.

    `plain` is the law's own prediction with its bootstrap interval `plain_interval` for a new run. `biases` are the log
    errors expected there, a row a target and a column a way in which errors may go on: "none", "same rate", "drifting
    rate". `predicted` is the law less their mean, `interval` that of a new run. `left_out` says which origins are not
    counted because the runs below them do not identify the law, `warnings` what else to doubt. `errors` has a row a
    group of back-tested runs: `origin`, `reach` (how many times the largest fitted value), mean `log_error`.
    """

    fit: fitting.Fit
    backtest: backtests.Backtest
    errors: pd.DataFrame
    reach: np.ndarray
    plain: np.ndarray
    plain_interval: tuple[np.ndarray, np.ndarray]
    biases: pd.DataFrame
    predicted: np.ndarray
    interval: tuple[np.ndarray, np.ndarray]
    level: float
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """A line a prediction, then the origins left out and warnings; first, which columns were made of others."""
        lines = list(self.backtest.notes)
        for i, reach in enumerate(self.reach):
            listed = ", ".join(f"{np.expm1(bias):+.2%} at {way}" for way, bias in self.biases.iloc[i, 1:].items())
            low, high = (f"{end[i]:.4f}" for end in self.plain_interval)
            least, most = (f"{end[i]:.4f}" for end in self.interval)
            lines.append(
                f"{reach:.3g} times the largest {self.backtest.hold_out}: {self.fit.law.name} alone "
                f"{self.plain[i]:.4f} ({self.level:.0%}: {low} to {high}); from its back-tests an error of {listed} is "
                f"expected; corrected {self.predicted[i]:.4f} ({self.level:.0%}: {least} to {most})"
            )
        left_out = [f"left out: {reason}" for reason in self.left_out]
        return "\n".join([*lines, *left_out, *(f"warning: {warning}" for warning in self.warnings)])


def extrapolate(
    law: str | laws.Law,
    frame: pd.DataFrame,
    at: pd.DataFrame | Mapping[str, Any],
    hold_out: str = "flops",
    *,
    origins: int = 4,
    loss: str = "loss",
    level: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
    **options: Any,
) -> Extrapolation:
    """The loss at `at` (the law's inputs and `hold_out`), the law corrected by its errors in rolling back-tests.

    The mean log error e of each group of back-tested runs, r = log of how far it lies above its origin o, is described
    by least squares with weights 1/r in two ways: e = b0 r (the same rate wherever one starts and ends), and
    e = (b0 + b1 log(o / largest) + b2 r) r (a rate that drifts as the origin rises and the reach grows); the third way
    is no error. The prediction is the law's less the mean of the three at the target's reach above the largest run. The
    interval is that of their mixture in equal parts: each way's error with Student's t (as many degrees of freedom as
    origins less one, since groups above one origin err together), and the resampled law with the scatter of single
    runs. A target further than twice the largest back-tested reach (in logs) gets the first and the third way only: a
    drift seen over a short way is not carried on for a long one. Origins whose runs do not identify the law are not
    counted (fewer than 3 values of an input or 3 runs a parameter, a parameter at a bound or undetermined,
    several minima): how such a fit errs says nothing of the law. Raises `Refused` below 3 origins of 3 held-out runs
    that count, or where a target does not lie above the runs.
    """
    form = laws.get(law)
    frame, notes, options = definitions.prepared(frame, (*form.inputs, hold_out), options, form.inputs)
    target = pd.DataFrame({key: np.atleast_1d(np.asarray(value, dtype=np.float64)) for key, value in dict(at).items()})
    if hold_out not in target:
        raise ValueError(
            f"the target has {', '.join(map(str, target))}; it also needs {hold_out!r}, to say how far it reaches"
        )
    largest = float(checks.column(checks.runs(frame, options.get("cluster")).frame, hold_out, "the reach").max())
    reach = target[hold_out].to_numpy() / largest
    if (reach <= 1.02).any():
        raise errors.Refused(
            f"{hold_out} = {target[hold_out].min():g} does not lie above the runs, up to {largest:g}: nothing is to be "
            "corrected there; use fit.predict"
        )
    test = backtests.backtest(
        form,
        frame,
        hold_out,
        origins=origins + _sparse(frame, hold_out, options.get("cluster")),
        loss=loss,
        level=level,
        resamples=resamples,
        seed=seed,
        **options,
    )
    usable = test.usable[test.usable["held_out"] >= FEWEST]
    left_out = tuple(
        f"origin {row['origin']:.3g}: the runs below do not identify {form.name!r} ({row['unidentified']})"
        for row in usable[usable["unidentified"] != ""].to_dict("records")
    )
    usable = usable[usable["unidentified"] == ""]
    if len(usable) < FEWEST:
        raise errors.Refused(
            f"{len(usable)} origins of {origins} could be back-tested on {FEWEST} runs or more: a correction needs "
            f"{FEWEST}; add budgets, or use a law of fewer parameters{''.join('; left out: ' + t for t in left_out)}"
        )
    fit = fitting.fit(form, frame, loss=loss, **options)
    fitting.refuse_unconverged(fit)
    if fit.criterion.scale != "log":
        raise errors.Refused(f"residuals on the scale {fit.criterion.scale!r}: log errors are needed; pass scale='log'")
    rows = test.rows[test.rows["origin"].isin(usable["origin"])]
    rows = rows.assign(step=np.round(np.log(rows["reach"]), 1))
    table = rows.groupby(["origin", "step"], as_index=False).agg(
        reach=("reach", "mean"), log_error=("log_error", "mean")
    )
    r = np.log(table["reach"].to_numpy())
    origin = np.log(table["origin"].to_numpy() / largest)
    e, weight = table["log_error"].to_numpy(), 1 / np.sqrt(r)
    plain, boot = fit.predict(target), fit.bootstrap(resamples, seed)
    plain_interval = boot.predict_interval(target, level)
    rng = np.random.default_rng(seed)
    scatter = np.log(boot.predictions(target) / plain)[rng.integers(len(boot.samples), size=DRAWS)]
    scatter += rng.choice(fit.residuals, size=scatter.shape)
    ways, draws = {"none": np.zeros(len(reach))}, [scatter]
    shapes = [("same rate", 1), ("drifting rate", 3)]
    if (np.log(reach) > FURTHEST * r.max()).any():
        shapes.pop()
    for way, terms in shapes:
        design, there = _features(r, origin)[:, :terms], _features(np.log(reach), np.zeros(len(reach)))[:, :terms]
        scaled = design * weight[:, None]
        inverse = np.linalg.pinv(scaled.T @ scaled)
        b = inverse @ scaled.T @ (e * weight)
        variance = float(np.sum((weight * (e - design @ b)) ** 2) / max(len(e) - terms, 1))
        ways[way] = there @ b
        error = np.sqrt(variance * (np.einsum("ti,ij,tj->t", there, inverse, there) + np.log(reach)))
        draws.append(scatter - ways[way] - error * rng.standard_t(len(usable) - 1, size=scatter.shape))
    biases = pd.DataFrame(ways)
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Extrapolation(
        fit=fit,
        backtest=dataclasses.replace(test, notes=notes),
        errors=table.drop(columns="step"),
        reach=reach,
        plain=plain,
        plain_interval=plain_interval,
        biases=biases,
        predicted=plain * np.exp(-biases.mean(axis=1).to_numpy()),
        interval=(plain * np.exp(low), plain * np.exp(high)),
        level=level,
        left_out=left_out,
        warnings=(*fit.warnings, *boot.warnings),
    )


def _sparse(frame: pd.DataFrame, hold_out: str, cluster: str | None) -> int:
    """How many of the largest origins hold out fewer than FEWEST runs: they are not counted."""
    chosen = checks.runs(frame, cluster).frame
    group = backtests.groups(chosen, hold_out, checks.column(chosen, hold_out, "the hold-out"))
    _, count = np.unique(group, return_counts=True)
    return int(np.sum(np.cumsum(count[::-1]) < FEWEST))


def _features(r: np.ndarray, origin: np.ndarray) -> np.ndarray:
    return np.stack([r, r * origin, r**2], axis=1)
