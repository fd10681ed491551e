"""What the data say about the parameters of a fit: sensitivities, standard errors, what cannot be told apart."""

import dataclasses
import typing

import numpy as np
import scipy.special
from jaxtyping import Float

from analysis import solver
from analysis.criteria import Criterion

if typing.TYPE_CHECKING:
    from analysis import fitting

BOXES = 16
MOST = 0.95  # leverage that a row or cluster is taken to have at most: without it a parameter might be free
VAGUE = 1.0  # a direction known worse than this, in logs of the parameters, is not determined: a factor e either way


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnostics:
    """Local precision of a fit, in the search's coordinates (a log for parameters searched on a log scale).

    `covariance` is a sandwich that neither equal scatter nor, where the fit has clusters, independent rows are assumed
    for (see `influence`); `equal_scatter` is s² (JᵀWJ)⁻¹, which assumes both, with `variance` s² = Σ w ψ² / (n − p) /
    E[ψ′]² (Huber 1981, section 7.6) and `stiffness` E[ψ′]. Rows of parameters at a bound or fixed are zero in both.
    `condition` is the condition number of J scaled to unit columns, `standard_error` is the root of the covariance's
    diagonal, relative for parameters searched on a log scale.
    """

    names: tuple[str, ...]
    free: tuple[str, ...]
    covariance: Float[np.ndarray, "parameters parameters"]
    equal_scatter: Float[np.ndarray, "parameters parameters"]
    inverse: Float[np.ndarray, "parameters parameters"]
    condition: float
    variance: float
    stiffness: float
    undetermined: tuple[tuple[str, ...], ...]

    @property
    def standard_error(self) -> dict[str, float]:
        return dict(zip(self.names, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))


def jacobian(fit: "fitting.Fit", data: solver.Points, theta: np.ndarray) -> Float[np.ndarray, "points parameters"]:
    """∂ transform(f) / ∂θ at the points by central differences (relative error about 1e-9)."""
    step = 1e-5 * np.maximum(1.0, np.abs(theta))
    moved = np.concatenate([theta + np.diag(step), theta - np.diag(step)])
    with solver.precise(), np.errstate(all="ignore"):
        params = {name: values[:, None] for name, values in solver.named(fit.law, moved).items()}
        z = fit.criterion.transform(np.asarray(fit.law(data.inputs, params), dtype=np.float64))
    z = np.broadcast_to(z, (len(moved), len(data.y)))
    return ((z[: len(theta)] - z[len(theta) :]) / (2 * step[:, None])).T


def stiffness(
    residual: Float[np.ndarray, " points"], weight: Float[np.ndarray, " points"], criterion: Criterion
) -> Float[np.ndarray, " points"]:
    """ψ′ at each residual, smoothed: Huber's ψ′ is a box of width 2δ, narrower than the scatter of most residuals.

    The box is convolved with a normal kernel of Silverman's width (1986, eq. 3.31), so that its mean is 2δ times a
    density and not a count of the few residuals inside; so is log-cosh's ψ′ = sech²(r/δ), as the mixture of boxes of
    half-width δ arcosh(1/√u), u uniform.
    """
    if criterion.kind == "squared":
        return np.ones_like(residual)
    mean = np.average(residual, weights=weight)
    deviation = np.sqrt(np.average((residual - mean) ** 2, weights=weight))
    spread = min(deviation, np.subtract(*np.percentile(residual, [75, 25])) / 1.349) or deviation
    width = max(0.9 * spread * len(residual) ** -0.2, 1e-12)
    halves = (1.0,) if criterion.kind == "huber" else np.arccosh(1 / np.sqrt((np.arange(BOXES) + 0.5) / BOXES))
    box = criterion.delta * np.asarray(halves)[:, None]
    return np.asarray(
        np.mean(scipy.special.ndtr((box - residual) / width) - scipy.special.ndtr((-box - residual) / width), axis=0)
    )


def influence(
    slopes: Float[np.ndarray, "points parameters"],
    residual: Float[np.ndarray, " points"],
    weight: Float[np.ndarray, " points"],
    criterion: Criterion,
    cluster: np.ndarray | None = None,
) -> tuple[Float[np.ndarray, "groups parameters"], Float[np.ndarray, "parameters parameters"]]:
    """How far leaving out each row, or each cluster of rows, moves the parameters, and H⁻¹.

    The sum of the moves' outer products is a covariance: (H − H_g)⁻¹ Σ_{i in g} J_i w_i ψ_i by group, with
    H = Σ w_i κ_i J_i J_iᵀ, H_g the group's part of it and κ_i the smoothed ψ′ at its own residual, which lets the
    scatter differ between rows in H too (Powell 1991, the kernel sandwich of median regression). For single rows and
    squares it is HC3 (MacKinnon and White 1985), for clusters CR3 (Bell and McCaffrey 2002). On the 240 rows of
    Besiroglu et al. the standard errors of α and β are 0.0168 and 0.0148, where resampling gives 0.0149 and 0.0203
    (0.0169 and 0.0163 from its quartiles) and the form that assumes equal scatter 0.0090 and 0.0080. 95% intervals from
    it and Student's t cover α, β and the loss at 10 times the compute in 93.6% to 97.1% (`benchmarks.calibration`).
    """
    root = slopes * np.sqrt(weight * stiffness(residual, weight, criterion))[:, None]
    size = np.sqrt(np.sum(root**2, axis=0))
    size = np.where(size > 0, size, 1.0)
    basis, singular, axes = np.linalg.svd(root / size, full_matrices=False)
    back = axes.T / _rounded_up(singular) / size[:, None]  # H⁻¹ is back backᵀ, and H the identity behind it
    pull = (slopes * (weight * criterion.psi(residual))[:, None]) @ back
    own = basis[:, :, None] * basis[:, None, :]
    if cluster is not None:
        labels = np.unique(cluster, return_inverse=True)[1]
        pull, own = (_summed(part, labels) for part in (pull, own))
    share, turn = np.linalg.eigh(own)
    along = np.einsum("gji,gj->gi", turn, pull) / (1 - np.minimum(share, MOST))
    return np.einsum("gij,gj->gi", turn, along) @ back.T, back @ back.T


def _rounded_up(singular: np.ndarray) -> np.ndarray:
    """Singular values no smaller than rounding makes them: a direction without information has a vast finite error."""
    return np.maximum(singular, max(1e-15 * singular.max(initial=0.0), 1e-60))


def _summed(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    total = np.zeros((labels.max() + 1, *rows.shape[1:]))
    np.add.at(total, labels, rows)
    return total


def diagnose(fit: "fitting.Fit") -> Diagnostics:
    """Sensitivities and precision at the optimum."""
    law, data = fit.law, fit.points()
    real = data.weight > 0
    theta = solver.coordinates(law, fit.params)[0]
    low, high = solver.box(law, fit.fixed)
    free = (theta > low + 1e-9) & (theta < high - 1e-9)
    slopes = jacobian(fit, data, theta)[real][:, free]
    weight = data.weight[real]
    residual = fit.residuals
    scaled = slopes * np.sqrt(weight)[:, None]
    size = np.sqrt(np.sum(scaled**2, axis=0))
    size = np.where(size > 0, size, 1.0)
    _, singular, axes = np.linalg.svd(scaled / size, full_matrices=False)
    singular = _rounded_up(singular)
    stiff = float(np.average(stiffness(residual, weight, fit.criterion), weights=weight))
    freedom = max(len(residual) - int(free.sum()), 1)
    variance = float(np.sum(weight * fit.criterion.psi(residual) ** 2) / freedom / max(stiff, 1e-300) ** 2)
    cluster = fit.runs["cluster"].to_numpy() if "cluster" in fit.runs else None
    moved, inverse = influence(slopes, residual, weight, fit.criterion, cluster)
    root = axes.T / singular / size[:, None] * np.sqrt(variance)
    covariance, equal, curved = np.zeros((3, len(theta), len(theta)))
    for whole, part in ((covariance, moved.T @ moved), (equal, root @ root.T), (curved, inverse)):
        whole[np.ix_(free, free)] = part
    names = np.array(law.names)
    units = np.array([1.0 if p.log else max(abs(t), 1e-12) for (_, p), t in zip(law.parameters, theta, strict=True)])
    return Diagnostics(
        law.names,
        tuple(names[free].tolist()),
        covariance,
        equal,
        curved,
        float(singular[0] / singular[-1]) if len(singular) else 1.0,
        variance,
        stiff,
        _vague(names[free], axes, np.sqrt(variance) / singular, size * units[free]),
    )


def _vague(names: np.ndarray, axes: np.ndarray, spread: np.ndarray, units: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that move together along a direction whose standard deviation is above VAGUE."""
    groups = []
    for axis, sd in zip(axes, spread, strict=True):
        moved = np.abs(axis) * sd / units  # in relative units of each parameter
        if moved.max(initial=0.0) > VAGUE:
            groups.append(tuple(names[moved > 0.3 * moved.max()].tolist()))
    return tuple(dict.fromkeys(groups))


def rounded(value: float, error: float) -> str:
    """`value` to the digits that its standard error supports: two digits of the error, six where there is none."""
    if not np.isfinite(error) or error <= 0 or value == 0:
        return f"{value:.6g}"
    digits = int(np.floor(np.log10(abs(value)))) - int(np.floor(np.log10(error))) + 2
    return f"{value:.{min(max(digits, 1), 6)}g}"
