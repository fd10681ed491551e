"""Fits of a law to runs: `fit`, its result `Fit`, and `load`."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import checklists, checks, definitions, errors, laws, measuring, outliers, profiles, solver, uncertainty
from analysis.criteria import DELTA, Criterion, Kind
from analysis.diagnostics import Diagnostics, diagnose
from analysis.forms import Scale

STARTS = 32
FORMAT = "scaling-fit-2"
_SAVED = (
    "law", "params", "objective", "status", "starts", "runs", "columns", "warnings", "facts", "criterion", "fixed",
)  # fmt: skip
SAME = 1e-6  # relative difference of objectives below which two starts reached the same minimum


@dataclasses.dataclass(frozen=True)
class Starts:
    """How many starts were refined to a minimum, how many reached the best one, and the gradient left there.

    `gradient` is the largest component that no bound holds, in the search's coordinates, over the objective. `others`
    are further minima that starts converged to, the lowest three, as their objective and parameters.
    """

    count: int
    reached: int
    gradient: float
    others: tuple[tuple[float, dict[str, float]], ...] = ()

    @property
    def share(self) -> float:
        return self.reached / self.count


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs.

    `objective` is the criterion's sum at the minimum, by default Σ Huber_δ(log L_i − log f_i), δ = 1e-3; `status` is
    "converged" or says what is wrong; `fixed` are the parameters that were given. `runs` holds the inputs and losses
    that were used (the measured quantity under the name `loss`), with `flops` and `flops_budget` where the table has
    them, a `weight` and a `cluster` where the fit has them; `columns` the column that each input came from.
    """

    law: laws.Law
    params: dict[str, float]
    objective: float
    status: str
    starts: Starts
    runs: pd.DataFrame
    columns: dict[str, str]
    warnings: tuple[str, ...]
    facts: tuple[str, ...]
    criterion: Criterion
    fixed: dict[str, float]

    def predict(self, at: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """The law's value (nats per token where it was fitted to such) at `at`, by the fit's columns or its inputs.

        Raises ValueError where an input is missing.
        """
        with solver.precise():
            return np.asarray(self.law(inputs(self, at), self.params), dtype=np.float64)

    @property
    def clusters(self) -> int:
        """How many runs the rows are checkpoints of, 0 where every row is a run of its own."""
        return int(self.runs["cluster"].nunique()) if "cluster" in self.runs else 0

    @functools.cached_property
    def fitted(self) -> np.ndarray:
        """The law's value at every run of the fit."""
        return self.predict({name: self.runs[name] for name in self.law.inputs})

    @functools.cached_property
    def residuals(self) -> np.ndarray:
        """Measured less predicted on the criterion's scale (by default log L − log f), by run."""
        measured = self.runs["loss"].to_numpy()
        return np.asarray(self.criterion.transform(measured) - self.criterion.transform(self.fitted))

    @functools.cached_property
    def diagnostics(self) -> Diagnostics:
        """Standard errors, condition number, and which parameters the data cannot tell apart."""
        return diagnose(self)

    def points(self) -> solver.Points:
        """The runs as the solver takes them."""
        weight = self.runs["weight"].to_numpy() if "weight" in self.runs else None
        return solver.points(
            {name: self.runs[name].to_numpy() for name in self.law.inputs}, self.runs["loss"].to_numpy(), weight
        )

    def bootstrap(self, resamples: int = 1000, seed: int = 0) -> "uncertainty.Bootstrap":
        """The fit again on `resamples` samples of its runs (of its clusters where it has them), with replacement."""
        return uncertainty.bootstrap(self, resamples, seed)

    def profile(self, name: str, level: float = 0.95) -> "profiles.Profile":
        """The least objective against one parameter, and the interval that it gives."""
        return profiles.profile(self, name, level)

    def checklist(self, intervals: str = "") -> str:
        """What a reader must know to judge the fit (Li et al. 2025, arXiv 2502.18969), one line each.

        `intervals` says which ones of the parameters are printed beside it, in place of standard errors.
        """
        return checklists.checklist(self, intervals)

    def record(self) -> dict[str, Any]:
        """The fit as JSON holds it, runs included."""
        return {
            "format": FORMAT,
            "law": self.law.name,
            "params": self.params,
            "objective": self.objective,
            "status": self.status,
            "starts": dataclasses.asdict(self.starts),
            "criterion": dataclasses.asdict(self.criterion),
            "fixed": self.fixed,
            "runs": {name: [None if v != v else v for v in self.runs[name].tolist()] for name in self.runs.columns},
            "columns": self.columns,
            "warnings": list(self.warnings),
            "facts": list(self.facts),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit as JSON, runs included, whole or not at all."""
        write(path, self.record())


def write(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """JSON into a file, whole or not at all."""
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(target)


def read(path: str | os.PathLike[str], form: str, what: str, writer: str) -> dict[str, Any]:
    """What `write` wrote of this format; ValueError where the file holds something else."""
    try:
        record = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); pass a file that {writer} wrote") from error
    if not isinstance(record, dict) or record.get("format") != form:
        raise ValueError(f"{path} is not {what} (format {form}); pass a file that {writer} wrote")
    return record


def load(path: str | os.PathLike[str], law: laws.Law | None = None) -> Fit:
    """A saved fit; a law of one's own is passed as `law`.

    Raises ValueError where the file is no saved fit or its law is unknown.
    """
    return of_record(read(path, FORMAT, "a saved fit", "Fit.save"), path, law)


def of_record(record: Mapping[str, Any], path: str | os.PathLike[str], law: laws.Law | None = None) -> Fit:
    """The fit of `Fit.record` that was read from `path`."""
    if missing := [name for name in _SAVED if name not in record]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is no whole saved fit; save the fit again")
    known = law or laws.LAWS.get(record["law"])
    if known is None or known.name != record["law"]:
        raise ValueError(
            f"{path} was fitted with law {record['law']!r}; pass that law: load(path, law=...), or --law FILE.py"
        )
    if missing := sorted({*known.names} - {*record["params"]} | {*known.inputs, "loss"} - {*record["runs"]}):
        raise ValueError(f"{path} lacks {', '.join(missing)} of the law {known.name!r}; save the fit again")
    return Fit(
        law=known,
        params=record["params"],
        objective=record["objective"],
        status=record["status"],
        starts=Starts(**{**record["starts"], "others": tuple((f, p) for f, p in record["starts"]["others"])}),
        runs=pd.DataFrame(record["runs"]),
        columns=record["columns"],
        warnings=tuple(record["warnings"]),
        facts=tuple(record["facts"]),
        criterion=Criterion(**record["criterion"]),
        fixed=record["fixed"],
    )


def inputs(fit: Fit, at: pd.DataFrame | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The law's inputs in `at`, as it takes them: under the column the fit used, else under the input's own name.

    One that is not there is made of others where that is exact: tokens_per_parameter = tokens / params.
    """
    values = {}
    for name in fit.law.inputs:
        key = fit.columns[name] if fit.columns[name] in at else name
        derived = None if key in at else definitions.exactly(at, name)
        if key not in at and derived is None:
            raise ValueError(
                f"prediction by {fit.law.name!r} needs {fit.columns[name]!r}; got {', '.join(map(str, at))}; add it"
            )
        try:
            values[name] = np.asarray(at[key] if derived is None else derived, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key} = {at.get(key)!r} holds what is no number; fix or drop it") from error
        positive = name not in fit.law.real
        if (bad := ~(np.isfinite(values[name]) & ((values[name] > 0) | (not positive)))).any():
            raise ValueError(
                f"{key} = {values[name][bad].flat[0]:g}: prediction by {fit.law.name!r} needs "
                f"{'positive ' * positive}finite numbers; fix or drop it"
            )
    return values


def fit(
    law: str | laws.Law,
    frame: pd.DataFrame,
    *,
    loss: str = "loss",
    objective: Kind = "huber",
    delta: float = DELTA,
    scale: Scale | None = None,
    weights: str | None = None,
    fixed: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
    cluster: str | None = None,
    **columns: str,
) -> Fit:
    """The law's parameters at the least Σ w ρ(residual) over the finished runs of `frame`.

    `objective` is ρ: "huber" or "log_cosh" with `delta`, or "squared"; `scale` is that of the residuals, "log", "log1p"
    or "linear", by default the law's own (log for a loss). `weights` names a column of standard errors of the loss: a
    run weighs 1/se², relative to the mean. `fixed` holds parameters at given values; `start` refines from that point
    alone instead of many. `cluster` names the column that says which run a row is a checkpoint of: such rows are
    resampled together. `columns` says where an input is under another name:
    fit("hoffmann", frame, params="params_non_embedding"). Inputs that follow from others are made of them and stated.
    Raises `Refused` (a ValueError) where the data cannot support the fit.
    """
    form = laws.get(law)
    criterion = Criterion(objective, delta, scale or form.scale)
    given = _given(form, fixed or {}, "fixed")
    chosen, values, measured = measuring.measurements(form, frame, loss, columns, criterion.scale, given, cluster)
    names = {name: columns.get(name, name) for name in form.inputs}
    kept = _spent(chosen.frame, [*values, "loss"])
    if weights is not None:
        kept["weight"] = _weights(checks.column(chosen.frame, weights, "weights"), measured, criterion)
    if cluster is not None:
        kept["cluster"] = chosen.frame[cluster].astype(str).to_numpy()
    data = solver.points(values, measured, kept.get("weight"))
    low, high = solver.box(form, given)
    with solver.precise():
        if start is None:
            theta = solver.starts(form, data, STARTS, criterion, given)
        else:
            theta = np.clip(solver.coordinates(form, _given(form, {**start, **given}, "start")), low, high)
        if not len(theta):
            raise errors.Refused(
                f"{form.name!r} has no finite value at any of its starting points on these {len(measured)} rows: check "
                "the units of its inputs, or pass start="
            )
        refined = solver.refine(form, theta, data, np.tile(data.weight, (len(theta), 1)), criterion, low, high)
        if not np.isfinite(refined.objective).any():
            raise errors.Refused(
                f"{form.name!r} is not finite on these {len(measured)} rows from {'start' if start else 'any start'}; "
                "check the units of its inputs, or pass another start="
            )
        best = int(np.nanargmin(refined.objective))
    minima = {name: np.asarray(values) for name, values in solver.named(form, refined.theta).items()}
    params = {name: float(values[best]) for name, values in minima.items()}
    least, at = float(refined.objective[best]), refined.theta[best]
    reached = int(np.sum(refined.objective <= least + SAME * max(least, solver.EXACT)))
    slope = np.where(((at <= low) | (at >= high)), 0.0, refined.gradient[best])
    starts = Starts(
        len(theta), reached, float(np.abs(slope).max() / max(least, solver.EXACT)), _others(refined, minima, least)
    )
    converged = bool(refined.converged[best])
    status = "converged" if converged else f"not converged (Newton decrement {refined.decrement[best]:.1e})"
    fitted = Fit(
        law=form,
        params={**params, **given},
        objective=least,
        status=status,
        starts=starts,
        runs=pd.DataFrame({**values, "loss": measured, **kept}),
        columns=names,
        warnings=chosen.warnings,
        facts=checklists.facts(chosen, list(names.values()), loss, values, measured),
        criterion=criterion,
        fixed=given,
    )
    checks.falling(values, measured, loss, fitted.fitted)
    named = outliers.of_fit(fitted, chosen.frame.index)
    return dataclasses.replace(fitted, warnings=(*fitted.warnings, *named, *checklists.doubts(fitted, at)))


def _others(
    refined: solver.Refined, params: Mapping[str, np.ndarray], least: float
) -> tuple[tuple[float, dict[str, float]], ...]:
    """The lowest minima above the best one, each once."""
    kept: list[tuple[float, dict[str, float]]] = []
    floor = max(least, solver.EXACT)
    for row in np.argsort(refined.objective, kind="stable"):
        value, last = float(refined.objective[row]), kept[-1][0] if kept else least
        if refined.converged[row] and value > last + 1e3 * SAME * floor and len(kept) < 3:
            kept.append((value, {name: float(values[row]) for name, values in params.items()}))
    return tuple(kept)


def _given(law: laws.Law, values: Mapping[str, float], what: str) -> dict[str, float]:
    """Values of parameters by name; ValueError names what is unknown, missing or out of bounds."""
    if unknown := set(values) - set(law.names):
        raise ValueError(f"{what} names {sorted(unknown)}; the parameters of {law.name!r} are {', '.join(law.names)}")
    if what == "start" and (missing := set(law.names) - set(values)):
        raise ValueError(f"start lacks {', '.join(sorted(missing))}; give every parameter of {law.name!r}")
    for name, value in values.items():
        parameter = law.parameter(name)
        number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
        if not (number and parameter.lower <= value <= parameter.upper):
            raise ValueError(
                f"{what} {name} = {value!r}: must lie within its bounds, {parameter.lower:g} to {parameter.upper:g}"
            )
    return {name: float(values[name]) for name in law.names if name in values}


def _weights(error: np.ndarray, measured: np.ndarray, criterion: Criterion) -> np.ndarray:
    """1/se² on the residuals' scale, relative to the mean: d log y = dy/y, d log(1 + y) = dy/(1 + y)."""
    unit = {"log": measured, "log1p": 1 + measured, "linear": np.ones_like(measured)}[criterion.scale]
    weight = (unit / error) ** 2
    return np.asarray(weight / weight.mean())


def _spent(frame: pd.DataFrame, taken: Sequence[str]) -> dict[str, np.ndarray]:
    """What the runs cost by the table's own columns: a frontier of the fit needs it for its FLOP rule."""
    spent = {
        name: pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        for name in ("flops", "flops_budget")
        if name in frame.columns and name not in taken
    }
    return {name: values for name, values in spent.items() if not np.isnan(values).all()}


def refuse_unconverged(fitted: Fit) -> None:
    """For results that build on a fit: a fit that has not converged is no ground to build on."""
    if fitted.status != "converged":
        raise errors.Refused(f"the fit of {fitted.law.name!r} is {fitted.status}; add runs or use a simpler law")
