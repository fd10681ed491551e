"""Optima of a fitted law of N and D under a rule for the FLOPs, with and without the cost of inference."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analysis import checks, errors, forms, optima, solver

FORWARD = 1 / 3  # of the FLOPs of training on a token: 2N of 6N (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)
SETTLED, STEPS = 1e-12, 200  # log N* of two steps of the search under a bent rule, and how many it may take
STRAIGHT = 1e-3  # rms of log C about a power law of N up to which it is the rule
ROUGH = 0.05  # rms of log C about the rule from which a warning is due
FALLS = np.linspace(0.1, 1.0, 91)
NEAR = 0.01  # of log C to either side: between these a local exponent is taken


@dataclasses.dataclass(frozen=True)
class Bend:
    """C/D = a N (1 + b (N/N₀)^−δ), N₀ the smallest run's size, below which it goes on as its tangent in logarithms.

    A head or attention beside N adds FLOPs (b > 0), embeddings counted in N take some away (b < 0), either by a share
    that falls with N: beyond the runs C/D approaches a N, which no power law fitted to them does.
    """

    a: float
    b: float
    delta: float
    smallest: float

    def tangent(self, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """k and κ of the power law k N^κ that has the value and the slope of C/D at N."""
        x = np.maximum(params, self.smallest)
        rest = self.b * (x / self.smallest) ** -self.delta
        kappa = 1 - self.delta * rest / (1 + rest)
        return self.a * (1 + rest) * x ** (1 - kappa), kappa


@dataclasses.dataclass(frozen=True)
class FlopRule:
    """C = k · N^κ · D: what N parameters and D tokens cost; a token of inference costs a third of one of training.

    With a `bend` that is what they cost, and κ the power of N over the runs alone.
    """

    k: float
    kappa: float
    source: str
    bend: Bend | None = None
    rms: float = 0.0  # of log C about the rule

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say of a rule that the runs do not follow closely."""
        if self.rms <= ROUGH:
            return ()
        return (f"the runs' FLOPs scatter by {self.rms:.0%} about the rule {self}: what a budget buys may cost more",)

    def tangent(self, params: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
        """k and κ of the power law that the rule is near N."""
        return self.bend.tangent(params) if self.bend else (self.k, self.kappa)

    def per_token(self, params: np.ndarray) -> np.ndarray:
        """FLOPs of training N parameters on one token."""
        k, kappa = self.tangent(params)
        return np.asarray(k * params**kappa)

    def flops(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.per_token(params) * tokens

    def __str__(self) -> str:
        if self.bend:
            a, b, delta, smallest = dataclasses.astuple(self.bend)
            return (
                f"C = {a:.4g} · N · (1 {'-' if b < 0 else '+'} {abs(b):.3g} · (N/{smallest:.3g})^-{delta:.2f}) · D "
                f"({self.source}; over the runs about N^{self.kappa:.3f} · D)"
            )
        exponent = "" if self.kappa == 1 else f"^{self.kappa:.4f}"
        return f"C = {self.k:.4g} · N{exponent} · D ({self.source})"


def flop_rule(frame: pd.DataFrame, params: str, tokens: str, flops: str) -> FlopRule:
    """k and κ of C = k N^κ D by least squares in logarithms, k alone where C/D is proportional to N.

    Where that leaves more than STRAIGHT and a `Bend` at most half of it, the rule is the bend.
    """
    n, d, c = (np.log(checks.column(frame, name, "the FLOP rule")) for name in (params, tokens, flops))
    kappa, intercept = np.polyfit(n, c - d, 1)
    rms = np.std(c - d - kappa * n - intercept)
    if abs(kappa - 1) < 1e-6:
        return FlopRule(float(np.exp(np.mean(c - d - n))), 1.0, f"ratio of column {flops!r} to N·D", rms=float(rms))
    power = FlopRule(
        float(np.exp(intercept)), float(kappa), f"fitted to column {flops!r}, rms {rms:.1%}", rms=float(rms)
    )
    if rms <= STRAIGHT or (bent := _bend(n, c - d)) is None:
        return power
    bend, left = bent
    if left > rms / 2:
        return power
    return dataclasses.replace(power, source=f"fitted to column {flops!r}, rms {left:.1%}", bend=bend, rms=left)


def _bend(n: np.ndarray, per_token: np.ndarray) -> tuple[Bend, float] | None:
    """The bend nearest to log C/D at log N by relative least squares, and the rms of the logarithm about it."""
    best = None
    for delta in FALLS:
        design = np.exp(np.stack([n, n - delta * (n - n.min())], axis=1) - per_token[:, None])
        a, more = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)[0]
        if a <= 0 or a + more <= 0:
            continue
        left = float(np.std(np.log(design @ [a, more])))
        if best is None or left < best[1]:
            best = Bend(float(a), float(more / a), float(delta), float(np.exp(n.min()))), left
    return best


def refuse_other_laws(law: forms.Law) -> None:
    """Refused where a law takes anything but N and D, or gives anything but the loss."""
    if not law.allocates:
        gives = "" if law.unit == forms.OF_LOSS else f" and gives no loss ({law.unit})"
        raise errors.Refused(
            f"a budget is shared out between params and tokens by a law of the loss, and {law.name!r} takes "
            f"{', '.join(law.inputs)}{gives}; use a law of these two, such as hoffmann, kaplan_offset or farseer"
        )


def powers(law: forms.Law, params: Mapping[str, Any]) -> forms.Powers | None:
    """A law that is a sum of powers as such, an entry a sample of its parameters."""
    if law.powers is None:
        return None
    samples = {name: np.atleast_1d(np.asarray(values, dtype=np.float64)) for name, values in params.items()}
    with np.errstate(all="ignore"):  # of a sample in which a term vanished
        return forms.Powers(*np.broadcast_arrays(*law.powers(samples)))


def _vanished(powers: forms.Powers) -> Bool[np.ndarray, " samples"]:
    """Where A, B or an exponent is no positive number, so that no N is best."""
    amplitudes = np.isfinite(powers.log_a) & np.isfinite(powers.log_b)
    exponents = (np.isfinite(each) & (each > 0) for each in (powers.alpha, powers.beta, powers.gamma))
    return np.asarray(~np.all([amplitudes, *exponents], axis=0))


def refuse_without_optimum(law: forms.Law, params: Mapping[str, float], what: str) -> None:
    """Refused where a term of a law that is a sum of powers has vanished, so that no N is best."""
    form = powers(law, params)
    if form is None or not _vanished(form)[0]:
        return
    _, log_a, log_b, *exponents = (each[0] for each in form)
    wrong = [(name, np.exp(log)) for name, log in (("A", log_a), ("B", log_b)) if not np.isfinite(log)]
    wrong += [(name, value) for name, value in zip("αβγ", exponents, strict=True) if not 0 < value < np.inf]
    vanished, fitted = (", ".join(f"{name} = {value:g}" for name, value in of) for of in (wrong, params.items()))
    raise errors.Refused(
        f"{what}: {law.name!r} as fitted ({fitted}) has {vanished} in E + (A/N^α + B/D^β)^γ, so it has no optimum in "
        "N; add runs"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """Minima of a law of N and D under a rule for the FLOPs, estimate first and resamples of the parameters after it.

    In closed form where the law is L = E + (A/N^α + B/D^β)^γ (`forms.Powers`; γ > 0 moves no minimum), else searched
    for (`analysis.optima`). Under a bent rule k and κ of the closed form are those of its tangent at the minimum, where
    the two cost the same and trade N for D alike; it is found by steps from one tangent to the next. `largest` is the
    budget of the largest run.
    """

    law: forms.Law
    params: dict[str, Float[np.ndarray, " samples"]]
    rule: FlopRule
    largest: float

    @functools.cached_property
    def powers(self) -> forms.Powers | None:
        return powers(self.law, self.params)

    def at(self, flops: float, inference_tokens: float = 0.0) -> Float[np.ndarray, "samples 3"]:
        """N*, D* and L* for a budget that pays for training and for `inference_tokens` T of inference.

        NaN where a sample has no optimum. In closed form, T = 0: N* = (αA/(κβB))^(1/(α+κβ)) · (C/k)^(β/(α+κβ)),
        D* = (C/k) / N*^κ. T > 0: the budget is k N^κ (D + T/3) (Sardana et al. 2024, arXiv 2401.00448: 6ND + 2NT), and
        dL = 0 along it where αA/N^α = κβB (D + T/3)/D^(β+1). In log D the difference of the two sides' logarithms
        falls everywhere, by a slope between −(β+1) and −(β+α/κ), so the root is bracketed from the optimum at T = 0.
        """
        served = inference_tokens * FORWARD
        if (form := self.powers) is None:
            return optima.minima(self.law, self.params, flops, self.rule, served)
        solution = self._settled(lambda k, kappa: _at(form, np.log(flops / k), kappa, served), 0)
        return np.where(_vanished(form)[:, None], np.nan, solution)

    def optimum(self, flops: float, inference_tokens: float = 0.0) -> Float[np.ndarray, "samples 3"]:
        """`at`; `Refused` where the estimate has no optimum."""
        estimate = {name: float(values[0]) for name, values in self.params.items()}
        refuse_without_optimum(self.law, estimate, f"the optimum at {flops:.3g} FLOPs")
        samples = self.at(flops, inference_tokens)
        if np.isnan(samples[0, :2]).any():
            raise errors.Refused(self._without(flops, inference_tokens * FORWARD))
        return samples

    def _without(self, flops: float, served: float) -> str:
        n = np.exp(np.array(optima.ends(flops, self.rule, served)))
        d = np.maximum(flops / self.rule.per_token(n) - served, n * optima.RATIOS[0])
        with solver.precise():
            first, last = np.asarray(
                self.law({"params": n, "tokens": d}, {name: values[0] for name, values in self.params.items()})
            )
        return (
            f"{self.law.name!r} as fitted has no optimum in N at {flops:.3g} FLOPs under {self.rule}: its loss goes "
            f"from {first:.4g} at N = {n[0]:.3g} to {last:.4g} at N = {n[1]:.3g} (D/N from {d[0] / n[0]:.3g} to "
            f"{d[1] / n[1]:.3g}) and is nowhere least between; pass a budget nearer to the runs, add runs of more "
            'sizes at one budget, or fit a law that has one, such as "hoffmann"'
        )

    def _settled(self, solve: Callable[..., np.ndarray], column: int) -> np.ndarray:
        """What `solve` finds under k and κ of the rule near the N in its `column`."""
        with np.errstate(all="ignore"):  # of a sample without an optimum
            solution = solve(self.rule.k, self.rule.kappa)
            for _ in range(STEPS if self.rule.bend else 0):
                again = solve(*self.rule.tangent(solution[:, column]))
                moved = np.abs(np.log(again[:, column] / solution[:, column]))
                solution = again
                if not (moved > SETTLED).any():
                    break
        return solution

    def reach(self, loss: float, inference_tokens: float = 0.0) -> Float[np.ndarray, "samples 3"]:
        """The least FLOPs, training and T tokens of inference together, that reach a loss, and their N* and D*.

        In closed form, with R = (L − E)^(1/γ), A/N^α = wR and B/D^β = (1 − w)R, the least of k N^κ (D + T/3) has
        log w/(1 − w) = log(κβ/α) + log(1 + T/(3D)), whose right side falls with w (Sardana et al. 2024, arXiv
        2401.00448, minimise 6ND + 2NT at a loss). Infinite where a sample does not reach the loss, or has no optimum.
        """
        served = inference_tokens * FORWARD
        if (form := self.powers) is None:
            return optima.reach(self.law, self.params, loss, self.rule, served, self.largest)
        solution = self._settled(lambda k, kappa: _reach(form, k, kappa, loss, served), 1)
        return np.where(_vanished(form)[:, None], np.inf, solution)

    def unreached(self, loss: float) -> str:
        """Why a loss is not reached."""
        if self.powers is not None:
            return f"the fitted law reaches no loss at or below E = {self.powers.E[0]:.4g}; pass a higher one"
        return f"the optima of {self.law.name!r} as fitted do not come to it; pass one nearer to the runs' losses"

    @functools.cached_property
    def exponents(self) -> Float[np.ndarray, "samples 2"]:
        """Of N* and D* as powers of C; of a law that has none, the local ones at the largest run's budget."""
        if self.powers is None:
            return self.exponents_at(self.largest)
        alpha, beta = self.powers.alpha, self.powers.beta
        with np.errstate(all="ignore"):  # of a resample without an optimum
            exponents = np.stack([beta, alpha], axis=-1) / (alpha + self.rule.kappa * beta)[:, None]
        return np.where(_vanished(self.powers)[:, None], np.nan, exponents)

    def exponents_at(self, flops: float) -> Float[np.ndarray, "samples 2"]:
        """d log N*/d log C and d log D*/d log C at a budget; `Refused` where the estimate has no optimum."""
        low, high = (np.log(self.optimum(flops * np.exp(side))[:, :2]) for side in (-NEAR, NEAR))
        return np.asarray((high - low) / (2 * NEAR))


def _at(powers: forms.Powers, cost: np.ndarray, kappa: np.ndarray, served: float) -> np.ndarray:
    E, log_a, log_b, alpha, beta, power = powers
    log_n = (np.log(alpha / (kappa * beta)) + log_a - log_b + beta * cost) / (alpha + kappa * beta)
    log_d = cost - kappa * log_n
    if served:

        def excess(log_d: np.ndarray) -> np.ndarray:
            tokens = np.logaddexp(log_d, np.log(served))
            gain = np.log(alpha) + log_a - alpha * (cost - tokens) / kappa
            return np.asarray(np.log(kappa * beta) + log_b + tokens - (beta + 1) * log_d - gain)

        start, slopes = excess(log_d), np.stack([beta + 1, beta + alpha / kappa])
        log_d = optima.root(excess, *np.sort(log_d + start / slopes, axis=0))
        log_n = (cost - np.logaddexp(log_d, np.log(served))) / kappa
    loss = E + np.exp(power * np.logaddexp(log_a - alpha * log_n, log_b - beta * log_d))
    return np.stack([np.exp(log_n), np.exp(log_d), loss], axis=-1)


def _reach(powers: forms.Powers, k: np.ndarray, kappa: np.ndarray, loss: float, served: float) -> np.ndarray:
    E, log_a, log_b, alpha, beta, power = powers
    room = np.log(np.where(loss > E, loss - E, np.nan)) / power

    def log_tokens(v: np.ndarray) -> np.ndarray:
        return np.asarray((log_b - room + np.logaddexp(0.0, v)) / beta)

    def excess(v: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(kappa * beta / alpha) + np.log1p(served * np.exp(-log_tokens(v))) - v)

    low = np.log(kappa * beta / alpha)
    v = optima.root(excess, low, low + np.log1p(served * np.exp(-log_tokens(low)))) if served else low
    log_n = (log_a - room + np.logaddexp(0.0, -v)) / alpha
    log_d = log_tokens(v)
    flops = np.log(k) + kappa * log_n + (np.logaddexp(log_d, np.log(served)) if served else log_d)
    solution = np.exp(np.stack([flops, log_n, log_d], axis=-1))
    return np.where(np.isnan(room)[:, None], np.inf, solution)
