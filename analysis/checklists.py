"""What a reader must know to judge a fit: its checklist, and the warnings on what its data do not determine."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.stats

from analysis import checks, solver
from analysis.diagnostics import rounded

if typing.TYPE_CHECKING:
    from analysis import fitting

FEWEST = 3  # runs a free parameter, and values of an input: two fix a slope, and nothing tells whether it holds


def checklist(fit: "fitting.Fit", intervals: str = "") -> str:
    """The checklist of Li et al. 2025, arXiv 2502.18969, one line each.

    Where `intervals` of the parameters are printed beside it, it says what they are, and no standard errors.
    """
    residuals, diagnostics = fit.residuals, fit.diagnostics
    spread = fit.criterion.transform(fit.runs["loss"].to_numpy())
    r2 = 1 - np.sum(residuals**2) / max(np.sum((spread - spread.mean()) ** 2), 1e-300)
    quantity = {"log": "log L", "log1p": "log(1 + y)", "linear": "y"}[fit.criterion.scale]
    free = [name for name in fit.params if name not in fit.fixed]
    lines = [
        f"form: {fit.law.equation}  [{fit.law.source}; {fit.law.validated}]",
        f"free parameters: {', '.join(_describe(fit, name, not intervals) for name in free)}"
        + (f" ({intervals})" if intervals else ""),
        *([f"fixed: {', '.join(f'{k} = {v:.6g}' for k, v in fit.fixed.items())}"] if fit.fixed else []),
        *fit.facts,
        f"checkpoints: {fit.clusters} runs, several rows each, resampled by run"
        if fit.clusters
        else "checkpoints: every row taken as a run of its own (no cluster column given)",
        f"objective: {fit.criterion}{', weighted' if 'weight' in fit.runs else ''}; at the minimum "
        f"{fit.objective:.10g}",
        "optimizer: variable projection on a grid of starts, then projected Newton, float64, exact derivatives",
        f"starts: {fit.starts.reached} of {fit.starts.count} refined starts reached the best minimum",
        f"status: {fit.status}; largest gradient {fit.starts.gradient:.2g} of the objective, condition number "
        f"{diagnostics.condition:.3g}",
        f"goodness of fit: rms residual of {quantity} {np.sqrt(np.mean(residuals**2)):.3g}, largest "
        f"{np.abs(residuals).max():.3g}, R² {r2:.5f}",
        *(f"warning: {warning}" for warning in fit.warnings),
    ]
    return "\n".join(lines)


def _describe(fit: "fitting.Fit", name: str, with_error: bool) -> str:
    """A parameter to the digits that the data support, or that they do not determine it."""
    diagnostics = fit.diagnostics
    value, error = fit.params[name], diagnostics.standard_error[name]
    if fit.law.parameter(name).log:
        error *= abs(value)
    if any(name in group for group in diagnostics.undetermined):
        return f"{name} not determined (about {value:.1g})"
    return f"{name} = {rounded(value, error)}" + (f" ± {error:.2g}" if error > 0 and with_error else "")


def doubts(fit: "fitting.Fit", theta: np.ndarray) -> tuple[str, ...]:
    """Warnings on what the data do not determine; `theta` are the parameters in the search's coordinates."""
    return (
        *_at_bounds(fit, theta),
        *_vanishing(fit),
        *_weak(fit),
        *_undetermined(fit),
        *_other_minima(fit),
        *_few_starts(fit),
        *_few_runs(fit),
    )


def unidentified(fit: "fitting.Fit") -> tuple[str, ...]:
    """Why the runs do not identify the fit's parameters, so that what it errs by elsewhere says nothing of the law."""
    free = len(fit.law.names) - len(fit.fixed)
    values = {name: len(np.unique(np.round(np.log(np.abs(fit.runs[name])), 2))) for name in fit.law.inputs}
    few = [f"{count} values of {name}" for name, count in values.items() if count < FEWEST]
    runs = (f"{len(fit.runs)} runs for {free} parameters",) if len(fit.runs) < FEWEST * free else ()
    theta = solver.coordinates(fit.law, fit.params)[0]
    return (*few, *runs, *_at_bounds(fit, theta), *_undetermined(fit), *_other_minima(fit))


def _at_bounds(fit: "fitting.Fit", theta: np.ndarray) -> Iterator[str]:
    low, high = solver.box(fit.law, fit.fixed)
    for i, name in enumerate(fit.law.names):
        side = "lower" if theta[i] <= low[i] + 1e-9 else "upper" if theta[i] >= high[i] - 1e-9 else None
        if side and name not in fit.fixed:
            yield f"{name} = {fit.params[name]:.4g} is at its {side} bound: the data do not determine it"


def _vanishing(fit: "fitting.Fit") -> Iterator[str]:
    """Terms without which the law is the same on these runs."""
    for name in fit.law.linear:
        if not fit.law.parameter(name).log or name in fit.fixed:
            continue
        without = dataclasses.replace(fit, params={**fit.params, name: 0.0}).fitted
        if np.max(np.abs(1 - without / fit.fitted)) < 1e-4:
            yield f"the term of {name} is below 1e-4 of the loss everywhere: the data do not determine it"


def _weak(fit: "fitting.Fit") -> Iterator[str]:
    """Exponents known within a factor of two at best, and not said to be undetermined."""
    vague = {name for group in fit.diagnostics.undetermined for name in group}
    for name in fit.diagnostics.free:
        factor = np.exp(min(1.96 * fit.diagnostics.standard_error[name], 690.0))
        if fit.law.parameter(name).log and name not in (*fit.law.linear, *vague) and factor > 2:
            yield f"{name} is weakly identified: its standard error leaves more than a factor of 2 either way"


def _undetermined(fit: "fitting.Fit") -> Iterator[str]:
    for group in fit.diagnostics.undetermined:
        if len(group) > 1:
            yield f"the data do not tell {' and '.join(group)} apart: they can move together by more than a factor e"
        else:
            yield f"the data do not determine {group[0]}: its standard error is above 100%"


def _other_minima(fit: "fitting.Fit") -> Iterator[str]:
    """Minima that an F test at 95% does not tell from the best one."""
    diagnostics = fit.diagnostics
    quantile = scipy.stats.f.ppf(0.95, 1, max(len(fit.runs) - len(diagnostics.free), 1))
    for value, params in fit.starts.others:
        if 2 * (value - fit.objective) < quantile * diagnostics.stiffness * diagnostics.variance:
            where = ", ".join(f"{name} = {params[name]:.4g}" for name in params if name not in fit.fixed)
            yield (
                f"poorly identified: another minimum, its objective {value / fit.objective - 1:.2%} higher, lies at "
                f"{where}; the data do not tell the two apart at 95%"
            )


def _few_starts(fit: "fitting.Fit") -> Iterator[str]:
    if fit.starts.share < 0.25 and fit.starts.count > 1:
        yield f"only {fit.starts.reached} of {fit.starts.count} starts reached the best minimum: it may not be global"


def _few_runs(fit: "fitting.Fit") -> Iterator[str]:
    free = len(fit.law.names) - len(fit.fixed)
    if 0 < fit.clusters <= 2 * free:
        yield f"{fit.clusters} clusters for {free} parameters: intervals between so few runs are rough"
    if len(fit.runs) < FEWEST * free:
        yield f"{len(fit.runs)} runs for {free} parameters: expect wide intervals"


def facts(
    chosen: checks.Selection, names: Sequence[str], loss: str, values: Mapping[str, np.ndarray], measured: np.ndarray
) -> tuple[str, ...]:
    """What the checklist says of the data: definitions, the loss, runs used and dropped, ranges, notes."""
    dropped = ", ".join(f"{count} where {why}" for why, count in chosen.dropped) or "none"
    ranges = [f"{name} {v.min():.3g} to {v.max():.3g}" for name, v in zip(names, values.values(), strict=True)]
    return (
        *(f"definition of {line}" for line in checks.conventions(chosen.frame, names)),
        f"loss: column {loss!r}, {measured.min():.4f} to {measured.max():.4f}",
        f"runs: {len(measured)} used of {chosen.total}; dropped: {dropped}",
        f"ranges: {'; '.join(ranges)}",
        *chosen.notes,
    )
