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
SIZES = 64  # tried between the ends, before the root is halved for
HALVINGS = 100
NARROWED = 40  # halvings of a step between two sizes, which is a few tenths of log N
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


def ends(flops: np.ndarray | float, rule: "surfaces.FlopRule", served: float) -> tuple[np.ndarray, np.ndarray]:
    """log N between which D/N is within RATIOS; `served` is T/3."""

    def size(ratio: float) -> np.ndarray:
        def left(log_n: np.ndarray) -> np.ndarray:
            n = np.exp(log_n)
            return np.asarray(np.log(flops) - np.log(rule.per_token(n)) - np.log(n * ratio + served))

        return root(left, np.full(np.shape(flops), -100.0), np.full(np.shape(flops), 200.0))

    few, many = RATIOS
    return size(many), size(few)


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
        value, slope = _slopes(law, params, n, d, n, -rule.tangent(n)[1] * total)
        return np.asarray(value), np.asarray(slope)

    low, high = (np.broadcast_to(end, count + padding[1]) for end in ends(flops, rule, served))
    sizes = low + np.linspace(0, 1, SIZES)[:, None] * (high - low)
    with solver.precise(), np.errstate(all="ignore"):  # of a sample that is not finite so far out
        value, slope = (np.stack(part) for part in zip(*map(along, sizes), strict=True))
        turns = (slope[:-1] < 0) & (slope[1:] >= 0)
        least = np.where(turns, np.fmin(value[:-1], value[1:]), np.inf)
        best, every = least.argmin(axis=0), np.arange(least.shape[1])
        log_n = root(lambda x: -along(x)[1], sizes[best, every], sizes[best + 1, every], NARROWED)
        loss = along(log_n)[0]
    n = np.exp(log_n)
    solution = np.stack([n, tokens(n)[0], loss], axis=-1)
    return np.where(turns.any(axis=0)[:, None], solution, np.nan)[:count]


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
