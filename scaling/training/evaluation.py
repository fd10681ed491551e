"""Validation: what the task measures of every validation example, its mean, and its standard error."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from scaling import config
from scaling.data import corpus as corpora
from scaling.training import gradients, mesh, states, steps
from scaling.training.setups import Setup

if TYPE_CHECKING:
    from scaling.training import programs


class Draw(NamedTuple):
    """What a task draws from in validation: a number of the validation set, and the places of the examples in it."""

    seed: Any
    examples: Any


def evaluate(
    setup: Setup, params: states.Params, batch: gradients.Batch, draw: Draw | None = None
) -> dict[str, tuple[Any, Any]]:
    """What the task measures of every example of a batch, by name: values and their weights; None where all are 1."""
    if draw is not None:
        batch = steps.draw(setup, batch, draw.seed, 0, draw.examples)
    measured = setup.run.task.measure(setup.model(params), batch, setup.options(0.0))
    pairs = {name: x if isinstance(x, tuple) else (x, batch.get("weights")) for name, x in measured.items()}
    for name, (values, weights) in pairs.items():
        if weights is not None and weights.shape != values.shape:
            raise ValueError(
                f"{name!r} of the task {setup.run.task.kind!r} has values of shape {values.shape} and weights of shape "
                f"{weights.shape}; give it weights of its own, as (values, weights)"
            )
    return pairs


@dataclasses.dataclass(frozen=True)
class Validation:
    """Mean loss over the validation examples with its standard error, and bits per byte where the data have bytes.

    `metrics` are the task's others: `metric/<name>` and `metric/<name>_se`.
    """

    loss: float
    loss_se: float
    bits_per_byte: float | None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> dict[str, float | None]:
        """By the names that rows of metrics have."""
        fixed = {"loss": self.loss, "loss_se": self.loss_se, "bits_per_byte": self.bits_per_byte}
        return {**fixed, **self.metrics}


def validate(
    program: "programs.Program", params: states.Params, run: config.Run, corpus: corpora.Corpus
) -> list[Validation]:
    """What every member of a pack reaches on all validation examples."""
    examples = corpus.validation_examples(run.context)
    measured = _measured(program, params, run, corpus, examples)
    count = None if corpus.token_bytes is None else run.task.bytes_predicted(examples, corpus.token_bytes)
    results = []
    for member in range(program.members):
        mine = {name: sums.of(member) for name, sums in measured.items()}
        loss, error = mine["loss"].mean()
        metrics: dict[str, float] = {}
        for name, sums in mine.items():
            if name != "loss":
                metrics[f"metric/{name}"], metrics[f"metric/{name}_se"] = sums.mean()
        bits = None if count is None else float(mine["loss"].total() / math.log(2) / count)
        results.append(Validation(loss, error, bits, metrics))
    return results


@dataclasses.dataclass(frozen=True)
class Sums:
    """What is measured of each example in float64: its mean over `positions`, or a sum and the sum of its weights."""

    values: np.ndarray
    weights: np.ndarray | None
    positions: int

    @staticmethod
    def from_blocks(blocks: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> "Sums":
        """Of all batches (members, examples, …): what follows the examples is summed up."""
        rest = tuple(range(2, blocks[0][0].ndim))
        positions = math.prod(blocks[0][0].shape[2:])
        if blocks[0][1] is None:
            means = [values.mean(axis=rest) if rest else values for values, _ in blocks]
            return Sums(np.concatenate(means, axis=1), None, positions)
        pairs = [(values, weights) for values, weights in blocks if weights is not None]
        totals = [(values * weights).sum(axis=rest) for values, weights in pairs]
        return Sums(
            np.concatenate(totals, axis=1),
            np.concatenate([weights.sum(axis=rest) for _, weights in pairs], axis=1),
            positions,
        )

    def of(self, member: int) -> "Sums":
        """Those of one member."""
        return Sums(self.values[member], None if self.weights is None else self.weights[member], self.positions)

    def total(self) -> float:
        """The sum over all positions."""
        return self.values.sum() * (self.positions if self.weights is None else 1)

    def mean(self) -> tuple[float, float]:
        """The mean and its standard error over examples: positions within one are correlated.

        With weights the error is that of a ratio of means by linearisation (Cochran, Sampling Techniques, chapter 6).
        """
        count = len(self.values)
        if self.weights is None:
            error = self.values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
            return float(self.values.mean()), float(error)
        weight = self.weights.sum()
        ratio = self.values.sum() / weight if weight else math.nan
        rest = self.values - ratio * self.weights
        error = math.sqrt(rest @ rest * count / (count - 1)) / weight if count > 1 and weight else math.nan
        return float(ratio), float(error)


def _measured(
    program: "programs.Program", params: states.Params, run: config.Run, corpus: corpora.Corpus, examples: Any
) -> dict[str, Sums]:
    """What is measured of every example, by name, a batch of validation at a time."""
    count, size = len(next(iter(examples.values()))), program.validation_batch
    mine = mesh.rows(program.mesh, size)
    seed = np.uint32(int(corpus.validation_id[:8], 16))
    blocks: dict[str, list[Any]] = {}
    for first in range(0, count, size):
        block = {name: _pad(array[first : first + size], size)[mine] for name, array in examples.items()}
        draw = None
        if run.task.draws:
            places = np.arange(first, first + size, dtype=np.int32)[mine]
            draw = Draw(mesh.number(program.mesh, seed, np.uint32), mesh.put(program.mesh, places, ("batch",)))
        measured = jax.device_get(program.evaluate(params, program.put_batch(block), draw))
        for name, (values, weights) in measured.items():
            kept = [None if x is None else np.asarray(x, np.float64)[:, : count - first] for x in (values, weights)]
            blocks.setdefault(name, []).append(tuple(kept))
    return {name: Sums.from_blocks(each) for name, each in blocks.items()}


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """The array with rows of zeros up to `length`: shapes stay those that were compiled."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])
