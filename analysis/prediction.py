"""The loss of a run not yet trained, with an interval that holds: equal weights over laws that extrapolate differently.

One law's interval knows the scatter of the runs and takes its own form for the truth; what misses a run far above is
the form. Here several forms are fitted to the same runs, their mean is the prediction, and the interval grows with what
they disagree about, which is more the further the target lies beyond the runs:

    log L = mean of log f_m,    half = T · sqrt((SPREAD · s)² + (DISTANCE · log factor)² + σ² (1 + |ℓ|²))

s is the standard deviation of the members' log f_m, `factor` the target's FLOPs over the largest fitted run's (1 where
it lies among the runs), σ the scatter of single runs about the member that is nearest to them, ℓ by how much each
run's own scatter moves the mean, T a quantile of Student's t with five degrees of freedom. `analysis.members` has the
laws, what each run counts for, σ and ℓ. `docs/predictions.md` says how the constants were chosen (`python -m
benchmarks.prediction --choose`) and where the intervals fail.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float

from analysis import checks, errors, fitting, members, surfaces

SPREAD = 0.4
DISTANCE = 0.004
FAR = 50.0  # times the largest fitted run's FLOPs: no public table reaches further, so nothing was tested there
APART = 0.1  # of the loss, by which the laws may differ before that is warned about
ON_LINE = 0.05  # of log D, by which a target may leave the line of runs whose tokens follow from parameters
FORMAT = "scaling-prediction-1"
SIZES = np.geomspace(1e3, 1e15, 4801)  # parameters among which the best are sought, 0.6% apart


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Losses of new runs: an entry a row of what was asked for, in `value`, `low` and `high` (interval at `level`).

    `params` and `tokens` are those of the runs; `factor` is how many times the FLOPs of the largest fitted run each
    takes; `members` has a column a law, whose geometric mean is `value`; `statements` say what was weighted and left
    out, `warnings` what to doubt.
    """

    params: np.ndarray
    tokens: np.ndarray
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
                f"params {self.params[i]:.4g}, tokens {self.tokens[i]:.4g}: loss {value:.4f} ({100 * self.level:g}% of "
                f"new runs: {self.low[i]:.4f} to {self.high[i]:.4f}), at {self.factor[i]:.3g} times the FLOPs of the "
                f"largest run; by law: {each}"
            )
        return "\n".join([*lines, *self.statements])


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a budget should buy: N* and D* of the mean of the laws, and the loss of it.

    `params_by_law` and `tokens_by_law` are the least and the greatest over the laws that have an optimum of their own;
    `valley` is by what share of the loss half and twice N* are worse: what being wrong about N costs.
    """

    flops: float
    params: float
    tokens: float
    params_by_law: tuple[float, float]
    tokens_by_law: tuple[float, float]
    loss: Prediction
    valley: tuple[float, float]

    def summary(self) -> str:
        """The lines of the loss, then one of the sizes."""
        sizes = ", ".join(
            f"{name} {value:.3g} ({least:.3g} to {most:.3g} by law)"
            for name, value, (least, most) in (
                ("params", self.params, self.params_by_law),
                ("tokens", self.tokens, self.tokens_by_law),
            )
        )
        return (
            f"{self.loss.summary()}\nat {self.flops:.3g} FLOPs: {sizes}; half of these parameters cost "
            f"{self.valley[0]:.2%} of the loss, twice as many {self.valley[1]:.2%}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Laws of N and D fitted to the same runs, which predict new ones together.

    `refused` says why each of the other laws could not be fitted; `columns` under which names the runs have params,
    tokens and flops; `rule` is what a run costs; `largest` the FLOPs of the largest; `scatter` the standard deviation
    of single runs' log losses about the law that is nearest to them. Where tokens follow from parameters in all runs
    `line` is (κ, c) of log D = κ log N + c, and `off_line` why nothing is known elsewhere.
    """

    fits: dict[str, fitting.Fit]
    refused: dict[str, str]
    columns: dict[str, str]
    rule: surfaces.FlopRule
    largest: float
    scatter: float
    line: tuple[float, float] | None
    off_line: str
    statements: tuple[str, ...]
    warnings: tuple[str, ...]

    def predict(self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95) -> Prediction:
        """The loss of new runs of params and tokens, of one of them and flops, or of flops at their best sizes.

        They have the names that they have in the runs, or these. FLOPs follow from the runs' own rule where they are
        not given. Raises ValueError where an input is missing or no positive number, `Refused` where the runs say
        nothing of such a run.
        """
        given = asked(at, level, self.columns)
        n, d, c = self._places(given)
        self._refuse_off_line(n, d)
        factor = c / self.largest
        by_law = self._members(n, d)
        logs = np.log(by_law.to_numpy())
        value, width = np.exp(logs.mean(axis=1)), half(logs.std(axis=1, ddof=1), factor, self.noise(n, d), level)
        return Prediction(
            n, d, value, value * np.exp(-width), value * np.exp(width), level, factor, by_law, self.statements,
            (*_doubts(by_law, factor), *self.warnings),
        )  # fmt: skip

    def noise(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """σ √(1 + |ℓ|²): the scatter of a new run, and what that of the runs does to the mean of the laws there."""
        return np.asarray(self.scatter * np.sqrt(1 + members.carried(self.fits, n, d)))

    def _places(self, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, tokens and FLOPs of new runs, an entry a run."""
        n, d, c = (given.get(name) for name in members.NAMES)
        if n is None and d is None:
            assert c is not None
            along = [self._along(float(flops)) for flops in c]
            n, d = np.array([(n[best], d[best]) for n, d, _, best in along]).T
            return n, d, c
        if n is None:
            assert c is not None
            assert d is not None
            n = self._size(c / d)
        if d is None:
            assert c is not None
            d = c / self.rule.per_token(n)
        return n, d, self.rule.flops(n, d) if c is None else c

    def _size(self, per_token: np.ndarray) -> np.ndarray:
        """The parameters of which a token costs so much."""
        each = np.log(self.rule.per_token(SIZES))
        wanted = np.log(per_token)
        if (outside := (wanted < each[0]) | (wanted > each[-1])).any():
            raise ValueError(
                f"flops / tokens = {per_token[outside][0]:g} is what no model of {SIZES[0]:g} to {SIZES[-1]:g} "
                "parameters costs by the FLOP rule of the runs; correct one of the two"
            )
        return np.asarray(np.exp(np.interp(wanted, each, np.log(SIZES))))

    def _refuse_off_line(self, n: np.ndarray, d: np.ndarray) -> None:
        if self.line is None:
            return
        there = np.exp(np.polyval(self.line, np.log(n)))
        if (off := np.abs(np.log(d / there)) > ON_LINE).any():
            raise errors.Refused(
                f"params = {n[off][0]:.4g} with tokens = {d[off][0]:.4g}: {self.off_line}; on their line it would be "
                f"tokens = {there[off][0]:.4g}"
            )

    def _members(self, n: np.ndarray, d: np.ndarray) -> pd.DataFrame:
        at = {"params": n, "tokens": d}
        return pd.DataFrame({name: fit.predict(at) for name, fit in self.fits.items()})

    def _along(self, flops: float) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "sizes members"], int]:
        """Sizes and tokens that cost a budget, the log losses of the members there, and which is best by their mean."""
        if self.line is not None:
            raise errors.Refused(f"the best sizes at {flops:.3g} FLOPs: {self.off_line}; give params and tokens")
        d = flops / self.rule.per_token(SIZES)
        if not (there := d >= 1).any():
            raise ValueError(f"flops = {flops:g} buys no token at {SIZES[0]:g} parameters; pass more")
        n, d = SIZES[there], d[there]
        logs = np.log(self._members(n, d).to_numpy())
        best = int(logs.mean(axis=1).argmin())
        if best in (0, len(n) - 1):
            raise errors.Refused(
                f"at {flops:.3g} FLOPs the mean of the laws is least at {n[best]:.3g} parameters, the end of what was "
                "searched: these runs have no best size; give params and tokens, or add runs"
            )
        return n, d, logs, best

    def allocate(self, flops: float, level: float = 0.95) -> Budget:
        """The sizes of the least loss at a budget, by the FLOP rule of the runs.

        Raises ValueError unless the budget is positive, `Refused` where the runs know no best sizes.
        """
        checks.budget(flops)
        n, d, logs, best = self._along(flops)
        params, tokens = float(n[best]), float(d[best])
        each = logs.argmin(axis=0)
        inside = (each > 0) & (each < len(n) - 1)
        if not inside.any():
            raise errors.Refused(f"none of the laws has a best size at {flops:.3g} FLOPs; add runs of other D/N")
        by_law = [(float(x[each[inside]].min()), float(x[each[inside]].max())) for x in (n, d)]
        mean = np.interp(np.log(params) + np.log([0.5, 1.0, 2.0]), np.log(n), logs.mean(axis=1))
        loss = self.predict({"params": params, "tokens": tokens, "flops": flops}, level)
        if not inside.all():
            names = ", ".join(np.array(list(self.fits))[~inside])
            loss = dataclasses.replace(
                loss, warnings=(*loss.warnings, f"no best size at {flops:.3g} FLOPs, left out of the range: {names}")
            )
        valley = np.expm1(mean - mean[1])
        return Budget(flops, params, tokens, by_law[0], by_law[1], loss, (float(valley[0]), float(valley[2])))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, the fits with their runs."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record |= {
            "format": FORMAT,
            "fits": {name: fit.record() for name, fit in self.fits.items()},
            "rule": dataclasses.asdict(self.rule),
        }
        fitting.write(path, record)


def load(path: str | os.PathLike[str]) -> Predictor:
    """A saved predictor; ValueError where the file is none."""
    record = fitting.read(path, FORMAT, "a saved prediction", "Predictor.save")
    if missing := [field.name for field in dataclasses.fields(Predictor) if field.name not in record]:
        raise ValueError(f"{path} is not a whole saved prediction: it lacks {', '.join(missing)}; save it again")
    fits = {name: fitting.of_record(each, path) for name, each in record["fits"].items()}
    rule = dict(record["rule"])
    bend = surfaces.Bend(**rule.pop("bend")) if rule["bend"] else None
    return Predictor(
        fits=fits,
        refused=record["refused"],
        columns=record["columns"],
        rule=surfaces.FlopRule(**{**rule, "bend": bend}),
        largest=record["largest"],
        scatter=record["scatter"],
        line=tuple(record["line"]) if record["line"] else None,
        off_line=record["off_line"],
        statements=tuple(record["statements"]),
        warnings=tuple(record["warnings"]),
    )


def predictor(
    frame: pd.DataFrame, *, loss: str = "loss", params: str = "params", tokens: str = "tokens", flops: str = "flops",
    cluster: str | None = None,
) -> Predictor:  # fmt: skip
    """The members fitted to the finished runs of `frame`, each run by its weight.

    Where rows are checkpoints, `cluster` names the column that says of which run: the last row of each counts. Raises
    `Refused` (a ValueError) where the runs cannot share a law, are fewer than 8 or of fewer than three sizes, or carry
    fewer than three of the laws.
    """
    columns = dict(zip(members.NAMES, (params, tokens, flops), strict=True))
    chosen, runs = members.usable(frame, loss, columns, cluster)
    weight = members.weights(runs["flops"].to_numpy(), runs["loss"].to_numpy())
    runs["se"] = runs["loss"] / np.sqrt(weight)
    fits, refused = members.fitted(runs)
    line, off_line = members.line(runs)
    rule = surfaces.flop_rule(runs, *members.NAMES)
    scatter = min(members.scatter(fit, runs, weight) for fit in fits.values())
    light = int((weight / weight.max() < 0.1).sum())
    statements = (
        f"the mean of {len(fits)} laws: {', '.join(fits)}",
        f"runs weigh (C/C_max)^{members.COMPUTE:g} / (1 + (e/{members.EXCESS:g})²), e the log of loss over the least "
        f"at as much compute: {light} of {len(weight)} weigh less than a tenth of the heaviest",
        *chosen.notes,
        *(f"left out: {name}: {reason}" for name, reason in refused.items()),
        *members.at_bounds(fits),
        *checks.left_out(chosen),
    )
    return Predictor(
        fits, refused, columns, rule, float(runs["flops"].max()), scatter, line, off_line, statements,
        (*chosen.warnings, *rule.warnings),
    )  # fmt: skip


def predict(
    frame: pd.DataFrame, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95, **columns: str
) -> Prediction:
    """The loss of new runs at `at`, with an interval that holds single runs: `predictor(frame).predict(at)`."""
    asked(at, level, columns)
    return predictor(frame, **columns).predict(at, level)


def asked(at: pd.DataFrame | Mapping[str, Any], level: float, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What is given of new runs, by name; ValueError where it does not say what is to be predicted."""
    checks.level(level)
    held = {name: next((key for key in (columns.get(name, name), name) if key in at), None) for name in members.NAMES}
    given = {name: _positive(at[key], key) for name, key in held.items() if key is not None}
    if not set(given) & {"tokens", "flops"} or not set(given) & {"params", "flops"}:
        raise ValueError(
            f"a prediction at {', '.join(map(str, at)) or 'nothing'} needs 'params' and 'tokens', one of them and "
            "'flops', or 'flops' alone, for its best sizes; add what is missing"
        )
    return dict(zip(given, np.broadcast_arrays(*given.values()), strict=True))


def half(
    apart: np.ndarray, factor: np.ndarray, noise: np.ndarray, level: float = 0.95, *,
    spread: float = SPREAD, distance: float = DISTANCE,
) -> np.ndarray:  # fmt: skip
    """Half of the interval of log L where the members stand `apart` and `noise` is σ √(1 + |ℓ|²) (see the module)."""
    wide = (spread * apart) ** 2 + (distance * np.log(np.maximum(factor, 1.0))) ** 2
    return np.asarray(quantile(level) * np.sqrt(wide + noise**2))


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
