"""The compute-optimal frontier by the three approaches of Hoffmann et al. 2022, arXiv 2203.15556, section 3.

1. The lower envelope of loss against compute. Only the final points of runs enter it: a point from the middle of a
   cosine is no data for a law (their section 3.1 uses curves whose schedule ends near the point).
2. A parabola in log N through the runs of each budget, and a power law through the minima.
3. The optima of a fitted law, L = E + A/N^α + B/D^β or any other of N and D, under a stated rule for the FLOPs.
"""

import dataclasses

import numpy as np
import pandas as pd

from analysis import (
    allocation,
    budgets,
    checkpoints,
    checks,
    definitions,
    envelope,
    errors,
    fitting,
    isoflop,
    lines,
    optima,
    surfaces,
)
from analysis.allocation import Allocation, Frontier, Target
from analysis.lines import Lines
from analysis.surfaces import FlopRule, Surface, flop_rule

__all__ = [
    "Allocation",
    "FlopRule",
    "Frontier",
    "Lines",
    "Surface",
    "Target",
    "flop_rule",
    "frontier",
    "of_fit",
    "through",
]


def frontier(
    frame: pd.DataFrame,
    approach: int,
    *,
    loss: str = "loss",
    params: str = "params",
    tokens: str = "tokens",
    flops: str = "flops",
    minimum: str = "parabola",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """The frontier by approach 1, 2 or 3 with its intervals.

    They come from residuals drawn again (1 and 2; by "akima", from the minima's scatter) and from resampled runs (3).

    `minimum` says by what curve approach 2 reads off a budget's best size: a "parabola" in log N, or "akima", log
    losses interpolated (Porian et al. 2024, arXiv 2406.19146). On planted laws (5 budgets over 2 decades, 7 to 15
    sizes, α/β from 0.95 to 2.3) with 0.1%, 0.3% and 1% of noise the error of the exponent had an rms of 0.001 to 0.004,
    0.004 to 0.011 and 0.015 to 0.051 by parabolas, of 0.011 to 0.034, 0.041 to 0.061 and 0.096 to 0.113 by
    interpolation; without noise N* was off by up to 17% and 3%. So the parabola is the default, and its bias is stated.

    Raises `Refused` (a ValueError) where the runs do not carry it: inverted parabolas, minima at the edge of their
    grid, fewer than three budgets or optima, or runs that no law can be fitted to.
    """
    names = {"params": params, "tokens": tokens, "flops": flops}
    if approach not in (1, 2, 3):
        raise ValueError(f"approach = {approach!r}: there are 1 (envelope), 2 (iso-FLOP) and 3 (fitted law); pass one")
    budgets.known(minimum)
    frame, statements = definitions.complete(frame, names, names)
    chosen = checks.runs(frame)
    checks.one_of_each(chosen.frame)
    mixed, _ = checks.mixture(chosen.frame, names.values())
    chosen = dataclasses.replace(
        chosen, warnings=(*chosen.warnings, *checkpoints.warn(chosen.frame, None, params, tokens), *mixed)
    )
    n, d, y = (checks.column(chosen.frame, name, "the frontier") for name in (params, tokens, loss))
    checks.separable(n, d)
    checks.falling({params: n, tokens: d}, y, loss)
    if approach == 2:
        result = isoflop.frontier(chosen, names, loss, level, resamples, seed, minimum)
    else:
        result = (envelope.frontier if approach == 1 else _parametric)(chosen, names, loss, level, resamples, seed)
    return dataclasses.replace(
        result,
        statements=(*result.statements, *statements),
        fit=result.fit and dataclasses.replace(result.fit, facts=(*result.fit.facts, *statements)),
        excluded=(*checks.left_out(chosen), *result.excluded),
    )


def through(
    optima: pd.DataFrame,
    *,
    flops: str = "flops",
    params: str = "params",
    tokens: str = "tokens",
    loss: str | None = "loss",
    params_se: str | None = None,
    tokens_se: str | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """Power laws through optima that are known: a row an optimum, with its FLOPs, N*, D* and (or None) its loss.

    `params_se` and `tokens_se` name columns of standard errors of log N* and log D*: an optimum then weighs 1/se², as
    in Porian et al. 2024, arXiv 2406.19146, whose exponents it gives. The scatter about the lines makes the intervals.
    """
    names = {"flops": flops, "params": params, "tokens": tokens, **({"loss": loss} if loss else {})}
    logs = np.full((len(optima), 4), np.nan)
    for i, name in enumerate(names.values()):
        logs[:, i] = np.log(checks.column(optima, name, "a power law through optima"))
    if len(logs) < lines.FEWEST or np.ptp(logs[:, 0]) == 0:
        raise errors.Refused(
            f"{len(logs)} optima at {len(np.unique(logs[:, 0]))} budgets: a power law with its interval needs at least "
            f"{lines.FEWEST} at several; add some"
        )
    errors_of = [params_se, tokens_se]
    se = [np.ones(len(logs)) if name is None else checks.column(optima, name, "weights") for name in errors_of]
    precision = np.stack(se, axis=-1) ** -2.0
    curve = lines.through(lines.redrawn(logs, precision, resamples, seed), precision)
    weighed = ", ".join(f"log {name} by 1/{of}²" for name, of in zip("ND", errors_of, strict=True) if of)
    how = f"straight lines in logarithms through {len(logs)} given optima, {weighed or 'all weighing the same'}"
    return Frontier(0, level, curve, allocation.minima(logs), allocation.statements(optima, names, how), (), ())


def _parametric(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> Frontier:
    frame = chosen.frame
    fit = fitting.fit("hoffmann", frame, loss=loss, params=names["params"], tokens=names["tokens"])
    return _surface(fit, frame, names, allocation.statements(frame, names, "")[1:], level, resamples, seed)


def of_fit(fit: fitting.Fit, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Frontier:
    """Approach 3 from a fit that is there already, of any law of N and D, under the FLOP rule of its own runs.

    Raises `Refused` where the law takes other inputs or gives no loss, the fit has not converged, or the law has no
    optimum, or none in more than half of the resamples.
    """
    surfaces.refuse_other_laws(fit.law)
    runs, statements = definitions.complete(fit.runs, ("params", "tokens", "flops"))
    facts = tuple(fact for fact in fit.facts if fact.startswith("definition of"))
    names = {name: name for name in ("params", "tokens", "flops")}
    return _surface(fit, runs, names, (*facts, *statements), level, resamples, seed)


def _surface(
    fit: fitting.Fit, frame: pd.DataFrame, names: dict[str, str], statements: tuple[str, ...], level: float,
    resamples: int, seed: int,
) -> Frontier:  # fmt: skip
    fitting.refuse_unconverged(fit)
    rule = flop_rule(frame, **names)
    largest = float(checks.column(frame, names["flops"], "the frontier").max())
    if fit.law.powers:
        surfaces.refuse_without_optimum(fit.law, fit.params, "approach 3")
        how: tuple[str, ...] = (f"approach 3: closed form of {fit.law.equation} under {rule}",)
    else:
        fit.law.optimum(fit.params, largest, rule)
        how = (f"approach 3: search for the least of {fit.law.equation} under {rule}", _local(fit, largest))
    boot = fit.bootstrap(resamples, seed)
    samples = {name: np.concatenate([[fit.params[name]], boot.samples[name]]) for name in fit.law.names}
    curve = Surface(fit.law, samples, rule, largest)
    frontier = Frontier(3, level, curve, allocation.EMPTY, (*how, *statements), (), (), (), fit, boot)
    warnings = (*fit.warnings, *boot.warnings, *rule.warnings, *frontier.missing(curve.exponents))
    return dataclasses.replace(frontier, warnings=warnings)


def _local(fit: fitting.Fit, flops: float) -> str:
    few, many = optima.RATIOS
    return (
        f"exponents are slopes of log N* and log D* in log C at {flops:.3g} FLOPs, the largest run's: the optima of "
        f"{fit.law.name!r} follow no power law; they are minima in N with {few:g} to {many:g} tokens per parameter"
    )
