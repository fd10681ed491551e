"""How the runs of a sweep get their learning rates: as given, by a stated law, or tuned. No JAX here."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pydantic

from scaling import counting, schema
from scaling.config import families, grids

if TYPE_CHECKING:
    from scaling import config


class Rule(schema.Variant):
    """A rule for peak learning rates."""

    def check(self, base: "config.Run") -> None:
        """Refuse a base run that the rule does not fit."""

    def tuning_points(self, points: Sequence[grids.Point]) -> list[grids.Point]:
        """The runs that must be trained before the rule can be applied: none, unless it tunes."""
        return []

    def learning_rate(self, run: "config.Run", optima: Mapping[str, float]) -> float:
        """The peak learning rate of a run; `optima` maps the digest of a model to its tuned learning rate."""
        raise NotImplementedError

    def describe(self) -> str:
        """How the learning rates are chosen, in a sentence for the report."""
        raise NotImplementedError


class AsGiven(Rule):
    """The learning rate that stands in the run: with µP, transfer from the base shape."""

    kind: Literal["as_given"] = "as_given"

    def learning_rate(self, run: "config.Run", optima: Mapping[str, float]) -> float:
        return run.optimizer.learning_rate

    def describe(self) -> str:
        return "as given in the config."


class StepLaw(Rule):
    """lr = 1.79 · N^−0.713 · D^0.307, N non-embedding parameters, D tokens (Li et al. 2503.04715, eq. 1).

    Fitted on models of 6e7 parameters and more; far below, tune instead (at N = 1e5 it gives about 0.07).
    """

    kind: Literal["step_law"] = "step_law"

    def check(self, base: "config.Run") -> None:
        if base.parametrization.kind != "standard":
            raise ValueError(
                f"the step law was fitted under the standard parametrization and would follow size twice under "
                f"{base.parametrization.kind!r}; use 'standard', or another learning_rate rule"
            )

    def learning_rate(self, run: "config.Run", optima: Mapping[str, float]) -> float:
        params = counting.params_non_embedding(run.model, run.vocabulary_size, run.context)
        return 1.79 * params**-0.713 * run.tokens**0.307

    def describe(self) -> str:
        return "by the step law 1.79 · N^−0.713 · D^0.307 (Li et al. 2503.04715)."


class Tuned(Rule):
    """A grid of learning rates trained first; the minimum of a parabola in log lr is taken for the grid.

    Every model of the sweep is tuned on `tokens` tokens, or only those of `at`: then one optimum, the geometric mean
    over the sizes of `at`, is transferred to all sizes, which needs parametrization 'mup'.
    """

    kind: Literal["tuned"] = "tuned"
    learning_rates: tuple[pydantic.PositiveFloat, ...] = pydantic.Field(min_length=3)
    tokens: pydantic.PositiveInt
    seeds: tuple[pydantic.NonNegativeInt, ...] = pydantic.Field(default=(0,), min_length=1)
    at: grids.Ladder | None = None

    def check(self, base: "config.Run") -> None:
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates {list(self.learning_rates)} repeat a value; give at least 3, each once")
        if self.at is not None and base.parametrization.kind != "mup":
            raise ValueError(
                f"learning_rate.at transfers one optimum to all sizes, which parametrization "
                f"{base.parametrization.kind!r} does not allow; use 'mup', or leave `at` out to tune every size"
            )
        if self.tokens % base.batch_tokens or self.tokens < base.batch_tokens:
            near = max(1, round(self.tokens / base.batch_tokens)) * base.batch_tokens
            raise ValueError(f"learning_rate.tokens {self.tokens} is no whole number of batches; the nearest is {near}")

    def tuning_points(self, points: Sequence[grids.Point]) -> list[grids.Point]:
        _refuse_other_axes(points)
        models: dict[families.Family, grids.Point] = {}
        for point in self.at.expand(points[0]) if self.at else points:
            models.setdefault(point.run.model, point)
        return [
            grids.Point(
                point.run.edit({"optimizer.learning_rate": rate, "tokens": self.tokens, "seed": seed}),
                {"family": point.run.model.kind, "role": "single", "stage": "tune"},
            )
            for point in models.values()
            for rate in self.learning_rates
            for seed in self.seeds
        ]

    def learning_rate(self, run: "config.Run", optima: Mapping[str, float]) -> float:
        if self.at is not None:
            return math.exp(sum(math.log(rate) for rate in optima.values()) / len(optima))
        return optima[model_key(run.model)]

    def describe(self) -> str:
        grid_text = f"a grid of {_shown(self.learning_rates)} at {self.tokens:,} tokens and seeds {list(self.seeds)}"
        if self.at is None:
            return f"tuned for every size by a parabola in log lr over {grid_text}."
        widths = ", ".join(str(size.width) for size in self.at.sizes)
        return f"tuned at width {widths} by a parabola in log lr over {grid_text}, and transferred to all sizes by µP."


def _refuse_other_axes(points: Sequence[grids.Point]) -> None:
    """Refuse a sweep whose runs differ in more than size, tokens and seed: one optimum would not hold for all."""
    first = points[0].run
    for point in points:
        for field in type(first).model_fields:
            ours, theirs = getattr(point.run, field), getattr(first, field)
            if field not in ("model", "tokens", "seed") and ours != theirs:
                raise ValueError(
                    f"runs differ in {field!r}, and learning rates are tuned once a size for all of them; tune a sweep "
                    f"for each value of {field!r}, or give the learning rates"
                )


def model_key(model: families.Family) -> str:
    """The digest under which a model's tuned learning rate is kept."""
    return schema.digest(model.identity())[:16]


def optimum(learning_rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at the minimum of a parabola in log lr through the points around the best one.

    A rate at which any run diverged (its loss is not finite) is left out. Raises ValueError where the best rate is an
    edge of the grid, fewer than three rates have a loss, or the parabola has no minimum inside the grid.
    """
    import numpy as np

    trials: dict[float, list[float]] = {}
    for rate, loss in zip(learning_rates, losses, strict=True):
        trials.setdefault(rate, []).append(loss)
    seen = sorted(rate for rate, of_seeds in trials.items() if all(map(math.isfinite, of_seeds)))
    if len(seen) < 3:
        raise ValueError(f"only {len(seen)} learning rates have a finite loss and a parabola needs 3; add smaller ones")
    means = [np.mean(trials[rate]) for rate in seen]
    best = int(np.argmin(means))
    if best in (0, len(seen) - 1) and seen[best] in (min(learning_rates), max(learning_rates)):
        side = "smaller" if best == 0 else "larger"
        raise ValueError(
            f"the best learning rate, {seen[best]:g}, is the edge of the grid {_shown(learning_rates)}; "
            f"add {side} rates to learning_rate.learning_rates"
        )
    if best == len(seen) - 1:
        raise ValueError(
            f"the best learning rate, {seen[best]:g}, stands next to diverged ones; add rates between it and the next"
        )
    around = slice(max(0, best - 2), best + 3)
    x, y = np.log(seen[around]), np.asarray(means[around])
    curvature, slope, _ = np.polyfit(x, y, 2)
    minimum = -slope / (2 * curvature)
    if curvature <= 0 or not x[0] <= minimum <= x[-1]:
        raise ValueError(
            f"a parabola through the losses at {_shown(seen[around])} has no minimum there; use a finer or wider grid"
        )
    return float(math.exp(minimum))


def _shown(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
