"""Laws of one curve fitted to its beginnings, and how far each of them then missed what came next.

A member is a law and a memory: with a memory of m, a point at x weighs (x / x_end)^(1/m) in a fit that ends at x_end,
so that a point counts e times less for every m e-folds of x that it lies behind the end. All the fits of a law, over
memories and ends, are rows of one refinement: another curve of as many points compiles nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from analysis import forms, solver
from analysis.criteria import Criterion

ROBUST = Criterion("huber")  # of log y
STARTS = 4
LEAST = 5  # distinct x below the first end: M2 and M3 have three parameters
ENDS = 6
DECAY = 0.8  # what a back-test counts beside the next later one: a curve's end says more about what follows it
LEVEL = 1e-14  # least mean squared error of log y that is told apart


@dataclasses.dataclass(frozen=True, eq=False)
class Tracks:
    """Every member fitted up to every end; `ends[0]` is the largest x, the others the back-tests', newest first."""

    laws: tuple[forms.Law, ...]
    memories: tuple[float, ...]
    scale: float
    ends: Float[np.ndarray, " ends"]
    theta: tuple[Float[np.ndarray, "memories ends parameters"], ...]

    @property
    def members(self) -> list[tuple[str, float]]:
        return [(law.name, memory) for law in self.laws for memory in self.memories]

    def log_predictions(self, x: np.ndarray, end: int | None = None) -> np.ndarray:
        """log y of every member at `x`: (members, ends, points), or (members, points) of one end."""
        logs = []
        with solver.precise(), np.errstate(all="ignore"):
            for law, theta in zip(self.laws, self.theta, strict=True):
                rows = theta if end is None else theta[:, end]
                params = {name: np.asarray(values)[..., None] for name, values in solver.named(law, rows).items()}
                value = np.asarray(law({law.inputs[0]: np.asarray(x) / self.scale}, params), dtype=np.float64)
                logs.append(np.log(np.broadcast_to(value, (*rows.shape[:-1], len(x)))))
        return np.concatenate(logs)


def ends(x: np.ndarray, horizon: float, least: int = LEAST) -> Float[np.ndarray, " ends"]:
    """Where back-tests of forecasts up to `horizon` times the largest x seen can end, newest first, at most ENDS.

    Each has `least` distinct x up to it, the curve goes on for half the horizon (in log x) at least, and two are a
    third of it apart: nearer ones would count the same points again.
    """
    sizes, slack = np.unique(x), 1 + 1e-9
    chosen: list[float] = []
    for last in sizes[least - 1 :][::-1]:
        goes_on = sizes[-1] * slack >= last * horizon**0.5
        met = ((sizes > last) & (sizes <= last * horizon * slack)).any()
        apart = not chosen or chosen[-1] * slack >= last * horizon ** (1 / 3)
        if goes_on and met and apart:
            chosen.append(float(last))
    return np.array(chosen[:ENDS])


def held_out(x: np.ndarray, ends: np.ndarray, horizon: float) -> Bool[np.ndarray, "ends points"]:
    """The points that each back-test predicts: beyond its end, up to `horizon` times as far."""
    return (x > ends[:, None]) & (x <= ends[:, None] * horizon * (1 + 1e-9))


def train(
    laws: Sequence[forms.Law], memories: Sequence[float], x: np.ndarray, y: np.ndarray, back: np.ndarray
) -> Tracks:
    """Every law at every memory, fitted to the points up to the largest x and up to each of `back`."""
    last = np.concatenate([[x.max()], back])
    scale = float(np.exp(np.log(x).mean()))  # the laws see x around 1: its units cannot matter
    behind = np.log(x)[None, None, :] - np.log(last)[None, :, None]
    weights = np.where(behind <= 1e-12, np.exp(behind / np.asarray(memories)[:, None, None]), 0.0)
    fitted = [_refined(law, x / scale, y, weights) for law in laws]
    return Tracks(tuple(laws), tuple(memories), scale, last, tuple(fitted))


def _refined(
    law: forms.Law, x: np.ndarray, y: np.ndarray, weights: Float[np.ndarray, "memories ends points"]
) -> Float[np.ndarray, "memories ends parameters"]:
    """The best of the starts' minima under every row of weights; starts are made once for every end."""
    memories, count, size = weights.shape
    low, high = solver.box(law)
    name = law.inputs[0]
    with solver.precise():
        data = solver.points({name: x}, y)
        begun = []
        for end in range(count):
            starts = solver.starts(law, solver.points({name: x}, y, weights[memories // 2, end]), STARTS, ROBUST)
            begun.append(starts[np.arange(STARTS) % len(starts)])
        rows = np.tile(np.stack(begun), (memories, 1, 1, 1)).reshape(memories * count * STARTS, -1)
        padded = np.zeros((memories, count, len(data.weight)))
        padded[:, :, :size] = weights
        weighted = np.repeat(padded.reshape(memories * count, -1), STARTS, axis=0)
        refined = solver.refine(law, rows, data, weighted, ROBUST, low, high)
    objective = np.where(np.isfinite(refined.objective), refined.objective, np.inf).reshape(-1, STARTS)
    best = refined.theta.reshape(memories * count, STARTS, -1)[np.arange(memories * count), objective.argmin(axis=1)]
    return best.reshape(memories, count, -1)


def shares(errors: Float[np.ndarray, "members backtests"], count: np.ndarray) -> Float[np.ndarray, " members"]:
    """Each member's share in the forecast from its mean squared errors of log y in back-tests, newest first.

    `count` are the back-tests' weights W_j. The share is (Σ W_j e_j² / W)^(−W / 2), W = Σ W_j: the greatest likelihood
    of W normal errors of unknown variance, so that a member is believed the more the more tests it did well in, and
    one test tells little.
    """
    total = count.sum()
    if not total:
        return np.full(len(errors), 1 / len(errors))
    mean = errors @ count / total + LEVEL
    raised = (mean / mean.min()) ** (-total / 2)
    return np.asarray(raised / raised.sum())
