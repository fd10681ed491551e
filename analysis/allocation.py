"""What a compute-optimal frontier is and answers: `Frontier`, and the `Allocation` and `Target` that it gives."""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import biases, budgets, checks, errors, fitting, lines, uncertainty
from analysis.lines import Lines
from analysis.surfaces import Surface

EMPTY = pd.DataFrame(columns=["flops", *lines.QUANTITIES], dtype=np.float64)
LOSS_LINE = "L* = E + A/C^α through the same optima"


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The model and the data that a budget should buy, and the loss that they should reach.

    `flops` pays for training and for `inference_tokens` of inference; `training_flops` is the part of training.
    `warnings` say which share of the resamples has no optimum at this budget.
    """

    flops: float
    params: uncertainty.Estimate
    tokens: uncertainty.Estimate
    loss: uncertainty.Estimate
    training_flops: uncertainty.Estimate
    inference_tokens: float = 0.0
    warnings: tuple[str, ...] = ()


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
        if self.bootstrap is None:
            return uncertainty.estimate(samples[0], samples[1:], self.level)
        there = samples[1:][~np.isnan(samples[1:])]
        moved, share = uncertainty.unbiased(there, samples[0]), len(there) / (len(samples) - 1)
        return self.bootstrap.estimate(samples[0], moved, self.level, share)

    @property
    def exponent_params(self) -> uncertainty.Estimate:
        """Of N* ∝ C^a; where the law's optima follow no power law, as `statements` then say, a at the largest run."""
        return self._estimate(self.curve.exponents[:, 0])

    @property
    def exponent_tokens(self) -> uncertainty.Estimate:
        return self._estimate(self.curve.exponents[:, 1])

    def exponents_at(self, flops: float) -> tuple[uncertainty.Estimate, uncertainty.Estimate]:
        """d log N*/d log C and d log D*/d log C at a budget.

        ValueError unless it is positive and finite; `Refused` where the law has no optimum there, or none in more than
        half of the resamples.
        """
        checks.budget(flops)
        samples = self.curve.exponents_at(flops)
        self.missing(samples, flops)
        n, d = samples.T
        return self._estimate(n), self._estimate(d)

    def allocate(self, flops: float, inference_tokens: float = 0.0) -> Allocation:
        """N*, D* and L* at a budget, each with its interval.

        The budget pays for training and, a forward pass a token, for `inference_tokens` of inference (6ND + 2NT;
        Sardana et al. 2024, arXiv 2401.00448): models get smaller and see more data. That needs the law itself:
        approaches 1 and 2 refuse it. ValueError unless the budget is positive and finite; `Refused` where the law has
        no optimum there, or none in more than half of the resamples.
        """
        checks.budget(flops)
        _served(inference_tokens)
        spent = None
        if inference_tokens or isinstance(self.curve, Surface):
            surface = self._surface("allocation with inference")
            samples = surface.optimum(flops, inference_tokens)
            spent = surface.rule.flops(*samples.T[:2]) if inference_tokens else None
        else:
            samples = self.curve.at(flops)
        warnings = self.missing(samples, flops)
        spent = np.full(len(samples), float(flops)) if spent is None else spent
        n, d, loss, training = (self._estimate(v) for v in (*samples.T, spent))
        return Allocation(float(flops), n, d, loss, training, float(inference_tokens), warnings)

    def missing(self, samples: Float[np.ndarray, "samples any"], flops: float | None = None) -> tuple[str, ...]:
        """What to say of resamples of a law that have no optimum at a budget, by default the largest run's.

        Raises `Refused` where these are more than half.
        """
        missing = float(np.isnan(samples[1:, 0]).mean())
        if self.bootstrap is None or not missing:
            return ()
        budget = "the largest run's FLOPs" if flops is None else f"{flops:.3g} FLOPs"
        said = f"{missing:.1%} of resamples have no optimum at {budget}"
        if missing > 1 - uncertainty.FEWEST:
            raise errors.Refused(f"{said}: the runs do not carry one there; pass a budget nearer to them, or add runs")
        whole = self.bootstrap.level(self.level, 1 - missing) > 1 - 1e-6
        end = ", so that they are the whole range of these" if whole else ""
        return (f"{said}: intervals count half of them below and half above all others{end}",)

    def reach(self, loss: float, inference_tokens: float = 0.0) -> Target:
        """The least FLOPs that reach a loss (nats per token), inference included, with N* and D*; approach 3 only.

        ValueError unless the loss is finite; `Refused` where the fitted law never reaches it.
        """
        if not np.isfinite(loss):
            raise ValueError(f"loss = {loss}: must be finite; pass a loss in nats per token such as 2.5")
        _served(inference_tokens)
        curve = self._surface("the cost of reaching a loss")
        samples = curve.reach(loss, inference_tokens)
        if not np.isfinite(samples[0]).all():
            raise errors.Refused(f"loss = {loss}: {curve.unreached(loss)}")
        tail = (1 - (self.bootstrap.level(self.level) if self.bootstrap else self.level)) / 2
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


def minima(optima: Float[np.ndarray, "optima 4"]) -> pd.DataFrame:
    """A row an optimum from its logarithms, those without a minimum left out."""
    there = ~np.isnan(optima[:, :3]).any(axis=1)
    return pd.DataFrame(np.exp(optima[there]), columns=["flops", *lines.QUANTITIES])


def statements(frame: pd.DataFrame, names: dict[str, str], how: str) -> tuple[str, ...]:
    """How a frontier was made, and under which conventions its columns are counted."""
    return how, *checks.conventions(frame, list(names.values()))
