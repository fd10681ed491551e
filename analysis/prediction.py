"""The loss of a run not yet trained, with an interval that holds: equal weights over laws that extrapolate differently.

One law's interval knows the scatter of the runs and takes its own form for the truth; what misses a run far above is
the form. Here several forms are fitted to the same runs, their mean is the prediction, and the interval grows with what
they disagree about, which is more the further the target lies beyond the runs:

    log L = mean of log f_m,    half = T · sqrt((SPREAD · s)² + (DISTANCE · log factor)² + σ²)

s is the standard deviation of the members' log f_m, `factor` the target's FLOPs over the largest fitted run's (1 where
it lies among the runs), σ the scatter of single runs about the member that is nearest to them, T a quantile of
Student's t with five degrees of freedom. Runs weigh by how much they say about the target:
w = (C / C_max)^COMPUTE / (1 + (e / EXCESS)²), e the log of a run's loss over the least loss that was reached with as
much compute: what was trained far from the optimum obeys no sum of two powers. `docs/predictions.md` says how the
constants were chosen (`python -m benchmarks.prediction --choose`) and where the intervals fail.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float

from analysis import checkpoints, checks, definitions, errors, fitting, surfaces, uncertainty

COMPUTE = 0.5
EXCESS = 0.1
SPREAD = 0.5
DISTANCE = 0.004
FAR = 100.0  # times the largest fitted run's FLOPs: no public table reaches so far, so nothing was tested there
APART = 0.1  # of the loss, by which the laws may differ before that is warned about
FEWEST = 3  # members that a mean and its spread need
FORMAT = "scaling-prediction-1"
WINDOW = 0.6  # log FLOPs of a group of runs whose least loss is a point of the envelope
SIZES, GRID = (1e3, 1e15), 4801  # parameters among which the best are sought, 0.6% apart
MEMBERS: dict[str, tuple[str, dict[str, float]]] = {
    "hoffmann": ("hoffmann", {}),
    "hoffmann, α = β": ("hoffmann_shared", {}),
    "hoffmann, E = 0": ("hoffmann", {"E": 0.0}),
    "hoffmann, α = β = 0.15": ("hoffmann", {"alpha": 0.15, "beta": 0.15}),
    "hoffmann, α = β = 0.25": ("hoffmann", {"alpha": 0.25, "beta": 0.25}),
    "hoffmann, α = β = 0.35": ("hoffmann", {"alpha": 0.35, "beta": 0.35}),
    "kaplan": ("kaplan", {}),
    "kaplan_offset": ("kaplan_offset", {}),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Losses of new runs: an entry a row of what was asked for, in `value`, `low` and `high` (interval at `level`).

    `factor` is how many times the FLOPs of the largest fitted run each takes; `members` has a column a law, the values
    of which `value` is the mean; `statements` say what was weighted and left out, `warnings` what to doubt.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    factor: np.ndarray
    members: pd.DataFrame
    statements: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Warnings first, then a line a prediction and what it was made from."""
        lines = [f"warning: {text}" for text in self.warnings]
        for i, value in enumerate(self.value):
            each = ", ".join(f"{name} {row:.4f}" for name, row in self.members.iloc[i].items())
            lines.append(
                f"loss {value:.4f} ({self.level:.0%} of new runs: {self.low[i]:.4f} to {self.high[i]:.4f}), at "
                f"{self.factor[i]:.3g} times the FLOPs of the largest run; by law: {each}"
            )
        return "\n".join([*lines, *self.statements])


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a budget should buy: N*, D* of the mean of the laws, with the range over the laws, and the loss of it.

    `valley` is the loss above the best where N is twice and half of it: what being wrong about N costs.
    """

    flops: float
    params: uncertainty.Estimate
    tokens: uncertainty.Estimate
    loss: Prediction
    valley: tuple[float, float]

    def summary(self) -> str:
        """Two lines, after those of the loss."""
        n, d = (
            f"{x.value:.3g} ({x.interval[0]:.3g} to {x.interval[1]:.3g} by law)" for x in (self.params, self.tokens)
        )
        return (
            f"{self.loss.summary()}\nat {self.flops:.3g} FLOPs: params {n}, tokens {d}; half of these parameters cost "
            f"{self.valley[0]:.2%} of the loss, twice as many {self.valley[1]:.2%}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Laws of N and D fitted to the same runs, which predict new ones together.

    `refused` says of each law that the runs do not carry why; `rule` is what a run costs; `scatter` the standard
    deviation of single runs' log losses about the law that is nearest to them.
    """

    fits: dict[str, fitting.Fit]
    refused: dict[str, str]
    rule: surfaces.FlopRule
    largest: float
    scatter: float
    statements: tuple[str, ...]
    warnings: tuple[str, ...]

    def predict(self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95) -> Prediction:
        """The loss of new runs of `params` and `tokens`, of one of them and `flops`, or of `flops` at their best sizes.

        `flops` follow from the runs' own rule where they are not given. Raises ValueError where an input is missing or
        no positive number.
        """
        if not 0 < level < 1:
            raise ValueError(f"level = {level}: must lie between 0 and 1; 0.95 is usual")
        n, d, c = self._places(at)
        factor = c / self.largest
        members = self._members(n, d)
        logs = np.log(members.to_numpy())
        value, half = np.exp(logs.mean(axis=1)), self._half(logs, factor, level)
        return Prediction(
            value, value * np.exp(-half), value * np.exp(half), level, factor, members, self.statements,
            (*_doubts(members, factor), *self.warnings),
        )  # fmt: skip

    def _places(self, at: pd.DataFrame | Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, tokens and FLOPs of new runs, an entry a run."""
        given = {name: _positive(at[name], name) for name in ("params", "tokens", "flops") if name in at}
        if not set(given) & {"tokens", "flops"} or not set(given) & {"params", "flops"}:
            raise ValueError(
                f"a prediction at {', '.join(map(str, at)) or 'nothing'} needs 'params' and 'tokens', one of them and "
                "'flops', or 'flops' alone, for its best sizes; add what is missing"
            )
        if "params" not in given and "tokens" not in given:
            best = [self._best(float(flops)) for flops in given["flops"]]
            return np.array([n for n, _ in best]), np.array([d for _, d in best]), given["flops"]
        if "tokens" not in given:
            given["tokens"] = given["flops"] / self.rule.flops(given["params"], np.ones_like(given["params"]))
        if "params" not in given:
            sizes = self._sizes()
            each = np.log(self.rule.flops(sizes, np.ones_like(sizes)))
            wanted = np.log(given["flops"] / given["tokens"])
            given["params"] = np.exp(np.interp(wanted, each, np.log(sizes)))
        return given["params"], given["tokens"], given.get("flops", self.rule.flops(given["params"], given["tokens"]))

    def _members(self, n: np.ndarray, d: np.ndarray) -> pd.DataFrame:
        at = {"params": n, "tokens": d}
        return pd.DataFrame({name: fit.predict(at) for name, fit in self.fits.items()})

    def _half(self, logs: Float[np.ndarray, "rows members"], factor: np.ndarray, level: float) -> np.ndarray:
        spread = logs.std(axis=1, ddof=1)
        beyond = np.log(np.maximum(factor, 1.0))
        return quantile(level) * np.sqrt((SPREAD * spread) ** 2 + (DISTANCE * beyond) ** 2 + self.scatter**2)

    @staticmethod
    def _sizes() -> np.ndarray:
        return np.geomspace(*SIZES, GRID)

    def _along(self, flops: float) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "sizes members"]]:
        """Sizes and tokens that cost a budget, of a token or more, and the log losses of the members there."""
        n = self._sizes()
        d = flops / self.rule.flops(n, np.ones_like(n))
        n, d = n[d >= 1], d[d >= 1]
        return n, d, np.log(self._members(n, d).to_numpy())

    def _best(self, flops: float) -> tuple[float, float]:
        n, d, logs = self._along(flops)
        best = int(logs.mean(axis=1).argmin())
        return float(n[best]), float(d[best])

    def allocate(self, flops: float, level: float = 0.95) -> Budget:
        """The sizes of the least loss at a budget, by the FLOP rule of the runs; ValueError unless it is positive."""
        if not 0 < flops < np.inf:
            raise ValueError(f"flops = {flops}: must be positive and finite; pass a budget in FLOPs such as 1e21")
        n, d, logs = self._along(flops)
        mean = logs.mean(axis=1)
        best, each = int(mean.argmin()), logs.argmin(axis=0)
        half, twice = (
            float(np.expm1(np.interp(np.log(n[best] * factor), np.log(n), mean) - mean[best])) for factor in (0.5, 2.0)
        )
        n_star, d_star = (
            uncertainty.Estimate(float(x[best]), (float(x[each].min()), float(x[each].max())), level) for x in (n, d)
        )
        loss = self.predict({"params": n[[best]], "tokens": d[[best]], "flops": [flops]}, level)
        return Budget(float(flops), n_star, d_star, loss, (half, twice))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, the fits with their runs."""
        record = {
            "format": FORMAT, "fits": {name: fit.record() for name, fit in self.fits.items()}, "refused": self.refused,
            "rule": dataclasses.asdict(self.rule), "largest": self.largest, "scatter": self.scatter,
            "statements": self.statements, "warnings": self.warnings,
        }  # fmt: skip
        fitting.write(path, record)


def load(path: str | os.PathLike[str]) -> Predictor:
    """A saved predictor; ValueError where the file is none."""
    record = fitting.read(path, FORMAT, "a saved prediction", "Predictor.save")
    fits = {name: fitting.of_record(each, path) for name, each in record["fits"].items()}
    rule, texts = surfaces.FlopRule(**record["rule"]), (tuple(record[name]) for name in ("statements", "warnings"))
    return Predictor(fits, record["refused"], rule, record["largest"], record["scatter"], *texts)


def predictor(
    frame: pd.DataFrame, *, loss: str = "loss", params: str = "params", tokens: str = "tokens", flops: str = "flops"
) -> Predictor:
    """The members fitted to the finished runs of `frame`, each run by its weight.

    Raises `Refused` (a ValueError) where fewer than three of the laws can be fitted to the runs.
    """
    columns = {"params": params, "tokens": tokens, "flops": flops}
    whole, derived = definitions.complete(frame, tuple(columns), columns)
    chosen = checks.runs(whole)
    n, d, c, y = (checks.column(chosen.frame, name, "a prediction") for name in (*columns.values(), loss))
    checks.falling({"params": n, "tokens": d}, y, loss)
    weight = weights(c, y)
    runs = pd.DataFrame({"params": n, "tokens": d, "flops": c, "loss": y, "se": y / np.sqrt(weight)})
    fits, refused = {}, {}
    for name, (law, fixed) in MEMBERS.items():
        try:
            fits[name] = fitting.fit(law, runs, weights="se", fixed=fixed or None)
        except errors.Refused as reason:
            refused[name] = str(reason)
    if len(fits) < FEWEST:
        raise errors.Refused(
            f"{len(fits)} of {len(MEMBERS)} laws can be fitted to these runs: {next(iter(refused.values()))}"
        )
    scatter = min(_scatter(np.log(y / fit.predict(runs)), weight) for fit in fits.values())
    rule = surfaces.flop_rule(runs, "params", "tokens", "flops")
    statements = [
        f"the mean of {len(fits)} laws: {', '.join(fits)}",
        f"runs weigh (C/C_max)^{COMPUTE:g} / (1 + (e/{EXCESS:g})²), e the log of loss over the least at as much "
        f"compute: {int((weight / weight.max() < 0.1).sum())} of {len(weight)} weigh less than a tenth of the heaviest",
        *derived,
        *(f"left out: {name}: {reason}" for name, reason in refused.items()),
        *checks.left_out(chosen),
    ]
    mixed, _ = checks.mixture(chosen.frame, columns.values())
    pooled = (*chosen.warnings, *checkpoints.warn(chosen.frame, None, params, tokens), *mixed)
    return Predictor(fits, refused, rule, float(c.max()), scatter, tuple(statements), pooled)


def predict(
    frame: pd.DataFrame, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95, **columns: str
) -> Prediction:
    """The loss of new runs at `at`, with an interval that holds single runs: `predictor(frame).predict(at)`."""
    return predictor(frame, **columns).predict(at, level)


def weights(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """What each run counts for a prediction above them (the head of this module has the equation)."""
    excess = np.maximum(np.log(loss) - envelope(flops, loss), 0.0)
    return np.asarray((flops / flops.max()) ** COMPUTE / (1 + (excess / EXCESS) ** 2))


def envelope(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """log of the least loss that as many FLOPs or fewer reached, straight in log C between groups of runs."""
    order = np.argsort(flops, kind="stable")
    c, least = np.log(flops[order]), np.log(np.minimum.accumulate(loss[order]))
    group = np.round(c / WINDOW)
    at = np.unique(group)
    return np.interp(
        np.log(flops), [c[group == g].mean() for g in at], [least[group == g].min() for g in at]
    )  # fmt: skip


def _scatter(residuals: np.ndarray, weight: np.ndarray) -> float:
    """The standard deviation of the weighted residuals, by their median magnitude: outliers do not count."""
    order = np.argsort(np.abs(residuals))
    share = np.cumsum(weight[order]) / weight.sum()
    return float(1.4826 * np.abs(residuals)[order][np.searchsorted(share, 0.5)])


def quantile(level: float) -> float:
    """Of Student's t with five degrees of freedom."""
    return float(scipy.special.stdtrit(5, (1 + level) / 2))


def _positive(values: Any, name: str) -> np.ndarray:
    numbers = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if (bad := ~(np.isfinite(numbers) & (numbers > 0))).any():
        raise ValueError(f"{name} = {numbers[bad][0]:g}: a prediction needs positive finite numbers; fix or drop it")
    return numbers


def _doubts(members: pd.DataFrame, factor: np.ndarray) -> Iterator[str]:
    """What to doubt of a prediction: how far it reaches, and how much the laws differ there."""
    if (factor > FAR).any():
        yield (
            f"{factor.max():.3g} times the FLOPs of the largest run: intervals were tested up to {FAR:g} times; train "
            "a run in between"
        )
    lowest, highest = members.min(axis=1), members.max(axis=1)
    if (apart := highest / lowest - 1).max() > APART:
        worst = int(apart.to_numpy().argmax())
        yield (
            f"the laws differ by {apart[worst]:.0%} ({lowest[worst]:.4f} to {highest[worst]:.4f}), more than "
            f"{APART:.0%}: these runs do not say which form holds so far out; train larger ones"
        )
