"""Approach 2: the best size of each budget by a curve through its runs, and power laws through these minima.

Hoffmann et al. 2022, arXiv 2203.15556, section 3.2.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from analysis import (
    allocation,
    biases,
    budgets,
    checks,
    errors,
    fitting,
    lines,
    outliers,
    redrawing,
    surfaces,
)
from analysis.lines import Lines

_DRAWN = {"parabola": "least-squares parabolas in log N", "akima": "Akima's interpolation of log loss in log N"}
_VARIED = {
    "parabola": "residuals of the parabolas, drawn again",
    "akima": "the scatter of the minima about the line (Student's t)",
}
_COLUMNS = ["minimum", "budgets", "exponent_params", "exponent_tokens", "difference", "bias_exponent", "bias_params"]

Minima = tuple[budgets.Minimum, ...]


def frontier(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int, kind: str
) -> allocation.Frontier:
    """The frontier through the minima of the budgets, read off by curves of this `kind` (see `budgets.KINDS`).

    Raises `Refused` where fewer than three budgets have a minimum that counts.
    """
    cuts, unequal, apart = budgets.slices(chosen.frame, names["params"], names["tokens"], names["flops"], loss)
    curves = {each: tuple(budgets.optimum(cut, each) for cut in cuts) for each in budgets.KINDS}
    minima, good = curves[kind], _counting(cuts, curves[kind])
    total = len(minima) + len(unequal)
    excluded = (
        *(f"budget {p.budget:.3g}: {p.refused}" for p in minima if p.refused),
        *unequal,
        *(f"approach 2: {reason}" for reason in apart),
    )
    if len(good) < lines.FEWEST:
        why = "; ".join(excluded) if total else "No two runs share a budget"
        raise errors.Refused(
            f"approach 2: {len(good)} of {total} budgets have a minimum that counts; it needs "
            f"{lines.FEWEST}. {why}. Run sizes on both sides of the best one at each "
            "budget, or label the grid by a column flops_budget"
        )
    optima = _optima(good, kind, resamples, seed)
    line = lines.through(optima)
    methods, bias, statements = _methods(cuts, curves, kind, _law(chosen.frame, names, loss))
    how = (
        f"approach 2: {_DRAWN[kind]} through {len(good)} of {total} budgets, a straight line in logarithms through "
        f"their minima; {allocation.LOSS_LINE}; intervals from {_VARIED[kind]}"
    )
    return allocation.Frontier(
        approach=2,
        level=level,
        curve=line,
        minima=allocation.minima(optima[0]),
        statements=(*allocation.statements(chosen.frame, names, how), *statements),
        excluded=excluded,
        warnings=(
            *chosen.warnings,
            *outliers.of_budgets(chosen.frame, names, loss, cuts),
            *_doubts(minima),
            *_lost(line),
            *_biased(bias),
        ),
        parabolas=minima,
        minimum=kind,
        methods=methods,
        bias=bias,
    )


def _counting(cuts: Sequence[budgets.Slice], minima: Minima) -> list[budgets.Slice]:
    """The slices whose minimum counts."""
    return [cut for cut, p in zip(cuts, minima, strict=True) if not p.refused]


def _least(cuts: Sequence[budgets.Slice], kind: str) -> Float[np.ndarray, "1 budgets 4"]:
    """The logarithms of each slice's minimum."""
    return np.stack([cut.logs(*budgets.least(cut, kind)) for cut in cuts], axis=1)


def _optima(
    good: Sequence[budgets.Slice], kind: str, resamples: int, seed: int
) -> Float[np.ndarray, "samples budgets 4"]:
    """The minima, the estimate first and the resamples after it."""
    estimate = _least(good, kind)
    if kind != "parabola":  # a curve through every point: without some it is another curve, not another draw of it
        return lines.redrawn(estimate[0], None, resamples, seed)
    fitted = [(budgets.parabolas(cut.u, cut.loss[None]) @ np.vander(cut.u, 3, increasing=True).T)[0] for cut in good]
    left = [redrawing.residuals(cut.loss, curve) for cut, curve in zip(good, fitted, strict=True)]
    drawn = redrawing.redrawn(fitted, left, sum(len(part) - 3 for part in left), resamples, seed)
    again = [cut.logs(*budgets.least_of(cut, losses)) for cut, losses in zip(good, drawn, strict=True)]
    return np.concatenate([estimate, _as_scattered(estimate, np.stack(again, axis=1))])


def _as_scattered(
    estimate: Float[np.ndarray, "1 budgets 4"], drawn: Float[np.ndarray, "resamples budgets 4"]
) -> Float[np.ndarray, "resamples budgets 4"]:
    """The drawn minima, spread further where the estimates scatter about their line beyond what the draws explain.

    A χ² of the minima's log N about the line above its 95% quantile has a cause that no residual shows, such as
    learning rates that suit some budgets better; all deviations are then widened by √(χ²/(m − 2)).
    """
    variance = np.nanvar(drawn[:, :, 1], axis=0)
    if (variance <= 0).any() or np.isnan(variance).any():
        return drawn
    precision = np.repeat(1 / variance[:, None], 2, axis=1)
    line = lines.through(estimate, precision)
    away = estimate[0, :, 1] - line.intercept[0, 0] - line.slope[0, 0] * estimate[0, :, 0]
    freedom = len(away) - 2
    chi2 = float(np.sum(away**2 / variance))
    if chi2 <= stats.chi2.ppf(0.95, freedom):
        return drawn
    return estimate + np.sqrt(chi2 / freedom) * (drawn - estimate)


def _doubts(minima: Minima) -> tuple[str, ...]:
    """What is doubtful of the minima that count, each doubt once with its budgets."""
    doubts = [(p.warning, f"{p.budget:.3g}") for p in minima if p.warning and not p.refused]
    return tuple(
        f"{doubt} (budgets {', '.join(budget for same, budget in doubts if same == doubt)})"
        for doubt in dict.fromkeys(doubt for doubt, _ in doubts)
    )


def _lost(line: Lines) -> tuple[str, ...]:
    lost = float(np.isnan(line.slope[1:, 0]).mean())
    if lost <= 0.1:
        return ()
    return (f"{lost:.0%} of resamples kept fewer than {lines.FEWEST} budgets with a minimum and were left out",)


def _biased(bias: biases.Bias | None) -> tuple[str, ...]:
    return (f"bias: {bias}",) if bias is not None and bias.notable else ()


def _law(frame: pd.DataFrame, names: dict[str, str], loss: str) -> fitting.Fit | errors.Refused:
    """The law by which the bias is judged, or the reason why there is none."""
    try:
        fit = fitting.fit("hoffmann", frame, loss=loss, params=names["params"], tokens=names["tokens"])
        fitting.refuse_unconverged(fit)
        surfaces.refuse_without_optimum(fit.law, fit.params, "the bias of approach 2")
    except errors.Refused as reason:
        return reason
    return fit


def _methods(
    cuts: Sequence[budgets.Slice], curves: Mapping[str, Minima], used: str, law: fitting.Fit | errors.Refused
) -> tuple[pd.DataFrame, biases.Bias | None, tuple[str, ...]]:
    """Approach 2 by each kind of curve: exponents, their difference to those used, and the bias on this grid."""
    rows: list[tuple[str, int, float, float, float, float, float]] = []
    statements: list[str] = []
    chosen = None
    for kind in sorted(curves, key=lambda kind: kind != used):
        good = _counting(cuts, curves[kind])
        if len(good) < lines.FEWEST:
            rows.append((kind, len(good), np.nan, np.nan, np.nan, np.nan, np.nan))
            statements.append(f"by {biases.CALLED[kind]}: {len(good)} budgets have a minimum that counts")
            continue
        a, b = lines.through(_least(good, kind)).slope[0]
        difference = float(a) - rows[0][2] if rows else 0.0
        bias = biases.bias(good, kind, law.params) if isinstance(law, fitting.Fit) else None
        off = (bias.exponent_params, bias.params) if bias else (np.nan, np.nan)
        rows.append((kind, len(good), float(a), float(b), difference, *off))
        chosen = bias if kind == used else chosen
        beside = "" if kind == used else f", {difference:+.4f} from that used"
        statements.append(f"by {biases.CALLED[kind]}: a = {a:.4f}{beside}; {bias or _unknown(law)}")
    return pd.DataFrame(rows, columns=_COLUMNS), chosen, tuple(statements)


def _unknown(law: fitting.Fit | errors.Refused) -> str:
    why = law if isinstance(law, errors.Refused) else "the fitted law's own losses have no minima on this grid"
    return f"bias unknown: {why}"
