"""How far a curve's minima are from a law's own on exactly the grid that was run, without noise.

A parabola in log N is not the law: where the grid is wide, off its centre, or the law uneven in N and D, its minimum is
off (arXiv 2603.22339). Here each budget's losses are replaced by the fitted law's, and the curves are put through them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from analysis import budgets, lines

BEYOND = 2.0  # in log N: the law's own minimum is looked for this far outside a grid
FINE = 4001  # places between, before the last three are interpolated
NOTABLE = 0.02  # relative error of N* at the largest budget
NOTABLE_EXPONENT = 0.01
CALLED = {"parabola": "parabolas", "akima": "Akima's interpolation"}


@dataclasses.dataclass(frozen=True)
class Bias:
    """What curves of one kind make of the law's own losses: a − a_law, b − b_law, and N*, D* over the law's.

    The two factors are at `flops`, the largest budget.
    """

    kind: str
    exponent_params: float
    exponent_tokens: float
    params: float
    tokens: float
    flops: float

    @property
    def notable(self) -> bool:
        """Whether N* is 2% off at the largest budget, or its exponent by 0.01."""
        return abs(np.log(self.params)) > NOTABLE or abs(self.exponent_params) > NOTABLE_EXPONENT

    def at(self, flops: float) -> float:
        """N* over the law's at another budget, along the two power laws."""
        return float(self.params * (flops / self.flops) ** self.exponent_params)

    def __str__(self) -> str:
        return (
            f"the fitted law's own losses on this grid give {CALLED[self.kind]} an exponent of N* off by "
            f"{self.exponent_params:+.4f} and N* at {self.flops:.3g} FLOPs {self.params:.3f} times the law's "
            "(arXiv 2603.22339)"
        )


def bias(cuts: Sequence[budgets.Slice], kind: str, law: Mapping[str, float]) -> Bias | None:
    """The bias of curves of this kind on these slices if E + A/N^α + B/D^β were true; None: they leave no power law."""
    minima, own = [], []
    for cut in cuts:
        exact = dataclasses.replace(cut, loss=_losses(law, cut.log_params, cut.log_tokens))
        minima.append(cut.logs(*budgets.least(exact, kind))[0])
        own.append(cut.logs(*_own(cut, law))[0])
    pairs = [pair for pair in zip(minima, own, strict=True) if not np.isnan(pair).any()]
    if len(pairs) < lines.FEWEST:
        return None
    optima = np.stack([[curve for curve, _ in pairs], [true for _, true in pairs]])
    line = lines.through(optima)
    flops = float(np.exp(optima[1, :, 0].max()))
    off, (by_curve, by_law) = line.slope[0] - line.slope[1], line.at(flops)
    factors = by_curve / by_law
    return Bias(kind, float(off[0]), float(off[1]), float(factors[0]), float(factors[1]), flops)


def _losses(law: Mapping[str, float], log_params: np.ndarray, log_tokens: np.ndarray) -> np.ndarray:
    of_size, of_data = np.exp(-law["alpha"] * log_params), np.exp(-law["beta"] * log_tokens)
    return np.asarray(law["E"] + law["A"] * of_size + law["B"] * of_data)


def _own(cut: budgets.Slice, law: Mapping[str, float]) -> tuple[Float[np.ndarray, " 1"], Float[np.ndarray, " 1"]]:
    """Where the law is least along the slice, and its loss there; NaN where it falls to the end of the search."""
    u = np.linspace(cut.u.min() - BEYOND, cut.u.max() + BEYOND, FINE)
    y = _losses(law, cut.center + u, cut.at(cut.log_tokens, u))
    i = int(y.argmin())
    if i in (0, FINE - 1):
        return np.array([np.nan]), np.array([np.nan])
    left, middle, right = y[i - 1 : i + 2]
    step = (left - right) / (2 * (left - 2 * middle + right))
    return np.array([u[i] + step * (u[1] - u[0])]), np.array([middle - (left - right) * step / 4])
