"""The algebra of sweeps: ladders, iso-FLOP and iso-token grids; product, zip and chain over any field of a run.

A grid maps points to more points. A point is a run and its labels: columns that say why the run is in the sweep and
do not change its result.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from scaling import counting, schema

if TYPE_CHECKING:
    from scaling import config

Label = str | float | int


@dataclasses.dataclass(frozen=True)
class Point:
    """A run with the labels of its place in the sweep (`family`, `role`, `flops_budget`, …)."""

    run: "config.Run"
    labels: Mapping[str, Label]

    def edit(self, changes: Mapping[str, Any], labels: Mapping[str, Label] | None = None) -> "Point":
        """This point with fields of its run changed and labels added."""
        return Point(self.run.edit(changes), {**self.labels, **(labels or {})})


class Grid(schema.Variant):
    """A rule that makes the points of a sweep out of the sweep's base run."""

    def expand(self, point: Point) -> list[Point]:
        """The points that this grid makes of one point, in order."""
        raise NotImplementedError


class Single(Grid):
    """The base run alone."""

    kind: Literal["single"] = "single"

    def expand(self, point: Point) -> list[Point]:
        return [point]


class Axis(Grid):
    """One field, given by its dotted name, takes each value in turn."""

    kind: Literal["axis"] = "axis"
    field: str
    values: tuple[Any, ...] = pydantic.Field(min_length=1)

    def expand(self, point: Point) -> list[Point]:
        return [point.edit({self.field: value}) for value in self.values]


class Size(schema.Config):
    """One rung of a ladder. `heads` None keeps the family's own number, where it has heads."""

    width: pydantic.PositiveInt
    depth: pydantic.PositiveInt
    heads: pydantic.PositiveInt | None = None


class Ladder(Grid):
    """Sizes of one family: each resizes the base run's model."""

    kind: Literal["ladder"] = "ladder"
    sizes: tuple[Size, ...] = pydantic.Field(min_length=1)

    def expand(self, point: Point) -> list[Point]:
        model = point.run.model
        return [point.edit({"model": model.resize(s.width, s.depth, s.heads)}) for s in self.sizes]


def ladder(widths: Iterable[int], aspect: float, head_size: int | None = None) -> Ladder:
    """A ladder by rule: depth = max(1, round(width / aspect)), heads = width / head_size.

    Raises ValueError where head_size does not divide a width.
    """
    sizes = []
    for width in widths:
        if head_size is not None and width % head_size:
            near = head_size * max(1, round(width / head_size))
            raise ValueError(
                f"head size {head_size} does not divide width {width}; use width {near} or another head size"
            )
        heads = None if head_size is None else width // head_size
        sizes.append(Size(width=width, depth=max(1, round(width / aspect)), heads=heads))
    return Ladder(sizes=tuple(sizes))


class IsoFlop(Grid):
    """Budgets of exact training FLOPs × sizes; tokens are solved from the count and rounded to whole batches.

    With `per_budget`, each budget takes that many sizes of the ladder, those whose tokens per non-embedding parameter
    are nearest to `tokens_per_param` in the logarithm: a grid centred on the expected minimum.
    """

    kind: Literal["isoflop"] = "isoflop"
    budgets: tuple[pydantic.PositiveFloat, ...] = pydantic.Field(min_length=1)
    sizes: Ladder
    per_budget: pydantic.PositiveInt | None = None
    tokens_per_param: pydantic.PositiveFloat | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "IsoFlop":
        if (self.per_budget is None) != (self.tokens_per_param is None):
            raise ValueError("per_budget and tokens_per_param go together; set both, or neither to use every size")
        if self.per_budget is not None and self.per_budget > len(self.sizes.sizes):
            raise ValueError(f"per_budget is {self.per_budget} but the ladder has {len(self.sizes.sizes)} sizes")
        return self

    def expand(self, point: Point) -> list[Point]:
        sized = self.sizes.expand(point)
        points = []
        for budget in self.budgets:
            solved = [(p, _tokens_for(p.run, budget)) for p in sized]
            if self.per_budget is not None and self.tokens_per_param is not None:
                solved = _nearest(solved, self.per_budget, self.tokens_per_param)
            points += [p.edit({"tokens": tokens}, {"flops_budget": budget}) for p, tokens in solved]
        return points


def _tokens_for(run: "config.Run", budget: float) -> int:
    return counting.tokens_for_flops(
        run.model, run.vocabulary_size, run.context, flops=budget, batch_tokens=run.batch_tokens
    )


def _nearest(solved: list[tuple[Point, int]], count: int, ratio: float) -> list[tuple[Point, int]]:
    def distance(index: int) -> float:
        point, tokens = solved[index]
        params = counting.params_non_embedding(point.run.model, point.run.vocabulary_size, point.run.context)
        return abs(math.log(tokens / params / ratio))

    chosen = sorted(range(len(solved)), key=distance)[:count]
    return [solved[index] for index in sorted(chosen)]


class IsoToken(Grid):
    """Token counts × sizes: each size is trained on each number of tokens, rounded to whole batches."""

    kind: Literal["isotoken"] = "isotoken"
    tokens: tuple[pydantic.PositiveInt, ...] = pydantic.Field(min_length=1)
    sizes: Ladder

    def expand(self, point: Point) -> list[Point]:
        points = []
        for tokens in self.tokens:
            for p in self.sizes.expand(point):
                if tokens < p.run.batch_tokens:
                    raise ValueError(f"{tokens} tokens are fewer than a batch of {p.run.batch_tokens}; use more tokens")
                whole = round(tokens / p.run.batch_tokens) * p.run.batch_tokens
                points.append(p.edit({"tokens": whole}))
        return points


class Product(Grid):
    """Every combination, the first part slowest; a part sees the runs that the parts before it made."""

    kind: Literal["product"] = "product"
    parts: tuple[Grid, ...] = pydantic.Field(min_length=1)

    def expand(self, point: Point) -> list[Point]:
        points = [point]
        for part in self.parts:
            points = [new for old in points for new in part.expand(old)]
        return points


class Zip(Grid):
    """Fields that change together: the first values of all axes, then the second, and so on."""

    kind: Literal["zip"] = "zip"
    parts: tuple[Axis, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Zip":
        lengths = {part.field: len(part.values) for part in self.parts}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"zipped axes must be equally long, not {lengths}")
        return self

    def expand(self, point: Point) -> list[Point]:
        fields = [part.field for part in self.parts]
        rows = zip(*(part.values for part in self.parts), strict=True)
        return [point.edit(dict(zip(fields, row, strict=True))) for row in rows]


class Chain(Grid):
    """One grid after another; a run that two of them make is one run."""

    kind: Literal["chain"] = "chain"
    parts: tuple[Grid, ...] = pydantic.Field(min_length=1)

    def expand(self, point: Point) -> list[Point]:
        return list(itertools.chain.from_iterable(part.expand(point) for part in self.parts))
