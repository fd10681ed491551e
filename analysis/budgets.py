"""Runs by compute budget, and approach 2's parabola at each budget."""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import checks

SAME_BUDGET = 0.05  # unlabelled runs whose FLOPs are within 5% of the next are one budget
NEAR = np.log(10.0)  # sizes within a factor of 10 of the best one enter the parabola: beyond, it is no parabola
FEWEST_SIZES = 4  # a parabola has three parameters
WIDE = np.log(20.0)  # a grid wider than this, largest size over smallest, biases a parabola (arXiv 2603.22339)


@dataclasses.dataclass(frozen=True)
class Parabola:
    """One budget's L = c0 + c1 u + c2 u², u = log N − `center`: its minimum, or why it has none that counts."""

    budget: float
    flops: float
    coefficients: tuple[float, float, float]
    center: float
    params: float
    tokens: float
    loss: float
    low: float
    high: float
    sizes: int
    runs: int
    refused: str
    warning: str

    def curve(self, params: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        u = np.log(params) - self.center
        c0, c1, c2 = self.coefficients
        return c0 + c1 * u + c2 * u**2


def costed(frame: pd.DataFrame, params: str, tokens: str, flops: str) -> tuple[pd.DataFrame, str]:
    """The frame with a column of FLOPs: its own, or 6ND (Kaplan et al. 2020, arXiv 2001.08361), then with a note."""
    if flops in frame.columns or not {params, tokens} <= set(frame.columns):
        return frame, ""
    note = (
        f"{flops} = 6 · {params} · {tokens} (Kaplan et al. 2020, arXiv 2001.08361): the table has no column {flops!r}"
    )
    n, d = (pd.to_numeric(frame[name], errors="coerce") for name in (params, tokens))  # text is refused where it counts
    return frame.assign(**{flops: 6.0 * n * d}), note


def labelled(frame: pd.DataFrame) -> bool:
    """Whether any run says which budget of a grid it belongs to."""
    return "flops_budget" in frame.columns and bool(frame["flops_budget"].notna().any())


def unlabelled(frame: pd.DataFrame) -> tuple[str, ...]:
    """What to say of runs without a budget beside runs that have one; they are in no grid."""
    missing = int(frame["flops_budget"].isna().sum()) if labelled(frame) else 0
    return (f"{missing} runs without flops_budget, beside {len(frame) - missing} that have one",) if missing else ()


def label(frame: pd.DataFrame, flops: Float[np.ndarray, " runs"]) -> Float[np.ndarray, " runs"]:
    """Each run's budget: `flops_budget` where there is one (NaN: in no grid), else runs of nearly equal FLOPs."""
    if labelled(frame):
        return checks.numbers(frame, "flops_budget")
    order = np.argsort(flops)
    steps = np.diff(np.log(flops[order])) > SAME_BUDGET
    group = np.empty(len(flops), dtype=int)
    group[order] = np.concatenate([[0], np.cumsum(steps)])
    middle = np.array([np.exp(np.log(flops[group == g]).mean()) for g in range(group.max() + 1)])
    return middle[group]


def fit_weighted(
    u: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], weights: Float[np.ndarray, "resamples points"]
) -> Float[np.ndarray, "resamples 3"]:
    """Least-squares parabolas c0 + c1 u + c2 u² under every row of weights; NaN where three sizes are not left."""
    powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
    gram = np.einsum("rp,pi,pj->rij", weights, powers, powers)
    moment = np.einsum("rp,pi,p->ri", weights, powers, y)
    sizes = np.stack([weights[:, u == size].sum(axis=1) > 0 for size in np.unique(u)]).sum(axis=0)
    enough = sizes >= 3
    solved = np.full((len(weights), 3), np.nan)
    solved[enough] = np.linalg.solve(gram[enough], moment[enough][:, :, None])[:, :, 0]
    return solved


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

    @property
    def u(self) -> Float[np.ndarray, " points"]:
        return self.log_params - self.center

    def at(self, values: Float[np.ndarray, " points"], u: np.ndarray) -> np.ndarray:
        """A smooth logged quantity of the grid (tokens, FLOPs) read off at size u by a quadratic through the grid."""
        degree = min(2, len(np.unique(self.u)) - 1)
        return np.polyval(np.polyfit(self.u, values, degree), u)


def slices(
    frame: pd.DataFrame, params: str, tokens: str, flops: str, loss: str
) -> tuple[list[Slice], tuple[str, ...], tuple[str, ...]]:
    """The budgets of a frame in increasing order, the budgets of unequal FLOPs, and what is in no budget, with reasons.

    Runs of one budget whose FLOPs differ by over 20% are no slice of equal compute; neither is a single run.
    """
    n, d, c, y = (np.log(checks.column(frame, name, "iso-FLOP curves")) for name in (params, tokens, flops, loss))
    budget = label(frame, np.exp(c))
    found: list[Slice] = []
    unequal: list[str] = []
    single = 0
    for value in np.unique(budget[~np.isnan(budget)]):
        mine = budget == value
        if mine.sum() < 2:
            single += 1
            continue
        if np.ptp(c[mine]) > 4 * SAME_BUDGET:
            times = np.exp(np.ptp(c[mine]))
            unequal.append(f"budget {value:.3g}: the FLOPs of its {mine.sum()} runs differ by a factor {times:.3g}")
            continue
        sizes = np.unique(n[mine])
        mean = np.array([np.exp(y[mine & (n == size)]).mean() for size in sizes])
        best = sizes[mean.argmin()]
        edge = "smallest" if best == sizes[0] else "largest" if best == sizes[-1] else ""
        near = mine & (np.abs(n - best) <= NEAR)
        log_n = n[near]
        found.append(
            Slice(value, log_n, d[near], c[near], np.exp(y[near]), float(np.mean(log_n)), int(mine.sum()), edge)
        )
    alone = (f"{single} budgets with one run only",) if single else ()
    return found, tuple(unequal), (*alone, *unlabelled(frame))


def parabola(cut: Slice) -> Parabola:
    """The parabola through one budget; `refused` says why its minimum does not count, "" where it does."""
    u = cut.u
    sizes = np.unique(u)
    low, high = float(sizes[0]), float(sizes[-1])
    c = fit_weighted(u, cut.loss, np.ones((1, len(u))))
    at = float(minimum(c, low, high)[0])
    refused = warning = ""
    if len(sizes) < FEWEST_SIZES:
        refused = f"{len(sizes)} sizes; a parabola needs at least {FEWEST_SIZES}"
    elif c[0, 2] <= 0:
        refused = "the parabola opens downward: no minimum"
    elif np.isnan(at):
        power = (cut.center - c[0, 1] / (2 * c[0, 2])) / np.log(10)
        refused = f"the parabola's minimum, N = 10^{power:.3g}, is outside the grid"
    elif cut.best_is_edge:
        refused = f"the {cut.best_is_edge} size is the best one: the minimum is at the edge of the grid"
    elif len(sizes) < 5:
        warning = f"{len(sizes)} sizes; at least five are wanted"
    elif high - low > WIDE:
        warning = f"sizes span more than a factor {np.exp(WIDE):.0f}: a parabola is biased there (arXiv 2603.22339)"
    elif abs(at - (low + high) / 2) > 0.25 * (high - low):
        warning = "the minimum is far from the grid's middle: a parabola is biased there (arXiv 2603.22339)"
    if refused:
        at = np.nan
    u_at = np.array([at])
    return Parabola(
        budget=float(cut.budget),
        flops=float(np.exp(cut.at(cut.log_flops, u_at))[0]) if not refused else float(np.exp(cut.log_flops.mean())),
        coefficients=tuple(float(v) for v in c[0]),  # type: ignore[arg-type]
        center=cut.center,
        params=float(np.exp(cut.center + at)),
        tokens=float(np.exp(cut.at(cut.log_tokens, u_at))[0]) if not refused else float("nan"),
        loss=float(c[0, 0] + c[0, 1] * at + c[0, 2] * at**2),
        low=float(np.exp(cut.center + low)),
        high=float(np.exp(cut.center + high)),
        sizes=len(sizes),
        runs=cut.runs,
        refused=refused,
        warning=warning,
    )
