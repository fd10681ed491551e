"""Many starts of one law refined at once: variable projection for starts, projected Newton to the minimum.

Everything runs in float64 on the CPU inside `precise`, whatever the rest of the process computes with. Points are
padded with weight zero to a multiple of PAD, so that one compilation serves neighbouring numbers of points.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from analysis import laws

PAD = 64
CHUNK = 32  # rows refined in one dispatch: one compilation for starts and resamples, and no row waits for 1,000
DELTA = 1e-3  # Huber's δ on log L: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3
ITERATIONS = 300
TOLERANCE = 1e-9  # predicted decrease of the objective that another Newton step would bring, relative
EXACT = 1e-12  # an objective below this is an exact fit: residuals of 1e-6 and less
FLOOR = -690.0  # log of the smallest scale that a log-searched parameter may take


class Points(NamedTuple):
    """Measurements, padded: inputs by name, log loss, and which entries are real."""

    inputs: dict[str, np.ndarray]
    log_loss: np.ndarray
    real: np.ndarray


class Refined(NamedTuple):
    theta: Float[np.ndarray, "starts parameters"]
    objective: Float[np.ndarray, " starts"]
    decrement: Float[np.ndarray, " starts"]
    converged: np.ndarray


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Float64 on the CPU for what is computed inside, leaving JAX's global configuration alone."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def points(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> Points:
    """The measurements as float64, padded by repeating the first one with weight zero."""
    count = len(loss)
    index = np.concatenate([np.arange(count), np.zeros(-count % PAD, dtype=int)])
    padded = {name: np.asarray(values, dtype=np.float64)[index] for name, values in inputs.items()}
    return Points(padded, np.log(np.asarray(loss, dtype=np.float64))[index], (np.arange(len(index)) < count) * 1.0)


def huber(residual: Any) -> Any:
    """ρ(r) = r²/2 for |r| ≤ δ, δ(|r| − δ/2) beyond (Huber 1964), written with operators for NumPy and JAX alike."""
    near = residual.clip(-DELTA, DELTA)
    return near * (residual - 0.5 * near)


def named(law: laws.Law, theta: Any) -> dict[str, Any]:
    """Parameters by name from the search's coordinates (a log for those searched on a log scale)."""
    return {
        name: jnp.exp(theta[..., i]) if parameter.log else theta[..., i]
        for i, (name, parameter) in enumerate(law.parameters)
    }


def coordinates(law: laws.Law, params: Mapping[str, np.ndarray]) -> Float[np.ndarray, "starts parameters"]:
    """The search's coordinates of parameters given by name, inside their bounds."""
    low, high = box(law)
    columns = []
    for name, parameter in law.parameters:
        values = np.atleast_1d(np.asarray(params[name], dtype=np.float64))
        columns.append(np.log(np.maximum(values, np.exp(FLOOR))) if parameter.log else values)
    return np.clip(np.stack(columns, axis=-1), low, high)


def box(law: laws.Law) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds in the search's coordinates."""
    low, high = [], []
    for _, parameter in law.parameters:
        if parameter.log:
            low.append(np.log(parameter.lower) if parameter.lower > 0 else FLOOR)
            high.append(min(np.log(parameter.upper), -FLOOR))
        else:
            low.append(parameter.lower)
            high.append(parameter.upper)
    return np.array(low), np.array(high)


def screen(law: laws.Law, data: Points) -> tuple[Float[np.ndarray, "grid parameters"], Float[np.ndarray, " grid"]]:
    """Parameters and objective over the grid of the other parameters' start values, the linear ones solved for.

    Given the others the law is Φ c with c ≥ 0: the weighted least-squares problem is solved on every subset of
    columns, the feasible solution with the least loss is kept, and the weights are made robust by iteration:
    w = ρ'(r)/r, the reweighting whose fixed point is the Huber minimum.
    """
    axes = np.meshgrid(*(law.parameter(name).start for name in law.nonlinear), indexing="ij")
    grid = {name: axis.ravel() for name, axis in zip(law.nonlinear, axes, strict=True)}
    if not law.linear:
        theta = coordinates(law, grid)
        return theta, _objectives(law, theta, data)
    real = data.real > 0
    inputs, loss = {name: values[real] for name, values in data.inputs.items()}, np.exp(data.log_loss[real])
    others = {name: values[:, None] for name, values in grid.items()}

    def column(name: str) -> np.ndarray:
        value = np.asarray(law(inputs, others | {key: float(key == name) for key in law.linear})) / loss
        return np.broadcast_to(value, (len(axes[0].ravel()), len(loss)))

    with np.errstate(all="ignore"):
        design = np.stack([column(name) for name in law.linear], axis=-1)
        scale = np.sqrt(np.sum(design**2, axis=1))
        usable = np.isfinite(scale).all(axis=1) & (scale > 0).all(axis=1)
        design, scale, grid = design[usable], scale[usable], {name: values[usable] for name, values in grid.items()}
        design = design / scale[:, None, :]
        c = _nonnegative(design, np.ones(design.shape[:2]))
        for _ in range(8):
            residual = np.log(np.maximum(np.einsum("gpi,gi->gp", design, c), 1e-300))
            c = _nonnegative(design, np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-12)))
    lifted = np.maximum(c, 1e-4) / scale  # a log-searched term that vanished gets a little back, to have a gradient
    solved = {name: lifted[:, i] if law.parameter(name).log else (c / scale)[:, i] for i, name in enumerate(law.linear)}
    theta = coordinates(law, grid | solved)
    return theta, _objectives(law, theta, data)


def _nonnegative(
    design: Float[np.ndarray, "grid points columns"], weights: Float[np.ndarray, "grid points"]
) -> Float[np.ndarray, "grid columns"]:
    """c ≥ 0 at the least Σ_p w_p (1 − Σ_i Φ_pi c_i)², by trying every subset of columns."""
    columns = design.shape[-1]
    weighted = design * weights[:, :, None]
    gram, moment = weighted.swapaxes(1, 2) @ design, weighted.sum(axis=1)
    least, best = np.full(len(design), np.inf), np.zeros((len(design), columns))
    for subset in itertools.product((0.0, 1.0), repeat=columns):
        chosen = np.array(subset)
        if not chosen.any():
            continue
        ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(columns) + np.diag(1 - chosen)
        c = np.linalg.solve(gram * np.outer(chosen, chosen) + ridge, (moment * chosen)[:, :, None])[:, :, 0] * chosen
        value = np.einsum("gi,gij,gj->g", c, gram, c) - 2 * np.sum(c * moment, axis=1)
        better = (c >= 0).all(axis=1) & (value < least)
        least, best = np.where(better, value, least), np.where(better[:, None], c, best)
    return best


def _objectives(law: laws.Law, theta: Float[np.ndarray, "grid parameters"], data: Points) -> np.ndarray:
    params = {
        name: np.exp(theta[:, i, None]) if parameter.log else theta[:, i, None]
        for i, (name, parameter) in enumerate(law.parameters)
    }
    with np.errstate(all="ignore"):
        predicted = np.asarray(law(data.inputs, params))
        return np.sum(data.real * huber(data.log_loss - np.log(np.maximum(predicted, 1e-300))), axis=1)


def starts(law: laws.Law, data: Points, count: int) -> Float[np.ndarray, "starts parameters"]:
    """The best half of `count` grid points, and as many spread over the ranks of the better half of the grid."""
    if law.starts is not None:
        real = data.real > 0
        made = law.starts({k: v[real] for k, v in data.inputs.items()}, np.exp(data.log_loss[real]))
        theta = coordinates(law, made)
        values = _objectives(law, theta, data)
    else:
        theta, values = screen(law, data)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    order = order[: max(1, int(np.isfinite(values).sum()))]
    best, rest = order[: count // 2], order[count // 2 : max(count, len(order) // 2)]
    spread = rest[np.linspace(0, len(rest) - 1, min(len(rest), count - len(best))).astype(int)]
    return theta[np.concatenate([best, spread]).astype(int)]


@functools.partial(jax.jit, static_argnums=0)
def _newton(law: laws.Law, theta: Array, data: Points, weights: Array) -> tuple[Array, Array, Array]:
    low, high = (jnp.asarray(bound) for bound in box(law))

    def one(theta: Array, weights: Array) -> tuple[Array, Array, Array]:
        def predict(t: Array) -> tuple[Array, Array]:
            predicted = jnp.log(jnp.maximum(law(data.inputs, named(law, t)), 1e-300))
            return predicted, predicted

        def slope(t: Array) -> tuple[Array, tuple[Array, Array]]:
            jacobian, predicted = jax.jacfwd(predict, has_aux=True)(t)
            return jacobian, (jacobian, predicted)

        def evaluate(t: Array) -> tuple[Array, Array, Array, Array]:
            curved, (jacobian, predicted) = jax.jacfwd(slope, has_aux=True)(t)
            residual = data.log_loss - predicted
            pull = weights * residual.clip(-DELTA, DELTA)
            inside, robust = jnp.abs(residual) <= DELTA, DELTA / jnp.maximum(jnp.abs(residual), DELTA)
            hessian = jnp.einsum("p,pi,pj->ij", weights * inside, jacobian, jacobian)
            hessian -= jnp.einsum("p,pij->ij", pull, curved)
            metric = jnp.einsum("p,pi,pj->ij", weights * robust, jacobian, jacobian)
            return jnp.sum(weights * huber(residual)), -pull @ jacobian, hessian, metric

        def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
            here, theta, candidate, damping, _, iteration = state
            there = evaluate(candidate)
            better = there[0] < here[0]
            here = tuple(jnp.where(better, new, old) for new, old in zip(there, here, strict=True))
            theta = jnp.where(better, candidate, theta)
            damping = jnp.where(better, jnp.maximum(damping * 0.1, 1e-15), jnp.maximum(damping, 1e-3) * 8)
            f, gradient, hessian, metric = here
            held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
            free = ~held[:, None] & ~held[None, :]
            scale = jnp.where(held, 1.0, jnp.sqrt(jnp.diag(metric)) + 1e-30)
            scaled, curved = (
                jnp.where(free, part / scale[:, None] / scale[None, :], jnp.eye(len(theta)))
                for part in (metric, hessian)
            )
            root = jnp.linalg.cholesky(scaled + 1e-13 * jnp.eye(len(theta)))
            half = jax.scipy.linalg.solve_triangular(root, curved, lower=True)
            whole = jax.scipy.linalg.solve_triangular(root, half.T, lower=True)
            curvature, axes = jnp.linalg.eigh(0.5 * (whole + whole.T))
            push = jax.scipy.linalg.solve_triangular(root, jnp.where(held, 0.0, gradient) / scale, lower=True)
            along, size = axes.T @ push, jnp.maximum(jnp.abs(curvature), 1e-9)
            decrement = jnp.sum(along**2 / size) / jnp.maximum(f, EXACT)
            move = jax.scipy.linalg.solve_triangular(root.T, axes @ (along / (size + damping)), lower=False) / scale
            return here, theta, jnp.clip(theta - move, low, high), damping, decrement, iteration + 1

        def unfinished(state: tuple[Any, ...]) -> Array:
            *_, damping, decrement, iteration = state
            return (iteration < ITERATIONS) & (decrement > 1e-3 * TOLERANCE) & (damping < 1e11)

        infinite, square = jnp.array(jnp.inf), jnp.eye(len(theta))
        nowhere = (infinite, jnp.zeros_like(theta), square, square)
        start = (nowhere, theta, theta, jnp.array(1.0), infinite, jnp.array(0))
        (f, *_), theta, _, _, decrement, _ = jax.lax.while_loop(unfinished, step, start)
        return theta, f, decrement

    return jax.vmap(one)(theta, weights)


def refine(law: laws.Law, theta: np.ndarray, data: Points, weights: np.ndarray) -> Refined:
    """Every row of `theta` carried to a minimum of Σ_i w_i ρ(log L_i − log f(x_i; θ)) under its own row of weights.

    A sum and not a mean (Besiroglu et al., arXiv 2404.10102). Damped projected Newton: the step is
    (|H| + λM)⁻¹ g with the exact Hessian H by automatic differentiation (its eigenvalues by magnitude in the metric M,
    so a saddle repels), M = Σ w ρ'(r)/r ∇log f ∇log fᵀ the curvature of the quadratic that majorizes Huber's loss (so
    λ ≥ 1 steps stay sane far from the minimum, where H vanishes), and bounds hold the coordinates that push against
    them. A row has converged when a further Newton step would lower its objective by
    less than TOLERANCE of it. Rows go through in chunks, the last one filled up with copies of the first row.
    """
    index = np.concatenate([np.arange(len(theta)), np.zeros(-len(theta) % CHUNK, dtype=int)])
    parts = [_newton(law, theta[rows], data, weights[rows]) for rows in np.split(index, len(index) // CHUNK)]
    found, f, decrement = (np.concatenate(part)[: len(theta)] for part in zip(*parts, strict=True))
    return Refined(found, f, decrement, np.isfinite(f) & (decrement <= TOLERANCE))
