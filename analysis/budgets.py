"""Runs by compute budget, and the minimum of each budget: of a parabola (approach 2), or of Akima's interpolation."""

import abc
import dataclasses
import typing
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import interpolate

from analysis import checks

SAME_BUDGET = 0.05  # unlabelled runs whose FLOPs are within 5% of the next are one budget
UNEQUAL = 4 * SAME_BUDGET  # runs of one budget whose FLOPs differ by more are no slice of equal compute
NEAR = np.log(10.0)  # sizes within a factor of 10 of the best one enter the parabola: beyond, it is no parabola
FEWEST_SIZES = 4  # a parabola has three parameters
WIDE = np.log(20.0)  # a grid wider than this, largest size over smallest, biases a parabola (arXiv 2603.22339)


@dataclasses.dataclass(frozen=True)
class Minimum(abc.ABC):
    """The least loss of one budget as its curve over log N has it; `refused` says why it does not count, or is ""."""

    budget: float
    flops: float
    params: float
    tokens: float
    loss: float
    low: float
    high: float
    sizes: int
    runs: int
    refused: str
    warning: str

    @abc.abstractmethod
    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """The loss at these sizes; between `low` and `high` it is meant."""


@dataclasses.dataclass(frozen=True)
class Parabola(Minimum):
    """L = c0 + c1 u + c2 u², u = log N − `center`, by least squares (Hoffmann et al. 2022, approach 2)."""

    coefficients: tuple[float, float, float]
    center: float

    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        u = np.log(params) - self.center
        c0, c1, c2 = self.coefficients
        return c0 + c1 * u + c2 * u**2


@dataclasses.dataclass(frozen=True, eq=False)
class Akima(Minimum):
    """Log loss between the sizes by Akima's cubics in log N (Porian et al. 2024, arXiv 2406.19146, their code)."""

    log_params: Float[np.ndarray, " sizes"]
    log_loss: Float[np.ndarray, " sizes"]

    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        return np.exp(interpolate.Akima1DInterpolator(self.log_params, self.log_loss)(np.log(params)))


def labelled(frame: pd.DataFrame) -> bool:
    """Whether any run says which budget of a grid it belongs to."""
    return "flops_budget" in frame.columns and bool(frame["flops_budget"].notna().any())


def unlabelled(frame: pd.DataFrame) -> tuple[str, ...]:
    """What to say of runs without a budget beside runs that have one; they are in no grid."""
    if not labelled(frame) and "flops_budget" in frame.columns:
        return ("column 'flops_budget': it is empty, and budgets are runs of nearly equal FLOPs",)
    missing = int(frame["flops_budget"].isna().sum()) if labelled(frame) else 0
    return (f"{missing} runs without flops_budget, beside {len(frame) - missing} that have one",) if missing else ()


def label(frame: pd.DataFrame, flops: Float[np.ndarray, " runs"]) -> Float[np.ndarray, " runs"]:
    """Each run's budget: `flops_budget` where there is one (NaN: in no grid), else runs of nearly equal FLOPs."""
    if labelled(frame):
        return checks.numbers(frame, "flops_budget")
    group = nearby(flops)
    middle = np.array([np.exp(np.log(flops[group == g]).mean()) for g in range(group.max() + 1)])
    return middle[group]


def nearby(values: Float[np.ndarray, " runs"]) -> np.ndarray:
    """A number for each run, from 0 with the smallest values: runs within SAME_BUDGET of the next are one group."""
    order = np.argsort(values)
    steps = np.diff(np.log(values[order])) > SAME_BUDGET
    group = np.empty(len(values), dtype=int)
    group[order] = np.concatenate([[0], np.cumsum(steps)])
    return group


def parabolas(
    u: Float[np.ndarray, " points"], losses: Float[np.ndarray, "samples points"]
) -> Float[np.ndarray, "samples 3"]:
    """Least-squares parabolas c0 + c1 u + c2 u² through every row of losses; NaN where there are no three sizes."""
    if len(np.unique(u)) < 3:
        return np.full((len(losses), 3), np.nan)
    return np.asarray(losses @ np.linalg.pinv(np.stack([np.ones_like(u), u, u**2], axis=-1)).T)


def minimum(coefficients: Float[np.ndarray, "resamples 3"], low: float, high: float) -> Float[np.ndarray, " resamples"]:
    """Where each parabola is least; NaN where it opens downward or is least outside (low, high)."""
    c1, c2 = coefficients[:, 1], coefficients[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
        return np.where((at > low) & (at < high), at, np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """The runs of one budget that are near its best size, in logarithms."""

    budget: float
    log_params: Float[np.ndarray, " points"]
    log_tokens: Float[np.ndarray, " points"]
    log_flops: Float[np.ndarray, " points"]
    loss: Float[np.ndarray, " points"]
    center: float
    runs: int
    best_is_edge: str
    rows: np.ndarray  # where the points stand in the frame

    @property
    def u(self) -> Float[np.ndarray, " points"]:
        return self.log_params - self.center

    def at(self, values: Float[np.ndarray, " points"], u: np.ndarray) -> np.ndarray:
        """A smooth logged quantity of the grid (tokens, FLOPs) read off at size u by a quadratic through the grid."""
        degree = min(2, len(np.unique(self.u)) - 1)
        return np.polyval(np.polyfit(self.u, values, degree), u)

    def logs(self, u: np.ndarray, loss: np.ndarray) -> Float[np.ndarray, "places 4"]:
        """log C, log N, log D and log L of places u on the slice with these losses."""
        with np.errstate(invalid="ignore"):
            columns = [self.at(self.log_flops, u), self.center + u, self.at(self.log_tokens, u), np.log(loss)]
        return np.stack(columns, axis=-1)


def slices(
    frame: pd.DataFrame, params: str, tokens: str, flops: str, loss: str
) -> tuple[list[Slice], tuple[str, ...], tuple[str, ...]]:
    """The budgets of a frame in increasing order, the budgets of unequal FLOPs, and what is in no budget, with reasons.

    Runs of one budget whose FLOPs differ by over 20% are no slice of equal compute; neither is a single run.
    """
    n, d, c, y = (np.log(checks.column(frame, name, "iso-FLOP curves")) for name in (params, tokens, flops, loss))
    budget = label(frame, np.exp(c))
    cuts: list[Slice] = []
    unequal: list[str] = []
    single = 0
    for value in np.unique(budget[~np.isnan(budget)]):
        mine = budget == value
        if mine.sum() < 2:
            single += 1
            continue
        if np.ptp(c[mine]) > UNEQUAL:
            times = np.exp(np.ptp(c[mine]))
            unequal.append(f"budget {value:.3g}: the FLOPs of its {mine.sum()} runs differ by a factor {times:.3g}")
            continue
        sizes = np.unique(n[mine])
        mean = np.array([np.exp(y[mine & (n == size)]).mean() for size in sizes])
        best = sizes[mean.argmin()]
        edge = "smallest" if best == sizes[0] else "largest" if best == sizes[-1] else ""
        near = mine & (np.abs(n - best) <= NEAR)
        log_n = n[near]
        cuts.append(
            Slice(
                value,
                log_n,
                d[near],
                c[near],
                np.exp(y[near]),
                float(np.mean(log_n)),
                int(mine.sum()),
                edge,
                np.flatnonzero(near),
            )
        )
    alone = (f"{single} budgets with one run only",) if single else ()
    return cuts, tuple(unequal), (*alone, *unlabelled(frame))


def least_of(
    cut: Slice, losses: Float[np.ndarray, "samples points"]
) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
    """Where each row's parabola is least, in u = log N − center, and its loss there; NaN: nowhere on the grid."""
    u = cut.u
    c = parabolas(u, losses)
    at = minimum(c, float(u.min()), float(u.max()))
    return at, c[:, 0] + c[:, 1] * at + c[:, 2] * at**2


def least(cut: Slice, kind: str) -> tuple[Float[np.ndarray, " 1"], Float[np.ndarray, " 1"]]:
    """Where the curve of this kind is least, in u, and its loss there; NaN where that is an end of the grid."""
    if kind == "parabola":
        return least_of(cut, cut.loss[None])
    u, log_loss = _sizes(cut)
    between = interpolate.Akima1DInterpolator(u, log_loss)
    flat = between.derivative().roots(extrapolate=False)
    places = np.concatenate([u, flat[np.isfinite(flat)]])
    at = places[between(places).argmin()]
    at = np.array([at if u[0] < at < u[-1] else np.nan])
    return at, np.exp(between(at))


def _sizes(cut: Slice) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, " sizes"]]:
    """The sizes of a slice, in u, and the mean log loss of each."""
    u = np.unique(cut.u)
    return u, np.array([np.log(cut.loss[cut.u == size]).mean() for size in u])


def known(kind: str) -> None:
    """ValueError unless `kind` is one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"minimum = {kind!r}: it is found by one of {', '.join(map(repr, KINDS))}; name one")


def optimum(cut: Slice, kind: str) -> Minimum:
    """One budget's minimum by a curve of this kind, one of KINDS."""
    return KINDS[kind](cut)


def parabola(cut: Slice) -> Parabola:
    """The parabola through one budget."""
    u = cut.u
    low, high = float(u.min()), float(u.max())
    c = parabolas(u, cut.loss[None])
    at = float(minimum(c, low, high)[0])
    refused = _too_few(cut)
    if not refused and c[0, 2] <= 0:
        refused = "the parabola opens downward: no minimum"
    elif not refused and np.isnan(at):
        power = (cut.center - c[0, 1] / (2 * c[0, 2])) / np.log(10)
        refused = f"the parabola's minimum, N = 10^{power:.3g}, is outside the grid"
    refused = refused or _at_edge(cut)
    warning = _few(cut)
    if not warning and high - low > WIDE:
        warning = f"sizes span more than a factor {np.exp(WIDE):.0f}: a parabola is biased there (arXiv 2603.22339)"
    elif not warning and abs(at - (low + high) / 2) > 0.25 * (high - low):
        warning = "the minimum is far from the grid's middle: a parabola is biased there (arXiv 2603.22339)"
    at = np.nan if refused else at
    loss = float(c[0, 0] + c[0, 1] * at + c[0, 2] * at**2)
    coefficients = (float(c[0, 0]), float(c[0, 1]), float(c[0, 2]))
    return Parabola(**_common(cut, at, loss, refused, warning), coefficients=coefficients, center=cut.center)


def akima(cut: Slice) -> Akima:
    """Akima's curve through the mean log losses of one budget's sizes."""
    u, log_loss = _sizes(cut)
    refused = _too_few(cut) or _at_edge(cut)
    at, loss = np.nan, np.nan
    if not refused:
        at, loss = (float(v[0]) for v in least(cut, "akima"))
        refused = "the interpolated loss is least at the edge of the grid" if np.isnan(at) else ""
    return Akima(**_common(cut, at, loss, refused, _few(cut)), log_params=cut.center + u, log_loss=log_loss)


def _too_few(cut: Slice) -> str:
    sizes = len(np.unique(cut.u))
    return f"{sizes} sizes; a minimum needs at least {FEWEST_SIZES}" if sizes < FEWEST_SIZES else ""


def _at_edge(cut: Slice) -> str:
    reason = f"the {cut.best_is_edge} size is the best one: the minimum is at the edge of the grid"
    return reason if cut.best_is_edge else ""


def _few(cut: Slice) -> str:
    sizes = len(np.unique(cut.u))
    return f"{sizes} sizes; at least five are wanted" if sizes < 5 else ""


def _common(cut: Slice, at: float, loss: float, refused: str, warning: str) -> dict[str, typing.Any]:
    place = np.array([at])
    return {
        "budget": float(cut.budget),
        "flops": float(np.exp(cut.log_flops.mean() if refused else cut.at(cut.log_flops, place)[0])),
        "params": float(np.exp(cut.center + at)),
        "tokens": float("nan") if refused else float(np.exp(cut.at(cut.log_tokens, place)[0])),
        "loss": loss,
        "low": float(np.exp(cut.center + cut.u.min())),
        "high": float(np.exp(cut.center + cut.u.max())),
        "sizes": len(np.unique(cut.u)),
        "runs": cut.runs,
        "refused": refused,
        "warning": warning,
    }


KINDS: dict[str, Callable[[Slice], Minimum]] = {"parabola": parabola, "akima": akima}
