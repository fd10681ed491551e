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
DELTA = 1e-3  # Huber's δ on log L: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3
ITERATIONS = 300
TOLERANCE = 1e-9  # predicted decrease of the objective that another Newton step would bring, relative
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
    """ρ(r) = r²/2 for |r| ≤ δ, δ(|r| − δ/2) beyond (Huber 1964)."""
    size = jnp.abs(residual)
    return jnp.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))


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


def objective(law: laws.Law, theta: Any, data: Points, weights: Any) -> Any:
    """Σ_i w_i ρ(log L_i − log f(x_i; θ)): a sum and not a mean, after PRACTICES 15 (arXiv 2404.10102)."""
    predicted = law(data.inputs, named(law, theta))
    residual = data.log_loss - jnp.log(jnp.maximum(predicted, 1e-300))
    return jnp.sum(weights * huber(residual))


@functools.partial(jax.jit, static_argnums=0)
def _screen(law: laws.Law, grid: dict[str, Array], data: Points) -> tuple[Array, Array]:
    """Parameters and objective at every grid point of the exponents, the linear parameters solved for.

    Given the exponents the law is Φ c with c ≥ 0. The weighted least-squares problem is solved on every subset of
    columns (there are at most 2^k − 1), the feasible solution with the least loss is kept, and the weights are made
    robust by iteration: w = ρ'(r)/r, the reweighting for which the fixed point is the Huber minimum.
    """
    subsets = jnp.array([s for s in itertools.product((0.0, 1.0), repeat=len(law.linear)) if any(s)])
    loss = jnp.exp(data.log_loss)

    def column(name: str, exponents: dict[str, Array]) -> Array:
        unit = {key: jnp.array(1.0 if key == name else 0.0) for key in law.linear}
        return law(data.inputs, exponents | unit) / loss

    def one(exponents: dict[str, Array]) -> tuple[Array, Array]:
        design = jnp.stack([column(name, exponents) for name in law.linear], axis=-1)
        scale = jnp.sqrt(jnp.sum(data.real[:, None] * design**2, axis=0)) + 1e-300
        design = design / scale

        def solve(weights: Array) -> Array:
            gram = jnp.einsum("pi,p,pj->ij", design, weights, design)
            moment = jnp.einsum("pi,p->i", design, weights)
            ridge = 1e-12 * jnp.trace(gram)

            def restricted(subset: Array) -> tuple[Array, Array]:
                masked = gram * subset[:, None] * subset[None, :] + jnp.diag(1.0 - subset + ridge)
                c = jnp.linalg.solve(masked, moment * subset) * subset
                return c, jnp.where(jnp.all(c >= 0), c @ gram @ c - 2 * c @ moment, jnp.inf)

            solutions, values = jax.vmap(restricted)(subsets)
            return solutions[jnp.argmin(values)]

        def reweight(_: int, c: Array) -> Array:
            size = jnp.abs(jnp.log(jnp.maximum(design @ c, 1e-300)))
            return solve(data.real * jnp.minimum(1.0, DELTA / jnp.maximum(size, 1e-12)))

        c = jax.lax.fori_loop(0, 8, reweight, solve(data.real)) / scale
        params = exponents | {name: c[i] for i, name in enumerate(law.linear)}
        floor = 1e-4 / scale  # a term that vanished gets a small share back, or its gradient would vanish too
        lifted = {
            name: jnp.maximum(params[name], floor[law.linear.index(name)])
            if name in law.linear and parameter.log
            else params[name]
            for name, parameter in law.parameters
        }
        theta = jnp.stack([jnp.log(lifted[name]) if p.log else lifted[name] for name, p in law.parameters])
        return theta, objective(law, theta, data, data.real)

    return jax.vmap(one)(grid)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(law: laws.Law, theta: Array, data: Points) -> Array:
    return jax.vmap(lambda t: objective(law, t, data, data.real))(theta)


def starts(law: laws.Law, data: Points, count: int) -> Float[np.ndarray, "starts parameters"]:
    """The best half of `count` grid points, and as many spread over the ranks of the better half of the grid."""
    if law.starts is not None:
        real = data.real > 0
        made = law.starts({k: v[real] for k, v in data.inputs.items()}, np.exp(data.log_loss[real]))
        theta = coordinates(law, made)
        values = np.asarray(_evaluate(law, theta, data))
    else:
        free = [name for name in law.names if name not in law.linear]
        axes = np.meshgrid(*(law.parameter(name).start for name in free), indexing="ij")
        grid = {name: axis.ravel() for name, axis in zip(free, axes, strict=True)}
        if law.linear:
            theta, values = (np.asarray(part) for part in _screen(law, grid, data))
        else:
            theta = coordinates(law, grid)
            values = np.asarray(_evaluate(law, theta, data))
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    order = order[: max(1, int(np.isfinite(values).sum()))]
    best, rest = order[: count // 2], order[count // 2 : max(count, len(order) // 2)]
    spread = rest[np.linspace(0, len(rest) - 1, min(len(rest), count - len(best))).astype(int)]
    low, high = box(law)
    return np.clip(theta[np.concatenate([best, spread]).astype(int)], low, high)


@functools.partial(jax.jit, static_argnums=0)
def _newton(law: laws.Law, theta: Array, data: Points, weights: Array) -> tuple[Array, Array, Array, Array]:
    low, high = (jnp.asarray(bound) for bound in box(law))

    def one(theta: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
        def value(t: Array) -> Array:
            return objective(law, t, data, weights)

        def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
            theta, f, damping, _, iteration = state
            gradient, hessian = jax.grad(value)(theta), jax.hessian(value)(theta)
            held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
            gradient = jnp.where(held, 0.0, gradient)
            free = ~held[:, None] & ~held[None, :]
            scale = jnp.where(held, 1.0, jnp.sqrt(jnp.abs(jnp.diag(hessian))) + 1e-30)
            scaled = jnp.where(free, hessian / scale[:, None] / scale[None, :], jnp.eye(len(theta)))
            curvature, axes = jnp.linalg.eigh(scaled)
            slope = axes.T @ (gradient / scale)
            size = jnp.maximum(jnp.abs(curvature), 1e-14)
            decrement = jnp.sum(slope**2 / size)
            move = (axes @ (slope / (size + damping))) / scale
            candidate = jnp.clip(theta - move, low, high)
            there = value(candidate)
            better = there < f
            return (
                jnp.where(better, candidate, theta),
                jnp.where(better, there, f),
                jnp.clip(jnp.where(better, damping * 0.1, jnp.maximum(damping, 1e-6) * 8), 1e-15, 1e12),
                decrement / jnp.maximum(f, 1e-30),
                iteration + 1,
            )

        def unfinished(state: tuple[Array, ...]) -> Array:
            _, _, damping, decrement, iteration = state
            return (iteration < ITERATIONS) & (decrement > 1e-3 * TOLERANCE) & (damping < 1e11)

        start = (theta, value(theta), jnp.array(1e-3), jnp.array(jnp.inf), jnp.array(0))
        theta, f, _, decrement, iteration = jax.lax.while_loop(unfinished, step, start)
        return theta, f, decrement, iteration

    return jax.vmap(one)(theta, weights)


def refine(law: laws.Law, theta: np.ndarray, data: Points, weights: np.ndarray) -> Refined:
    """Every row of `theta` carried to a minimum under its own row of weights, by damped projected Newton.

    Steps use |H| (eigenvalues by magnitude, so a saddle repels), gradient and Hessian by automatic differentiation,
    and bounds hold the coordinates that push against them. A row has converged when a further Newton step would
    lower its objective by less than TOLERANCE of it.
    """
    theta, f, decrement, _ = (np.asarray(part) for part in _newton(law, theta, data, weights))
    return Refined(theta, f, decrement, np.isfinite(f) & (decrement <= TOLERANCE))
