"""The least loss of any law of N and D along a budget, by a search in log N: for laws whose optimum no formula gives.

Along C = c(N) (D + T/3) (c the FLOPs of training on a token, T tokens of inference) log D falls by κ(N) (1 + T/(3D)) as
log N rises, κ the slope of log c, so that an optimum is where

    ∂L/∂log N = κ (1 + T/(3D)) ∂L/∂log D,

the left side less the right changing its sign from minus to plus. Of such places with D/N within RATIOS the one of the
least loss counts; the ends of that range never do: laws that bend freely, as Farseer's, may fall again far from all
runs. Everything is computed for many samples of the parameters at once.
"""

import functools
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from analysis import solver

if typing.TYPE_CHECKING:
    from analysis import forms, surfaces

RATIOS = (1e-4, 1e8)  # D/N between which an optimum is looked for
SIZES, ROUNDS = 40, 4  # between two ends, and how often the next two are neighbours of the last: 6e-6 of log N are left
HALVINGS = 100
STEPS, STRIDE, SETTLED = 30, 3.0, 1e-12  # of the search for a loss, in log C: how many, the longest, the last

Samples = Mapping[str, Float[np.ndarray, " samples"]]


def root(
    falling: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, halvings: int = HALVINGS
) -> np.ndarray:
    """Where each of many falling functions is zero, between `low` and `high`, by halving."""
    for _ in range(halvings):
        middle = (low + high) / 2
        above = falling(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def ends(flops: np.ndarray | float, rule: "surfaces.FlopRule", served: float) -> Float[np.ndarray, "2 *shape"]:
    """log N where D/N is the largest and the least of RATIOS; `served` is T/3."""
    ratio = np.reshape(RATIOS[::-1], (2, *[1] * np.ndim(flops)))

    def left(log_n: np.ndarray) -> np.ndarray:
        n = np.exp(log_n)
        return np.asarray(np.log(flops) - np.log(rule.per_token(n)) - np.log(n * ratio + served))

    start = np.full((2, *np.shape(flops)), -100.0)
    return root(left, start, start + 300, 40)


# below level 1 of optimisation such programs run many times slower, above it no faster, and compile for longer
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})
def _slopes(
    law: "forms.Law", params: dict[str, Array], n: Array, d: Array, dn: Array, dd: Array
) -> tuple[Array, Array]:
    """The law at (N, D) and its derivative along (dN, dD)."""
    value, slope = jax.jvp(lambda n, d: law({"params": n, "tokens": d}, params), (n, d), (dn, dd))
    return value, slope


def minima(
    law: "forms.Law", params: Samples, flops: np.ndarray | float, rule: "surfaces.FlopRule", served: float
) -> Float[np.ndarray, "samples 3"]:
    """N*, D* and L* of every sample at its budget, or at one for all; NaN where a sample has no optimum."""
    count = len(next(iter(params.values())))
    padding = (0, (1 << (count - 1).bit_length()) - count)  # one compiled program for neighbouring numbers of samples
    params = {name: np.pad(values, padding, mode="edge") for name, values in params.items()}
    if np.ndim(flops):
        flops = np.pad(flops, padding, mode="edge")

    def tokens(n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D, and D + T/3 of which the rest is inference."""
        total = flops / rule.per_token(n)
        return np.maximum(total - served, n * RATIOS[0]), total

    def along(log_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = np.exp(log_n)
        d, total = tokens(n)
        value, slope = _slopes(law, params, n, d, n, np.broadcast_to(-rule.tangent(n)[1] * total, n.shape))
        return np.array(value), np.array(slope)

    low, high = np.broadcast_to(ends(flops, rule, served).T, (count + padding[1], 2)).T
    every, there = np.arange(len(low)), np.ones(len(low), dtype=bool)
    with solver.precise(), np.errstate(all="ignore"):  # of a sample that is not finite so far out
        for narrowed in range(ROUNDS):
            sizes = low + np.linspace(0, 1, SIZES)[:, None] * (high - low)
            value, slope = along(sizes)
            if narrowed:  # between two places that rounding may move onto the root
                slope[0], slope[-1] = np.minimum(slope[0], -1e-300), np.maximum(slope[-1], 0)
            turns = (slope[:-1] < 0) & (slope[1:] >= 0)
            there &= turns.any(axis=0)
            first = np.where(turns, np.fmin(value[:-1], value[1:]), np.inf).argmin(axis=0)
            low, high = sizes[first, every], sizes[first + 1, every]
        falls, rises = slope[first, every], slope[first + 1, every]
        step = falls / (falls - rises) * (high - low)  # the slope is straight over so little
        n, loss = np.exp(low + step), value[first, every] + falls * step / 2
    solution = np.stack([n, tokens(n)[0], loss], axis=-1)
    return np.where(there[:, None], solution, np.nan)[:count]


def reach(
    law: "forms.Law", params: Samples, loss: float, rule: "surfaces.FlopRule", served: float, start: float
) -> Float[np.ndarray, "samples 3"]:
    """The least FLOPs whose optimum has a loss, and its N* and D*; infinite for samples that do not come to it.

    Newton's steps in log C from the budget `start`: along the optima dL*/d log C = (1 + T/(3D)) ∂L/∂log D, for at the
    optimum what N and D trade for each other does not count.
    """
    log_c = np.full(len(next(iter(params.values()))), np.log(start))
    with np.errstate(all="ignore"):  # of a sample without an optimum at some budget
        for _ in range(STEPS):
            n, d, least = minima(law, params, np.exp(log_c), rule, served).T
            with solver.precise():
                gain = np.asarray(_slopes(law, dict(params), n, d, np.zeros_like(n), d + served)[1])
            step = np.clip((loss - least) / gain, -STRIDE, STRIDE)
            log_c = log_c + step
            if not (np.abs(step) > SETTLED).any():
                break
        solution = np.stack([np.exp(log_c), n, d], axis=-1)
        return np.where((np.abs(loss / least - 1) < 1e-9)[:, None], solution, np.inf)
