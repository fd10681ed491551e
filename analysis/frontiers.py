"""The compute-optimal frontier by the three approaches of Hoffmann et al. 2022, arXiv 2203.15556, section 3.

1. The lower envelope of loss against compute. Only the final points of runs enter it: a point from the middle of a
   cosine is no data for a law (their section 3.1 uses curves whose schedule ends near the point).
2. A parabola in log N through the runs of each budget, and a power law through the minima.
3. The closed form of the fitted law L = E + A/N^α + B/D^β under a stated rule for the FLOPs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import biases, budgets, checks, errors, fitting, lines, uncertainty
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

BIN = np.log(10.0) / 4  # envelope of unlabelled runs: the best run of each quarter of a decade of FLOPs
EMPTY = pd.DataFrame(columns=["flops", *lines.QUANTITIES], dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The model and the data that a budget should buy, and the loss that they should reach.

    `flops` pays for training and for `inference_tokens` of inference; `training_flops` is the part of training.
    """

    flops: float
    params: uncertainty.Estimate
    tokens: uncertainty.Estimate
    loss: uncertainty.Estimate
    training_flops: uncertainty.Estimate
    inference_tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class Target:
    """The least FLOPs, of training and of `inference_tokens` of inference together, that reach a loss.

    `reachable` is the share of resamples whose law reaches it at all; where the others are in a tail of the interval,
    its end is infinite.
    """

    loss: float
    flops: uncertainty.Estimate
    params: uncertainty.Estimate
    tokens: uncertainty.Estimate
    reachable: float
    inference_tokens: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Frontier:
    """Compute-optimal N*(C) ∝ C^exponent_params and D*(C) ∝ C^exponent_tokens by one approach.

    `approach` is 1, 2 or 3, and 0 where the optima were given (`through`). `minima` has a row an optimum that the
    power laws go through (empty for approach 3), `statements` say how it was made and under which conventions,
    `excluded` what was left out and why. Approach 2 has the curves of its budgets, `parabolas`, of the kind `minimum`;
    `methods`, a row a kind of curve: its exponents and their difference to the ones used, and its bias on this grid;
    and the `bias` of the kind that was used.
    """

    approach: int
    level: float
    curve: Lines | Surface
    minima: pd.DataFrame
    statements: tuple[str, ...]
    excluded: tuple[str, ...]
    warnings: tuple[str, ...]
    parabolas: tuple[budgets.Minimum, ...] = ()
    fit: fitting.Fit | None = None
    bootstrap: uncertainty.Bootstrap | None = None
    minimum: str = ""
    methods: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    bias: biases.Bias | None = None

    def _estimate(self, samples: Float[np.ndarray, " samples"]) -> uncertainty.Estimate:
        if np.isnan(samples[0]):  # the loss where the optima came without
            return uncertainty.Estimate(np.nan, (np.nan, np.nan), self.level)
        resampled = uncertainty.unbiased(samples[1:], samples[0]) if self.approach == 3 else samples[1:]
        return uncertainty.estimate(samples[0], resampled, self.level)

    @property
    def exponent_params(self) -> uncertainty.Estimate:
        return self._estimate(self.curve.exponents[:, 0])

    @property
    def exponent_tokens(self) -> uncertainty.Estimate:
        return self._estimate(self.curve.exponents[:, 1])

    def allocate(self, flops: float, inference_tokens: float = 0.0) -> Allocation:
        """N*, D* and L* at a budget, each with its interval.

        The budget pays for training and, a forward pass a token, for `inference_tokens` of inference (6ND + 2NT;
        Sardana et al. 2024, arXiv 2401.00448): models get smaller and see more data. That needs the law itself:
        approaches 1 and 2 refuse it. ValueError unless the budget is positive and finite.
        """
        if not 0 < flops < np.inf:
            raise ValueError(f"flops = {flops}: must be positive and finite; pass a budget in FLOPs such as 1e21")
        _served(inference_tokens)
        if inference_tokens:
            surface = self._surface("allocation with inference")
            samples = surface.at(flops, inference_tokens)
            spent = surface.rule.flops(samples[:, 0], samples[:, 1])
        else:
            samples, spent = self.curve.at(flops), np.full(len(self.curve.exponents), float(flops))
        n, d, loss, training = (self._estimate(v) for v in (*samples.T, spent))
        return Allocation(float(flops), n, d, loss, training, float(inference_tokens))

    def reach(self, loss: float, inference_tokens: float = 0.0) -> Target:
        """The least FLOPs that reach a loss (nats per token), inference included, with N* and D*; approach 3 only.

        `Refused` where the fitted law never reaches it.
        """
        _served(inference_tokens)
        curve = self._surface("the cost of reaching a loss")
        if not (least := float(curve.params["E"][0])) < loss < np.inf:
            raise errors.Refused(
                f"loss = {loss}: the fitted law reaches no loss at or below E = {least:.4g}; pass a higher one"
            )
        samples = curve.reach(loss, inference_tokens)
        tail = (1 - self.level) / 2
        ends = np.quantile(samples[1:], [tail, 1 - tail], axis=0, method="inverted_cdf")  # takes infinite ones
        flops, n, d = (
            uncertainty.Estimate(float(samples[0, i]), (float(ends[0, i]), float(ends[1, i])), self.level)
            for i in range(3)
        )
        reachable = float(np.isfinite(samples[1:, 0]).mean())
        return Target(float(loss), flops, n, d, reachable, float(inference_tokens))

    def _surface(self, what: str) -> Surface:
        if not isinstance(self.curve, Surface):
            raise errors.Refused(
                f"{what}: {f'approach {self.approach}' if self.approach else 'a line through optima'} knows only what "
                "training alone should buy, and it needs the loss elsewhere; use frontier(frame, 3)"
            )
        return self.curve


def _served(tokens: float) -> None:
    if not 0 <= tokens < np.inf:
        raise ValueError(f"inference_tokens = {tokens}: must be finite and at least 0, in tokens")


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
    """The frontier by approach 1, 2 or 3, with intervals from resampled runs (by "akima", from the minima's scatter).

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
    with_flops, note = budgets.costed(frame, params, tokens, flops)
    chosen = checks.runs(with_flops)
    checks.one_of_each(chosen.frame)
    mixed, _ = checks.mixture(chosen.frame)
    chosen = dataclasses.replace(chosen, warnings=(*chosen.warnings, *mixed))
    checks.separable(*(checks.column(chosen.frame, name, "the frontier") for name in (params, tokens)))
    if approach == 2:
        made = _isoflop(chosen, names, loss, level, resamples, seed, minimum)
    else:
        made = (_envelope if approach == 1 else _parametric)(chosen, names, loss, level, resamples, seed)
    return dataclasses.replace(made, statements=(*made.statements, note)) if note else made


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
    return Frontier(0, level, curve, _table(logs), _statements(optima, names, how), (), ())


def _table(optima: Float[np.ndarray, "optima 4"]) -> pd.DataFrame:
    there = ~np.isnan(optima[:, :3]).any(axis=1)
    return pd.DataFrame(np.exp(optima[there]), columns=["flops", *lines.QUANTITIES])


def _statements(frame: pd.DataFrame, names: dict[str, str], how: str) -> tuple[str, ...]:
    return how, *checks.conventions(frame, list(names.values()))


_LOSS = "L* = E + A/C^α through the same optima"


def _envelope(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> Frontier:
    frame = chosen.frame
    table = pd.DataFrame({key: checks.column(frame, name, "the envelope") for key, name in names.items()})
    table["loss"] = checks.column(frame, loss, "the envelope")
    labelled = budgets.labelled(frame)
    low = np.log(table["flops"]).min()
    table["bin"] = checks.numbers(frame, "flops_budget") if labelled else ((np.log(table["flops"]) - low) // BIN)
    table = table.groupby(["bin", "params", "tokens"], as_index=False).mean()  # seeds of one configuration are one
    logs = np.log(table[["flops", *lines.QUANTITIES]].to_numpy())
    drawn = np.concatenate([np.ones((1, len(table))), uncertainty.counts(len(table), resamples, seed)])
    sizes = table.groupby("bin")["params"].nunique()
    if not len(contested := sizes.index[sizes > 1].to_numpy()):
        raise errors.Refused("approach 1: no two sizes share a budget, so none can be the best; run sizes side by side")
    best = []
    for value in contested:
        mine = np.flatnonzero(table["bin"] == value)
        losses = np.where(drawn[:, mine] > 0, logs[mine, 3], np.inf)
        first = losses.argmin(axis=1)
        best.append(np.where(np.isinf(losses.min(axis=1))[:, None], np.nan, logs[mine][first]))
    optima = np.stack(best, axis=1)
    before = np.fmin.accumulate(optima[:, :, 3], axis=1)
    behind = np.concatenate([np.zeros((len(optima), 1), bool), optima[:, 1:, 3] >= before[:, :-1]], axis=1)
    optima[behind] = np.nan
    found = _table(optima[0])
    if len(found) < lines.FEWEST or found["params"].nunique() < 2:
        raise errors.Refused(
            f"approach 1: the envelope has {len(found)} points of {found['params'].nunique()} sizes; it needs "
            f"{lines.FEWEST} points of 2 sizes; run more budgets"
        )
    groups = "budget" if labelled else "quarter of a decade of FLOPs"
    how = f"approach 1: the best final loss of each {groups}, where no cheaper run is better; {_LOSS}"
    worse = int(behind[0].sum())
    excluded: tuple[str, ...] = (
        (f"approach 1: {worse} budgets whose best run is no better than a cheaper one",) if worse else ()
    )
    if alone := len(sizes) - len(contested):
        excluded += (f"approach 1: {alone} budgets with one size only",)
    excluded += tuple(f"approach 1: {told}" for told in budgets.unlabelled(frame))
    return Frontier(1, level, lines.through(optima), found, _statements(frame, names, how), excluded, chosen.warnings)


def _isoflop(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int, kind: str
) -> Frontier:
    cuts, unequal, apart = budgets.slices(chosen.frame, names["params"], names["tokens"], names["flops"], loss)
    curves = {each: tuple(budgets.optimum(cut, each) for cut in cuts) for each in budgets.KINDS}
    found = curves[kind]
    total = len(found) + len(unequal)
    excluded = (*(f"budget {p.budget:.3g}: {p.refused}" for p in found if p.refused), *unequal)
    excluded += tuple(f"approach 2: {told}" for told in apart)
    doubts = [(p.warning, f"{p.budget:.3g}") for p in found if p.warning and not p.refused]
    warnings = tuple(
        f"{told} (budgets {', '.join(budget for same, budget in doubts if same == told)})"
        for told in dict.fromkeys(told for told, _ in doubts)
    )
    good = [cut for cut, p in zip(cuts, found, strict=True) if not p.refused]
    if len(good) < lines.FEWEST:
        why = "; ".join(excluded) if total else "No two runs share a budget"
        raise errors.Refused(
            f"approach 2: {len(good)} of {total} budgets have a minimum that counts; it needs "
            f"{lines.FEWEST}. {why}. Run sizes on both sides of the best one at each "
            "budget, or label the grid by a column flops_budget"
        )
    estimate = np.stack([cut.logs(*budgets.least(cut, kind)) for cut in good], axis=1)
    if kind == "parabola":
        drawn = [uncertainty.counts(len(cut.u), resamples, seed + i) for i, cut in enumerate(good)]
        again = [cut.logs(*budgets.resampled(cut, weights)) for cut, weights in zip(good, drawn, strict=True)]
        optima = np.concatenate([estimate, np.stack(again, axis=1)])
    else:  # a curve through every point: without some of them it is another curve, not another draw of this one
        optima = lines.redrawn(estimate[0], None, resamples, seed)
    line = lines.through(optima)
    lost = float(np.isnan(line.slope[1:, 0]).mean())
    if lost > 0.1:
        warnings += (
            f"{lost:.0%} of resamples kept fewer than {lines.FEWEST} budgets with a minimum and were left out",
        )
    law = _law(chosen.frame, names, loss)
    methods, bias, told = _methods(cuts, curves, kind, law)
    if bias is not None and bias.notable:
        warnings += (f"bias: {bias}",)
    how = (
        f"approach 2: {_DRAWN[kind]} through {len(good)} of {total} budgets, a straight "
        f"line in logarithms through their minima; {_LOSS}; intervals from {_VARIED[kind]}"
    )
    return Frontier(
        2, level, line, _table(optima[0]), (*_statements(chosen.frame, names, how), *told), excluded,
        chosen.warnings + warnings, found, minimum=kind, methods=methods, bias=bias,
    )  # fmt: skip


_DRAWN = {"parabola": "least-squares parabolas in log N", "akima": "Akima's interpolation of log loss in log N"}
_VARIED = {"parabola": "resampled runs", "akima": "the scatter of the minima about the line (Student's t)"}


def _law(frame: pd.DataFrame, names: dict[str, str], loss: str) -> fitting.Fit | errors.Refused:
    """The law by which approach 2's bias is judged, or the reason why there is none."""
    try:
        fit = fitting.fit("hoffmann", frame, loss=loss, params=names["params"], tokens=names["tokens"])
        fitting.refuse_unconverged(fit)
        _curved(fit, "the bias of approach 2")
    except errors.Refused as reason:
        return reason
    return fit


def _curved(fit: fitting.Fit, what: str) -> None:
    for name in ("A", "B", "alpha", "beta"):
        if fit.params[name] <= 0:
            raise errors.Refused(f"{what}: the fitted {name} is 0, so the law has no optimum in N; add runs")


def _methods(
    cuts: Sequence[budgets.Slice], curves: dict[str, tuple[budgets.Minimum, ...]], used: str,
    law: fitting.Fit | errors.Refused,
) -> tuple[pd.DataFrame, biases.Bias | None, tuple[str, ...]]:  # fmt: skip
    """Approach 2 by each kind of curve: exponents, their difference to those used, and the bias on this grid."""
    rows: list[tuple[str, int, float, float, float, float, float]] = []
    told, chosen = [], None
    for kind, found in sorted(curves.items(), key=lambda item: item[0] != used):
        good = [cut for cut, p in zip(cuts, found, strict=True) if not p.refused]
        if len(good) < lines.FEWEST:
            rows.append((kind, len(good), np.nan, np.nan, np.nan, np.nan, np.nan))
            told.append(f"by {biases.CALLED[kind]}: {len(good)} budgets have a minimum that counts")
            continue
        optima = np.stack([cut.logs(*budgets.least(cut, kind)) for cut in good], axis=1)
        a, b = lines.through(optima).slope[0]
        bias = biases.bias(good, kind, law.params) if isinstance(law, fitting.Fit) else None
        off = (bias.exponent_params, bias.params) if bias else (np.nan, np.nan)
        rows.append((kind, len(good), float(a), float(b), float(a) - rows[0][2] if rows else 0.0, *off))
        chosen = bias if kind == used else chosen
        beside = "" if kind == used else f", {rows[-1][4]:+.4f} from that used"
        unknown = law if isinstance(law, errors.Refused) else "the fitted law's own losses have no minima on this grid"
        told.append(f"by {biases.CALLED[kind]}: a = {a:.4f}{beside}; {bias or f'bias unknown: {unknown}'}")
    columns = ["minimum", "budgets", "exponent_params", "exponent_tokens", "difference", "bias_exponent", "bias_params"]
    return pd.DataFrame(rows, columns=columns), chosen, tuple(told)


def _parametric(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> Frontier:
    frame = chosen.frame
    fit = fitting.fit("hoffmann", frame, loss=loss, params=names["params"], tokens=names["tokens"])
    rule = flop_rule(frame, **names)
    return _surface(fit, rule, _statements(frame, names, ""), level, resamples, seed)


def of_fit(fit: fitting.Fit, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Frontier:
    """Approach 3 from a fit of the law "hoffmann" that is there already, under the FLOP rule of its own runs.

    Raises `Refused` where the fit is of another law, has not converged, or has no optimum.
    """
    if fit.law.name != "hoffmann":
        raise errors.Refused(f'a frontier needs the law "hoffmann", not {fit.law.name!r}; fit that one')
    runs, note = budgets.costed(fit.runs, "params", "tokens", "flops")
    rule = flop_rule(runs, "params", "tokens", "flops")
    told = tuple(fact for fact in fit.facts if fact.startswith("definition of"))
    return _surface(fit, rule, ("", *told, *([note] if note else [])), level, resamples, seed)


def _surface(
    fit: fitting.Fit, rule: FlopRule, statements: tuple[str, ...], level: float, resamples: int, seed: int
) -> Frontier:
    fitting.refuse_unconverged(fit)
    _curved(fit, "approach 3")
    boot = fit.bootstrap(resamples, seed)
    samples = {name: np.concatenate([[fit.params[name]], boot.samples[name]]) for name in fit.law.names}
    how = f"approach 3: closed form of {fit.law.equation} under {rule}"
    return Frontier(3, level, Surface(samples, rule), EMPTY, (how, *statements[1:]), (), fit.warnings, (), fit, boot)
