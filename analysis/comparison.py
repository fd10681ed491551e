"""Laws side by side on the same runs: by held-out error first, then by information criteria."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

from analysis import backtests, definitions, errors, fitting, laws
from analysis.criteria import Criterion

OPTIONS = {"objective", "delta", "scale", "weights", "cluster"}  # of a fit, that all laws take


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """`table` has a row a law, the best first; `fits` and `backtests` by the law's name for those that could be made.

    Columns: `held_out` (rms log error above the origins, the mean over those that every law could be fitted below),
    `inside` (share of held-out runs inside their interval), `parameters`, `aic`, `bic`, `objective`, `rms` of the
    residuals of the whole fit, `status`, and `refused` with the reason where there is one.
    """

    table: pd.DataFrame
    fits: dict[str, fitting.Fit]
    backtests: dict[str, backtests.Backtest]

    @property
    def best(self) -> str:
        """The law with the least held-out error."""
        return str(self.table["law"].iloc[0])

    def summary(self) -> str:
        """The table as text; below it the reasons of what was refused, the columns that were made, and warnings."""
        shown = self.table[self.table["refused"] == ""]
        rows = [f"{'law':<22}{'held-out':>10}{'inside':>8}{'params':>8}{'AIC':>10}{'BIC':>10}{'rms':>9}  status"]
        for row in shown.to_dict("records"):
            rows.append(
                f"{row['law']:<22}{row['held_out']:>10.3%}{row['inside']:>8.0%}{row['parameters']:>8.0f}{row['aic']:>10.1f}"
                f"{row['bic']:>10.1f}{row['rms']:>9.4f}  {row['status']}"
            )
        refused = self.table[self.table["refused"] != ""]
        rows += [f"{row.law}: refused: {row.refused}" for row in refused.itertuples()]
        rows += self._said("made", {name: test.notes for name, test in self.backtests.items()})
        rows += self._said("warning", {name: fit.warnings for name, fit in self.fits.items()})
        return "\n".join(rows)

    def _said(self, what: str, lines: Mapping[str, Sequence[str]]) -> list[str]:
        """Each line once, with the laws that it is of unless it is of all."""
        rows = []
        for line in dict.fromkeys(line for each in lines.values() for line in each):
            named = [name for name, each in lines.items() if line in each]
            whose = f" ({', '.join(named)})" if len(named) < len(self.fits) else ""
            rows.append(f"{what}{whose}: {line}")
        return rows


def compare(
    candidates: Sequence[str | laws.Law],
    frame: pd.DataFrame,
    *,
    hold_out: str = "flops",
    origins: int = 3,
    loss: str = "loss",
    resamples: int = 200,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Every law fitted to the runs and back-tested on them, sorted by held-out error, then by BIC.

    `options` are those of `analysis.fit`; a column for an input goes to the laws that have that input. All residuals
    are taken on one scale. A law that the runs cannot carry is listed with the reason; Refused where none can be made.
    """
    forms = [laws.get(entry) for entry in candidates]
    columns = {key: value for key, value in options.items() if key in definitions.QUANTITIES}
    steps = {form.name: definitions.plan(frame, form.inputs, columns) for form in forms}
    takes = {form.name: {*form.inputs, *definitions.taken(steps[form.name])} for form in forms}
    inputs = set[str]().union(*takes.values())
    _comparable(forms, inputs | ({hold_out} & {*columns}), options)
    fits: dict[str, fitting.Fit] = {}
    tests: dict[str, backtests.Backtest] = {}
    refused: dict[str, str] = {}
    for form in forms:
        mine = {key: value for key, value in options.items() if key in OPTIONS or key in takes[form.name]}
        size = {hold_out: options[hold_out]} if hold_out in options else {}
        try:
            fitted = fitting.fit(form, frame, loss=loss, **mine)
            fitting.refuse_unconverged(fitted)
            tests[form.name] = backtests.backtest(
                form, frame, hold_out, origins=origins, loss=loss, resamples=resamples, seed=seed, **{**mine, **size}
            )
            fits[form.name] = fitted
        except errors.Refused as reason:
            refused[form.name] = str(reason)
    if not fits:
        raise errors.Refused("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return Comparison(_table(fits, tests, refused), fits, tests)


def _table(
    fits: Mapping[str, fitting.Fit], tests: Mapping[str, backtests.Backtest], refused: Mapping[str, str]
) -> pd.DataFrame:
    """A row a law, the best first, those that were refused at the end."""
    shared = set.intersection(*(set(test.usable["origin"]) for test in tests.values()))
    rows = [_row(fits[name], tests[name], shared) for name in fits]
    table = pd.DataFrame(rows).sort_values(["held_out", "bic"], kind="stable", ignore_index=True)
    if not refused:
        return table
    nothing = pd.DataFrame([{"law": name, "refused": reason} for name, reason in refused.items()])
    return pd.concat([table, nothing], ignore_index=True)


def _comparable(forms: Sequence[laws.Law], inputs: set[str], options: Mapping[str, Any]) -> None:
    """Each law once, all on one scale, and no option that is none of theirs, or ValueError."""
    if repeated := {form.name for form in forms if sum(form.name == other.name for other in forms) > 1}:
        raise ValueError(f"laws {sorted(repeated)} are named twice; name each once")
    scales = {options.get("scale") or form.scale for form in forms}
    if len(scales) != 1:
        raise errors.Refused(
            f"laws on the scales {', '.join(sorted(map(str, scales)))} have no common error; pass scale="
        )
    if "fixed" in options:
        raise ValueError("fixed: laws have no parameters in common; compare them free, or backtest one with fixed=")
    if unknown := set(options) - inputs - OPTIONS:
        raise ValueError(
            f"{sorted(unknown)} are no inputs of these laws nor common options ({', '.join(sorted(OPTIONS))})"
        )


def _row(fit: fitting.Fit, test: backtests.Backtest, shared: set[float]) -> dict[str, Any]:
    origins = test.usable[test.usable["origin"].isin(shared)]
    weight = origins["held_out"] / origins["held_out"].sum()
    parameters = len(fit.law.names) - len(fit.fixed)
    heft = fit.runs["weight"].to_numpy() if "weight" in fit.runs else np.ones(len(fit.runs))
    deviance = minus_two_log_likelihood(fit.residuals, fit.criterion, heft)
    return {
        "law": fit.law.name,
        "held_out": float(origins["rms_log_error"].mean()),
        "inside": float((weight * origins["inside"]).sum()),
        "parameters": parameters,
        "aic": deviance + 2 * (parameters + 1),
        "bic": deviance + np.log(len(fit.runs)) * (parameters + 1),
        "objective": fit.objective,
        "rms": float(np.sqrt(np.mean(fit.residuals**2))),
        "status": fit.status,
        "refused": "",
    }


def minus_two_log_likelihood(residuals: np.ndarray, criterion: Criterion, weight: np.ndarray) -> float:
    """−2 log likelihood of the densities exp(−w ρ(r)/τ) / Z(τ/w), the criterion's likelihood, at the best τ.

    Squared: normal of variance τ. Huber: Z = √(2πτ) erf(δ/√(2τ)) + (2τ/δ) exp(−δ²/(2τ)), a normal with exponential
    tails. Log-cosh: Z = δ √π Γ(s/2) / Γ((s + 1)/2) with s = δ²/τ. τ counts as a parameter in AIC and BIC.
    """
    total = float(np.sum(weight * criterion.rho(residuals)))

    def deviance(log_tau: float) -> float:
        tau = np.exp(log_tau) / weight
        if criterion.kind == "squared":
            log_z = 0.5 * np.log(2 * np.pi * tau)
        elif criterion.kind == "huber":
            edge = criterion.delta / np.sqrt(2 * tau)
            log_z = np.logaddexp(
                0.5 * np.log(2 * np.pi * tau) + np.log(scipy.special.erf(edge)),
                np.log(2 * tau / criterion.delta) - edge**2,
            )
        else:
            s = criterion.delta**2 / tau
            log_z = np.log(criterion.delta) + 0.5 * np.log(np.pi)
            log_z += scipy.special.gammaln(s / 2) - scipy.special.gammaln((s + 1) / 2)
        return float(2 * (total / np.exp(log_tau) + np.sum(log_z)))

    middle = np.log(max(2 * total / len(residuals), 1e-300))
    minimum = scipy.optimize.minimize_scalar(deviance, bounds=(middle - 20, middle + 20), method="bounded")
    return float(minimum.fun)
