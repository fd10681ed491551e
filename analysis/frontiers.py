"""The compute-optimal frontier by the three approaches of Hoffmann et al. 2022, arXiv 2203.15556, section 3.

1. The lower envelope of loss against compute. Only the final points of runs enter it: a point from the middle of a
   cosine is no data for a law (their section 3.1 uses curves whose schedule ends near the point).
2. A parabola in log N through the runs of each budget, and a power law through the minima.
3. The closed form of the fitted law L = E + A/N^α + B/D^β under a stated rule for the FLOPs.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import budgets, checks, errors, fitting, uncertainty

FEWEST_BUDGETS = 3
BIN = np.log(10.0) / 4  # envelope of unlabelled runs: the best run of each quarter of a decade of FLOPs
QUANTITIES = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True)
class FlopRule:
    """C = k · N^κ · D: what N parameters and D tokens cost."""

    k: float
    kappa: float
    source: str

    def __str__(self) -> str:
        exponent = "" if self.kappa == 1 else f"^{self.kappa:.4f}"
        return f"C = {self.k:.4g} · N{exponent} · D ({self.source})"


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """Power laws N* and D*, log y = intercept + slope · log C, and L* = E + A · (C/middle)^(-α) through optima.

    The estimate comes first and the resamples after it.
    """

    intercept: Float[np.ndarray, "samples 2"]
    slope: Float[np.ndarray, "samples 2"]
    loss: Float[np.ndarray, "samples 3"]
    middle: float

    def at(self, flops: float) -> Float[np.ndarray, "samples 3"]:
        E, A, alpha = self.loss.T
        bought = np.exp(self.intercept + self.slope * np.log(flops))
        return np.column_stack([bought, E + A * (flops / self.middle) ** -alpha])

    @property
    def exponents(self) -> Float[np.ndarray, "samples 2"]:
        return self.slope


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """Minima of E + A/N^α + B/D^β under C = k N^κ D, estimate first and resamples after it."""

    params: dict[str, Float[np.ndarray, " samples"]]
    rule: FlopRule

    def at(self, flops: float) -> Float[np.ndarray, "samples 3"]:
        """N* = (αA/(κβB))^(1/(α+κβ)) · (C/k)^(β/(α+κβ)), D* = (C/k) / N*^κ, and the law's loss there."""
        E, A, B, alpha, beta = (self.params[name] for name in ("E", "A", "B", "alpha", "beta"))
        kappa, cost = self.rule.kappa, np.log(flops / self.rule.k)
        log_n = (np.log(alpha * A / (kappa * beta * B)) + beta * cost) / (alpha + kappa * beta)
        log_d = cost - kappa * log_n
        loss = E + A * np.exp(-alpha * log_n) + B * np.exp(-beta * log_d)
        return np.stack([np.exp(log_n), np.exp(log_d), loss], axis=-1)

    @property
    def exponents(self) -> Float[np.ndarray, "samples 2"]:
        alpha, beta = self.params["alpha"], self.params["beta"]
        return np.stack([beta, alpha], axis=-1) / (alpha + self.rule.kappa * beta)[:, None]


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The model and the data that a budget should buy, and the loss that they should reach."""

    flops: float
    params: uncertainty.Estimate
    tokens: uncertainty.Estimate
    loss: uncertainty.Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Frontier:
    """Compute-optimal N*(C) ∝ C^exponent_params and D*(C) ∝ C^exponent_tokens by one approach.

    `minima` has a row an optimum that the power laws go through (empty for approach 3), `statements` say how it was
    made and under which conventions, `excluded` what was left out and why.
    """

    approach: int
    level: float
    curve: Lines | Surface
    minima: pd.DataFrame
    statements: tuple[str, ...]
    excluded: tuple[str, ...]
    warnings: tuple[str, ...]
    parabolas: tuple[budgets.Parabola, ...] = ()
    fit: fitting.Fit | None = None
    bootstrap: uncertainty.Bootstrap | None = None

    def _estimate(self, samples: Float[np.ndarray, " samples"]) -> uncertainty.Estimate:
        return uncertainty.estimate(samples[0], samples[1:], self.level)

    @property
    def exponent_params(self) -> uncertainty.Estimate:
        return self._estimate(self.curve.exponents[:, 0])

    @property
    def exponent_tokens(self) -> uncertainty.Estimate:
        return self._estimate(self.curve.exponents[:, 1])

    def allocate(self, flops: float) -> Allocation:
        """N*, D* and L* at a budget, each with its interval; ValueError unless the budget is positive and finite."""
        if not 0 < flops < np.inf:
            raise ValueError(f"flops = {flops}: must be positive and finite; pass a budget in FLOPs such as 1e21")
        samples = self.curve.at(flops)
        return Allocation(float(flops), *(self._estimate(samples[:, i]) for i in range(3)))


def frontier(
    frame: pd.DataFrame,
    approach: int,
    *,
    loss: str = "loss",
    params: str = "params",
    tokens: str = "tokens",
    flops: str = "flops",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """The frontier by approach 1, 2 or 3, with intervals from resampled runs.

    Raises `Refused` (a ValueError) where the runs do not carry it: inverted parabolas, minima at the edge of their
    grid, fewer than three budgets or optima, or runs that no law can be fitted to.
    """
    names = {"params": params, "tokens": tokens, "flops": flops}
    if approach not in _APPROACHES:
        raise ValueError(f"approach = {approach!r}: there are 1 (envelope), 2 (iso-FLOP) and 3 (fitted law); pass one")
    with_flops, note = budgets.costed(frame, params, tokens, flops)
    chosen = checks.runs(with_flops)
    checks.one_of_each(chosen.frame)
    mixed, _ = checks.mixture(chosen.frame)
    chosen = dataclasses.replace(chosen, warnings=(*chosen.warnings, *mixed))
    checks.separable(*(checks.column(chosen.frame, name, "the frontier") for name in (params, tokens)))
    made = _APPROACHES[approach](chosen, names, loss, level, resamples, seed)
    return dataclasses.replace(made, statements=(*made.statements, note)) if note else made


def flop_rule(frame: pd.DataFrame, params: str, tokens: str, flops: str) -> FlopRule:
    """k and κ of C = k N^κ D by least squares in logarithms, k alone where C/D is proportional to N."""
    n, d, c = (np.log(checks.column(frame, name, "the FLOP rule")) for name in (params, tokens, flops))
    kappa, intercept = np.polyfit(n, c - d, 1)
    rms = np.std(c - d - kappa * n - intercept)
    if abs(kappa - 1) < 1e-6:
        return FlopRule(float(np.exp(np.mean(c - d - n))), 1.0, f"ratio of column {flops!r} to N·D")
    return FlopRule(float(np.exp(intercept)), float(kappa), f"fitted to column {flops!r}, rms {rms:.1%}")


def _lines(optima: Float[np.ndarray, "samples optima 4"]) -> Lines:
    """Power laws through every sample's optima (log C, N, D, L), NaN left out; NaN where fewer than FEWEST_BUDGETS."""
    x, y = optima[:, :, 0], optima[:, :, 1:3]
    there = ~np.isnan(optima).any(axis=-1)
    weight = there / np.maximum(there.sum(axis=1), 1)[:, None]
    x, y = np.where(there, x, 0.0), np.where(there[..., None], y, 0.0)
    mean_x, mean_y = np.sum(weight * x, axis=1), np.einsum("so,soq->sq", weight, y)
    dx = x - mean_x[:, None]
    spread = np.sum(weight * dx**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.einsum("so,so,soq->sq", weight, dx, y - mean_y[:, None, :]) / spread[:, None]
    few = (there.sum(axis=1) < FEWEST_BUDGETS) | (spread <= 0)
    slope[few] = np.nan
    middle = mean_x[0]
    loss = _loss_curves(x - middle, np.where(there, np.exp(optima[:, :, 3]), 0.0), weight)
    loss[few] = np.nan
    return Lines(mean_y - slope * mean_x[:, None], slope, loss, float(np.exp(middle)))


def _loss_curves(
    x: Float[np.ndarray, "samples optima"], y: Float[np.ndarray, "samples optima"], weight: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "samples 3"]:
    """E ≥ 0, A ≥ 0 and α of y = E + A exp(-αx) by weighted least squares, linear given α, which runs over a grid."""
    found, least = np.full((len(x), 3), np.nan), np.full(len(x), np.inf)
    for alpha in np.geomspace(0.02, 1.5, 120):
        basis = np.exp(-alpha * x)
        mean_b, mean_y = np.sum(weight * basis, axis=1), np.sum(weight * y, axis=1)
        db, dy = basis - mean_b[:, None], y - mean_y[:, None]
        A = np.maximum(np.sum(weight * db * dy, axis=1) / np.maximum(np.sum(weight * db**2, axis=1), 1e-300), 0.0)
        through_zero = np.sum(weight * basis * y, axis=1) / np.maximum(np.sum(weight * basis**2, axis=1), 1e-300)
        E = mean_y - A * mean_b
        A, E = np.where(E < 0, through_zero, A), np.maximum(E, 0.0)
        error = np.sum(weight * (y - E[:, None] - A[:, None] * basis) ** 2, axis=1)
        better = error < least
        least = np.where(better, error, least)
        found[better] = np.stack([E, A, np.full_like(E, alpha)], axis=-1)[better]
    return found


def _table(optima: Float[np.ndarray, "optima 4"]) -> pd.DataFrame:
    return pd.DataFrame(np.exp(optima[~np.isnan(optima).any(axis=1)]), columns=["flops", *QUANTITIES])


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
    logs = np.log(table[["flops", *QUANTITIES]].to_numpy())
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
    if len(found) < FEWEST_BUDGETS or found["params"].nunique() < 2:
        raise errors.Refused(
            f"approach 1: the envelope has {len(found)} points of {found['params'].nunique()} sizes; it needs "
            f"{FEWEST_BUDGETS} points of 2 sizes; run more budgets"
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
    return Frontier(1, level, _lines(optima), found, _statements(frame, names, how), excluded, chosen.warnings)


def _isoflop(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> Frontier:
    cuts, unequal, apart = budgets.slices(chosen.frame, names["params"], names["tokens"], names["flops"], loss)
    parabolas = tuple(budgets.parabola(cut) for cut in cuts)
    total = len(parabolas) + len(unequal)
    excluded = (*(f"budget {p.budget:.3g}: {p.refused}" for p in parabolas if p.refused), *unequal)
    excluded += tuple(f"approach 2: {told}" for told in apart)
    doubts = [(p.warning, f"{p.budget:.3g}") for p in parabolas if p.warning and not p.refused]
    warnings = tuple(
        f"{told} (budgets {', '.join(budget for same, budget in doubts if same == told)})"
        for told in dict.fromkeys(told for told, _ in doubts)
    )
    good = [(cut, p) for cut, p in zip(cuts, parabolas, strict=True) if not p.refused]
    if len(good) < FEWEST_BUDGETS:
        why = "; ".join(excluded) if total else "No two runs share a budget"
        raise errors.Refused(
            f"approach 2: {len(good)} of {total} budgets have a minimum that counts; it needs "
            f"{FEWEST_BUDGETS}. {why}. Run sizes on both sides of the best one at each "
            "budget, or label the grid by a column flops_budget"
        )
    optima = np.stack([_minima(cut, p, resamples, seed + i) for i, (cut, p) in enumerate(good)], axis=1)
    lines = _lines(optima)
    lost = float(np.isnan(lines.slope[1:, 0]).mean())
    if lost > 0.1:
        warnings += (
            f"{lost:.0%} of resamples kept fewer than {FEWEST_BUDGETS} budgets with a minimum and were left out",
        )
    how = (
        f"approach 2: least-squares parabolas in log N through {len(good)} of {total} budgets, a straight "
        f"line in logarithms through their minima; {_LOSS}"
    )
    return Frontier(
        2, level, lines, _table(optima[0]), _statements(chosen.frame, names, how), excluded,
        chosen.warnings + warnings, parabolas,
    )  # fmt: skip


def _minima(
    cut: budgets.Slice, parabola: budgets.Parabola, resamples: int, seed: int
) -> Float[np.ndarray, "samples 4"]:
    """log C, log N, log D and log L of one budget's minimum: of all its runs, then of resampled ones."""
    u = cut.u
    weights = np.concatenate([np.ones((1, len(u))), uncertainty.counts(len(u), resamples, seed)])
    c = budgets.fit_weighted(u, cut.loss, weights)
    at = budgets.minimum(c, float(u.min()), float(u.max()))
    value = c[:, 0] + c[:, 1] * at + c[:, 2] * at**2
    with np.errstate(invalid="ignore"):
        logs = [cut.at(cut.log_flops, at), cut.center + at, cut.at(cut.log_tokens, at), np.log(value)]
    return np.stack(logs, axis=-1)


def _parametric(
    chosen: checks.Selection, names: dict[str, str], loss: str, level: float, resamples: int, seed: int
) -> Frontier:
    frame = chosen.frame
    fit = fitting.fit("hoffmann", frame, loss=loss, params=names["params"], tokens=names["tokens"])
    fitting.refuse_unconverged(fit)
    boot = fit.bootstrap(resamples, seed)
    rule = flop_rule(frame, **names)
    samples = {name: np.concatenate([[fit.params[name]], boot.samples[name]]) for name in fit.law.names}
    for name in ("A", "B", "alpha", "beta"):
        if fit.params[name] <= 0:
            raise errors.Refused(f"approach 3: the fitted {name} is 0, so the law has no optimum in N; add runs")
    how = f"approach 3: closed form of {fit.law.equation} under {rule}"
    empty = pd.DataFrame(columns=["flops", *QUANTITIES], dtype=np.float64)
    return Frontier(
        3, level, Surface(samples, rule), empty, _statements(frame, names, how), (), fit.warnings, (), fit, boot
    )


_APPROACHES = {1: _envelope, 2: _isoflop, 3: _parametric}
