"""What the data say about the parameters of a fit: sensitivities, standard errors, what cannot be told apart."""

import dataclasses
import typing

import numpy as np
import scipy.special
from jaxtyping import Float

from analysis import solver

if typing.TYPE_CHECKING:
    from analysis import fitting

VAGUE = 1.0  # a direction known worse than this, in logs of the parameters, is not determined: a factor e either way


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnostics:
    """Local precision of a fit, in the search's coordinates (a log for parameters searched on a log scale).

    `covariance` is that of an M-estimator, s² (JᵀWJ)⁻¹ with s² = Σ ψ² / (n − p) / E[ψ′]² (Huber 1981, section 7.6);
    rows of parameters at a bound or fixed are zero. `condition` is the condition number of J scaled to unit columns,
    `standard_error` is relative for parameters searched on a log scale.
    """

    names: tuple[str, ...]
    free: tuple[str, ...]
    covariance: Float[np.ndarray, "parameters parameters"]
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


def stiffness(residual: np.ndarray, weight: np.ndarray, fit: "fitting.Fit") -> float:
    """E[ψ′(r)], smoothed: Huber's ψ′ is a box of width 2δ, narrower than the scatter of most residuals.

    The residuals' density is taken from a normal kernel of Silverman's width (1986, eq. 3.31) in place of the box's
    few members.
    """
    if fit.criterion.kind == "squared":
        return 1.0
    if fit.criterion.kind == "log_cosh":
        return float(np.average(fit.criterion.curvature(residual), weights=weight))
    spread = min(np.std(residual), np.subtract(*np.percentile(residual, [75, 25])) / 1.349) or np.std(residual)
    width = max(0.9 * spread * len(residual) ** -0.2, 1e-12)
    delta = fit.criterion.delta
    inside = scipy.special.ndtr((delta - residual) / width) - scipy.special.ndtr((-delta - residual) / width)
    return float(np.average(inside, weights=weight))


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
    singular = np.maximum(singular, 1e-300)
    stiff = stiffness(residual, weight, fit)
    freedom = max(len(residual) - int(free.sum()), 1)
    variance = float(np.sum(weight**2 * fit.criterion.psi(residual) ** 2) / freedom / max(stiff, 1e-300) ** 2)
    root = axes.T / singular / size[:, None] * np.sqrt(variance)
    whole = np.zeros((len(theta), len(theta)))
    whole[np.ix_(free, free)] = root @ root.T
    names = np.array(law.names)
    units = np.array([1.0 if p.log else max(abs(t), 1e-12) for (_, p), t in zip(law.parameters, theta, strict=True)])
    return Diagnostics(
        law.names,
        tuple(names[free].tolist()),
        whole,
        float(singular[0] / singular[-1]) if len(singular) else 1.0,
        variance,
        stiff,
        _vague(names[free], axes, np.sqrt(variance) / singular, size * units[free]),
    )


def _vague(names: np.ndarray, axes: np.ndarray, spread: np.ndarray, units: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that move together along a direction whose standard deviation is above VAGUE."""
    found = []
    for axis, sd in zip(axes, spread, strict=True):
        moved = np.abs(axis) * sd / units  # in relative units of each parameter
        if moved.max(initial=0.0) > VAGUE:
            found.append(tuple(names[moved > 0.3 * moved.max()].tolist()))
    return tuple(dict.fromkeys(found))


def rounded(value: float, error: float) -> str:
    """`value` to the digits that its standard error supports: two digits of the error, six where there is none."""
    if not np.isfinite(error) or error <= 0 or value == 0:
        return f"{value:.6g}"
    digits = int(np.floor(np.log10(abs(value)))) - int(np.floor(np.log10(error))) + 2
    return f"{value:.{min(max(digits, 1), 6)}g}"
