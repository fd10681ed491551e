"""Fits of a law to runs: `fit`, its result `Fit`, and `load`."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import checks, errors, laws, solver, uncertainty

STARTS = 32
_SAVED = ("law", "params", "objective", "status", "starts", "runs", "columns", "warnings", "facts")
SAME = 1e-6  # relative difference of objectives below which two starts reached the same minimum


@dataclasses.dataclass(frozen=True)
class Starts:
    """How many starts were refined to a minimum, and how many of them reached the best one."""

    count: int
    reached: int

    @property
    def share(self) -> float:
        return self.reached / self.count


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs.

    `objective` is Σ Huber_δ(log L_i − log f_i), δ = 1e-3, at the minimum; `status` is "converged" or says what is
    wrong; `runs` holds the inputs and losses that were used, with `flops` and `flops_budget` where the table has them,
    `columns` the column that each input came from.
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

    def predict(self, at: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """The law's loss (nats per token where it was fitted to such) at `at`, by the columns of the fit or its inputs.

        Raises ValueError where an input is missing.
        """
        return np.asarray(self.law(inputs(self, at), self.params), dtype=np.float64)

    @property
    def residuals(self) -> np.ndarray:
        """log(measured) − log(predicted), by run."""
        return np.log(self.runs["loss"].to_numpy()) - np.log(self.predict(self.runs))

    def bootstrap(self, resamples: int = 1000, seed: int = 0) -> "uncertainty.Bootstrap":
        """The fit again on `resamples` samples of its runs, drawn with replacement."""
        return uncertainty.bootstrap(self, resamples, seed)

    def checklist(self) -> str:
        """What a reader must know to judge the fit (Li et al. 2025, arXiv 2502.18969), one line each."""
        residuals = self.residuals
        spread = np.log(self.runs["loss"].to_numpy())
        r2 = 1 - np.sum(residuals**2) / max(np.sum((spread - spread.mean()) ** 2), 1e-300)
        lines = [
            f"form: {self.law.equation}  [{self.law.source}]",
            f"free parameters: {', '.join(f'{k} = {v:.6g}' for k, v in self.params.items())}",
            *self.facts,
            "checkpoints: the final loss of each run, none from the middle of a schedule",
            f"objective: sum of Huber(log L − log f), δ = {solver.DELTA:g}; at the minimum {self.objective:.10g}",
            "optimizer: variable projection on a grid of exponents, then projected Newton, float64, exact derivatives",
            f"starts: {self.starts.reached} of {self.starts.count} refined starts reached the best minimum",
            f"status: {self.status}",
            f"goodness of fit: rms residual of log L {np.sqrt(np.mean(residuals**2)):.3g}, largest "
            f"{np.abs(residuals).max():.3g}, R² {r2:.5f}",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit as JSON, runs included, whole or not at all."""
        record = {
            "format": "scaling-fit-1",
            "law": self.law.name,
            "params": self.params,
            "objective": self.objective,
            "status": self.status,
            "starts": dataclasses.asdict(self.starts),
            "runs": {name: [None if v != v else v for v in self.runs[name].tolist()] for name in self.runs.columns},
            "columns": self.columns,
            "warnings": list(self.warnings),
            "facts": list(self.facts),
        }
        target = pathlib.Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.replace(target)


def load(path: str | os.PathLike[str], law: laws.Law | None = None) -> Fit:
    """A saved fit; a law of one's own is passed as `law`.

    Raises ValueError where the file is no saved fit or its law is unknown.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); pass a file that Fit.save wrote") from error
    if not isinstance(record, dict) or record.get("format") != "scaling-fit-1":
        raise ValueError(f"{path} is not a saved fit (format scaling-fit-1); pass a file that Fit.save wrote")
    if missing := [name for name in _SAVED if name not in record]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is no whole saved fit; save the fit again")
    known = law or laws.LAWS.get(record["law"])
    if known is None or known.name != record["law"]:
        raise ValueError(f"{path} was fitted with law {record['law']!r}; pass that law: load(path, law=...)")
    return Fit(
        law=known,
        params=record["params"],
        objective=record["objective"],
        status=record["status"],
        starts=Starts(**record["starts"]),
        runs=pd.DataFrame(record["runs"]),
        columns=record["columns"],
        warnings=tuple(record["warnings"]),
        facts=tuple(record["facts"]),
    )


def inputs(fit: Fit, at: pd.DataFrame | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The law's inputs in `at`, positive and finite: under the column the fit used, else under the input's own name."""
    found = {}
    for name in fit.law.inputs:
        key = fit.columns[name] if fit.columns[name] in at else name
        if key not in at:
            raise ValueError(
                f"prediction by {fit.law.name!r} needs {fit.columns[name]!r}; got {', '.join(map(str, at))}; add it"
            )
        found[name] = np.asarray(at[key], dtype=np.float64)
        if (bad := ~(np.isfinite(found[name]) & (found[name] > 0))).any():
            raise ValueError(
                f"{key} = {found[name][bad].flat[0]:g}: prediction by {fit.law.name!r} needs positive finite numbers; "
                "mend or drop it"
            )
    return found


def fit(law: str | laws.Law, frame: pd.DataFrame, *, loss: str = "loss", **columns: str) -> Fit:
    """The law's parameters at the least Σ Huber_δ(log L − log f) over the finished runs of `frame`.

    `columns` says where an input is under another name: fit("hoffmann", frame, params="params_non_embedding").
    Raises `Refused` (a ValueError) where the data cannot support the fit.
    """
    form = laws.get(law)
    chosen, values, measured = checks.measurements(form, frame, loss, columns)
    names = {name: columns.get(name, name) for name in form.inputs}
    data = solver.points(values, measured)
    with solver.precise():
        theta = solver.starts(form, data, STARTS)
        refined = solver.refine(form, theta, data, np.tile(data.real, (len(theta), 1)))
        best = int(np.nanargmin(refined.objective))
        params = {name: float(value) for name, value in solver.named(form, refined.theta[best]).items()}
    least = float(refined.objective[best])
    reached = int(np.sum(refined.objective <= least + SAME * max(least, solver.EXACT)))
    starts = Starts(len(theta), reached)
    converged = bool(refined.converged[best])
    status = "converged" if converged else f"not converged (Newton decrement {refined.decrement[best]:.1e})"
    return Fit(
        law=form,
        params=params,
        objective=least,
        status=status,
        starts=starts,
        runs=pd.DataFrame({**values, "loss": measured, **_spent(chosen.frame, [*values, "loss"])}),
        columns=names,
        warnings=chosen.warnings + _doubts(form, refined.theta[best], starts, values, measured, params),
        facts=_facts(chosen, list(names.values()), loss, values, measured),
    )


def _spent(frame: pd.DataFrame, taken: Sequence[str]) -> dict[str, np.ndarray]:
    """What the runs cost by the table's own columns: a frontier of the fit needs it for its FLOP rule."""
    spent = {
        name: pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        for name in ("flops", "flops_budget")
        if name in frame.columns and name not in taken
    }
    return {name: values for name, values in spent.items() if not np.isnan(values).all()}


def _doubts(
    law: laws.Law,
    theta: np.ndarray,
    starts: Starts,
    values: Mapping[str, np.ndarray],
    measured: np.ndarray,
    params: Mapping[str, float],
) -> tuple[str, ...]:
    low, high = solver.box(law)
    warnings = []
    for i, name in enumerate(law.names):
        side = "lower" if theta[i] <= low[i] + 1e-9 else "upper" if theta[i] >= high[i] - 1e-9 else None
        if side:
            warnings.append(f"{name} = {params[name]:.4g} is at its {side} bound: the data do not determine it")
    for name in law.linear:
        without = np.asarray(law(values, {**params, name: 0.0}))
        if law.parameter(name).log and np.max(1 - without / law(values, params)) < 1e-4:
            warnings.append(f"the term of {name} is below 1e-4 of the loss everywhere: the data do not determine it")
    if starts.share < 0.25:
        warnings.append(
            f"only {starts.reached} of {starts.count} starts reached the best minimum: it may not be global"
        )
    if len(measured) < 3 * len(law.names):
        warnings.append(f"{len(measured)} runs for {len(law.names)} parameters: expect wide intervals")
    return tuple(warnings)


def _facts(
    chosen: checks.Selection, names: Sequence[str], loss: str, values: Mapping[str, np.ndarray], measured: np.ndarray
) -> tuple[str, ...]:
    dropped = ", ".join(f"{count} where {why}" for why, count in chosen.dropped) or "none"
    ranges = [f"{name} {v.min():.3g} to {v.max():.3g}" for name, v in zip(names, values.values(), strict=True)]
    return (
        *(f"definition of {line}" for line in checks.conventions(chosen.frame, names)),
        f"loss: column {loss!r}, {measured.min():.4f} to {measured.max():.4f}",
        f"runs: {len(measured)} used of {chosen.total}; dropped: {dropped}",
        f"ranges: {'; '.join(ranges)}",
        *chosen.notes,
    )


def refuse_unconverged(fitted: Fit) -> None:
    """For results that build on a fit: a fit that has not converged is no ground to build on."""
    if fitted.status != "converged":
        raise errors.Refused(f"the fit of {fitted.law.name!r} is {fitted.status}; add runs or use a simpler law")
