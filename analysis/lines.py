"""Power laws through optima: N* and D* as powers of compute, straight lines in logarithms, and L* above an offset."""

import dataclasses

import numpy as np
from jaxtyping import Float

FEWEST = 3  # optima
QUANTITIES = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """Power laws N* and D*, log y = intercept + slope · log C, and L* = E + A · (C/middle)^(-α) through optima.

    The estimate comes first and the resamples after it.
    """

    intercept: Float[np.ndarray, "samples 2"]
    slope: Float[np.ndarray, "samples 2"]
    loss: Float[np.ndarray, "samples 3"]
    middle: float

    def at(self, flops: float) -> Float[np.ndarray, "samples 3"]:
        E, A, alpha = self.loss.T
        bought = np.exp(self.intercept + self.slope * np.log(flops))
        return np.column_stack([bought, E + A * (flops / self.middle) ** -alpha])

    @property
    def exponents(self) -> Float[np.ndarray, "samples 2"]:
        return self.slope

    def exponents_at(self, _: float) -> Float[np.ndarray, "samples 2"]:
        """Those of power laws are the same at every budget."""
        return self.slope


def through(
    optima: Float[np.ndarray, "samples optima 4"], precision: Float[np.ndarray, "optima 2"] | None = None
) -> Lines:
    """Least squares through every sample's optima (log C, N, D, L), NaN left out; NaN where fewer than FEWEST are left.

    `precision` weighs each optimum in the line of N and in that of D, 1/se² of log N and log D; without it all weigh
    the same, as they do in the curve of L. An optimum whose loss alone is NaN is in the two lines.
    """
    x, y = optima[:, :, 0], optima[:, :, 1:3]
    there = ~np.isnan(optima[:, :, :3]).any(axis=-1)
    weight = there[..., None] * (np.ones(2) if precision is None else precision)
    weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    x, y = np.where(there, x, 0.0), np.where(there[..., None], y, 0.0)
    mean_x, mean_y = np.einsum("soq,so->sq", weight, x), np.sum(weight * y, axis=1)
    dx = x[..., None] - mean_x[:, None]
    spread = np.sum(weight * dx**2, axis=1)
    few = (there.sum(axis=1) < FEWEST) | (spread <= 0).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.sum(weight * dx * (y - mean_y[:, None]), axis=1) / spread
    slope[few] = np.nan
    middle = float(np.mean(x[0][there[0]])) if there[0].any() else 0.0
    with_loss = there & ~np.isnan(optima[:, :, 3])
    even = with_loss / np.maximum(with_loss.sum(axis=1), 1)[:, None]
    loss = _loss_curves(x - middle, np.where(with_loss, np.exp(optima[:, :, 3]), 0.0), even)
    loss[few | (with_loss.sum(axis=1) < FEWEST)] = np.nan
    return Lines(mean_y - slope * mean_x, slope, loss, float(np.exp(middle)))


def _loss_curves(
    x: Float[np.ndarray, "samples optima"], y: Float[np.ndarray, "samples optima"], weight: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "samples 3"]:
    """E ≥ 0, A ≥ 0 and α of y = E + A exp(-αx) by weighted least squares, linear given α, which runs over a grid."""
    curves, least = np.full((len(x), 3), np.nan), np.full(len(x), np.inf)
    for alpha in np.geomspace(0.02, 1.5, 120):
        basis = np.exp(-alpha * x)
        mean_b, mean_y = np.sum(weight * basis, axis=1), np.sum(weight * y, axis=1)
        db, dy = basis - mean_b[:, None], y - mean_y[:, None]
        A = np.maximum(np.sum(weight * db * dy, axis=1) / np.maximum(np.sum(weight * db**2, axis=1), 1e-300), 0.0)
        through_zero = np.sum(weight * basis * y, axis=1) / np.maximum(np.sum(weight * basis**2, axis=1), 1e-300)
        E = mean_y - A * mean_b
        A, E = np.where(E < 0, through_zero, A), np.maximum(E, 0.0)
        error = np.sum(weight * (y - E[:, None] - A[:, None] * basis) ** 2, axis=1)
        better = error < least
        least = np.where(better, error, least)
        curves[better] = np.stack([E, A, np.full_like(E, alpha)], axis=-1)[better]
    return curves


def redrawn(
    optima: Float[np.ndarray, "optima 4"], precision: Float[np.ndarray, "optima 2"] | None, resamples: int, seed: int
) -> Float[np.ndarray, "samples optima 4"]:
    """The optima, then `resamples` sets drawn about the fitted lines, whose refits have Student's t intervals.

    Standard errors say how optima weigh against each other; the scatter about the line says how far all are off:
    s² = Σ w e² / (m − 2), divided by a χ² of m − 2 degrees of freedom over m − 2 in every draw (the posterior of a
    straight line with a flat prior; Gelman et al., Bayesian Data Analysis, section 14.2). Losses alike, with m − 3.
    """
    rng, m = np.random.default_rng(seed), len(optima)
    line = through(optima[None], precision)
    x = optima[:, :1]
    fitted = line.intercept[0] + line.slope[0] * x
    E, A, alpha = line.loss[0]
    loss = np.log(E + A * np.exp(-alpha * (x - np.log(line.middle))))
    weight = np.ones((m, 2)) if precision is None else precision / precision.mean(axis=0)
    center = np.concatenate([fitted, loss], axis=1)
    weight = np.concatenate([weight, np.ones((m, 1))], axis=1)
    free = np.array([m - 2, m - 2, max(m - 3, 1)])
    scatter = np.sqrt(np.sum(weight * (optima[:, 1:] - center) ** 2, axis=0) / free)
    scale = scatter * np.sqrt(free / rng.chisquare(free, size=(resamples, 3)))
    noise = rng.normal(size=(resamples, m, 3)) * scale[:, None] / np.sqrt(weight)
    drawn = np.concatenate([np.broadcast_to(x, (resamples, m, 1)), center + noise], axis=-1)
    return np.concatenate([optima[None], drawn])
