"""Many starts of one law refined at once: variable projection for starts, projected Newton to the minimum.

The first fit of a law in a process is mostly compilation, so little is compiled: the derivatives of one chunk of rows.

Everything runs in float64 on the CPU inside `precise`, whatever the rest of the process computes with. Points are
padded with weight zero to a multiple of PAD, so that one compilation serves neighbouring numbers of points. Weights
are an argument of the compiled program and bounds none of its business: fixing a parameter, resampling the runs and
profiling compile nothing new.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from analysis import forms
from analysis.criteria import Criterion, namespace

PAD = 64
CHUNK = 16  # rows whose derivatives are taken in one dispatch: one compilation for starts and resamples
ITERATIONS = 300
TOLERANCE = 1e-9  # predicted decrease of the objective that another Newton step would bring, relative
EXACT = 1e-12  # an objective below this is an exact fit: residuals of 1e-6 and less
AT = 1e-12  # a coordinate as near to a bound as this is at it
FLOOR = -690.0  # log of the smallest scale that a log-searched parameter may take


class Points(NamedTuple):
    """Measurements, padded: inputs by name, y, and the weight of each (zero: padding)."""

    inputs: dict[str, np.ndarray]
    y: np.ndarray
    weight: np.ndarray


class Refined(NamedTuple):
    theta: Float[np.ndarray, "rows parameters"]
    objective: Float[np.ndarray, " rows"]
    decrement: Float[np.ndarray, " rows"]
    gradient: Float[np.ndarray, "rows parameters"]
    converged: np.ndarray


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Float64 on the CPU for what is computed inside, leaving JAX's global configuration alone."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def points(inputs: Mapping[str, np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> Points:
    """The measurements as float64, padded by repeating the first one with weight zero."""
    count = len(y)
    index = np.concatenate([np.arange(count), np.zeros(-count % PAD, dtype=int)])
    padded = {name: np.asarray(values, dtype=np.float64)[index] for name, values in inputs.items()}
    weights = np.ones(count) if weight is None else np.asarray(weight, dtype=np.float64)
    return Points(padded, np.asarray(y, dtype=np.float64)[index], weights[index] * (np.arange(len(index)) < count))


def named(law: forms.Law, theta: Any) -> dict[str, Any]:
    """Parameters by name from the search's coordinates (a log for those searched on a log scale)."""
    return {
        name: namespace(theta).exp(theta[..., i]) if parameter.log else theta[..., i]
        for i, (name, parameter) in enumerate(law.parameters)
    }


def coordinates(law: forms.Law, params: Mapping[str, Any]) -> Float[np.ndarray, "rows parameters"]:
    """The search's coordinates of parameters given by name, inside their bounds."""
    low, high = box(law)
    columns = []
    for name, parameter in law.parameters:
        values = np.atleast_1d(np.asarray(params[name], dtype=np.float64))
        columns.append(np.log(np.maximum(values, np.exp(FLOOR))) if parameter.log else values)
    return np.clip(np.stack(np.broadcast_arrays(*columns), axis=-1), low, high)


def box(law: forms.Law, fixed: Mapping[str, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds in the search's coordinates, equal for what is fixed."""
    low, high = [], []
    for name, parameter in law.parameters:
        if fixed and name in fixed:
            low.append(np.log(max(fixed[name], np.exp(FLOOR))) if parameter.log else float(fixed[name]))
            high.append(low[-1])
        elif parameter.log:
            low.append(np.log(parameter.lower) if parameter.lower > 0 else FLOOR)
            high.append(min(np.log(parameter.upper), -FLOOR))
        else:
            low.append(parameter.lower)
            high.append(parameter.upper)
    return np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)


def _grid(law: forms.Law, data: Points, fixed: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Starting values by parameter: what the law's own rule makes of the data, or the products of its lists."""
    if law.starts is not None:
        real = data.weight > 0
        grid = law.starts({k: v[real] for k, v in data.inputs.items()}, data.y[real])
        grid = {name: np.atleast_1d(np.asarray(values, dtype=np.float64)) for name, values in grid.items()}
    else:
        searched = [name for name in law.nonlinear if name not in fixed]
        axes = np.meshgrid(*(law.parameter(name).start for name in searched), indexing="ij")
        grid = {name: axis.ravel() for name, axis in zip(searched, axes, strict=True)}
    rows = max((len(values) for values in grid.values()), default=1)
    return {name: np.broadcast_to(values, rows) for name, values in grid.items()} | {
        name: np.full(rows, value) for name, value in fixed.items()
    }


def _solve(law: forms.Law, data: Points, criterion: Criterion, grid: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The grid with the linear parameters that it lacks, at each row's least objective.

    Given the others the law is o + Φ c, with c ≥ 0 where its bound says so: the weighted least-squares problem is
    solved on every subset of those columns, the feasible solution with the least loss is kept, and the weights are made
    robust by iteration: w = ρ'(r)/r, the reweighting whose fixed point is the robust minimum. Residuals are those of
    the criterion to first order: relative to y on the scale "log", to 1 + y on "log1p".
    """
    unknown = tuple(name for name in law.linear if name not in grid)
    real = data.weight > 0
    inputs, y, weight = {name: values[real] for name, values in data.inputs.items()}, data.y[real], data.weight[real]
    unit = {"log": y, "log1p": 1 + y, "linear": np.ones_like(y)}[criterion.scale]
    with np.errstate(all="ignore"):
        offset, design = _linear(law, inputs, unit, grid, unknown)
        scale = np.sqrt(np.sum(design**2, axis=1))
        usable = np.isfinite(scale).all(axis=1) & (scale > 0).all(axis=1) & np.isfinite(offset).all(axis=1)
        design, scale, offset = design[usable], scale[usable], offset[usable]
        design = design / scale[:, None, :]
        target = y / unit - offset
        signed = np.array([law.parameter(name).lower >= 0 for name in unknown])
        c = _bounded(design, target, np.broadcast_to(weight, target.shape), signed)
        for _ in range(0 if criterion.kind == "squared" else 8):
            fitted = (offset + (design @ c[:, :, None])[:, :, 0]) * unit
            residual = criterion.transform(y) - criterion.transform(fitted)
            c = _bounded(design, target, weight * criterion.robust(residual), signed)
    solved = {}
    for i, name in enumerate(unknown):
        # a log-searched term that vanished gets a little back, to have a gradient
        kept = np.maximum(c[:, i], 1e-4) if law.parameter(name).log else c[:, i]
        solved[name] = kept / scale[:, i]
    return {name: values[usable] for name, values in grid.items()} | solved


def _linear(
    law: forms.Law, inputs: Mapping[str, np.ndarray], unit: np.ndarray, grid: Mapping[str, np.ndarray],
    unknown: Sequence[str],
) -> tuple[Float[np.ndarray, "grid points"], Float[np.ndarray, "grid points columns"]]:  # fmt: skip
    """o and Φ of the law as o + Φ c in its `unknown` linear parameters c, in the unit of the residuals."""
    others = {name: values[:, None] for name, values in grid.items()}
    shape = len(next(iter(grid.values()))) if grid else 1, len(unit)

    def value(given: Mapping[str, Any]) -> np.ndarray:
        return np.broadcast_to(np.asarray(law(inputs, others | dict(given)), dtype=np.float64) / unit, shape)

    nothing = dict.fromkeys(unknown, 0.0)
    rest = {name: others[name] * 0 for name in law.linear if name in others}
    offset = value(nothing) if rest else np.zeros(shape)
    return offset, np.stack([value({**nothing, **rest, name: 1.0}) for name in unknown], axis=-1)


def _bounded(
    design: Float[np.ndarray, "grid points columns"],
    target: Float[np.ndarray, "grid points"],
    weights: Float[np.ndarray, "grid points"],
    signed: np.ndarray,
) -> Float[np.ndarray, "grid columns"]:
    """c at the least Σ_p w_p (t_p − Σ_i Φ_pi c_i)², ≥ 0 where `signed`, by trying every subset of those columns."""
    columns = design.shape[-1]
    weighted = design * weights[:, :, None]
    gram, moment = weighted.swapaxes(1, 2) @ design, (target[:, None, :] @ weighted)[:, 0]
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(columns)
    best = np.linalg.solve(gram + ridge, moment[:, :, None])[:, :, 0]
    rows = np.flatnonzero((best[:, signed] < 0).any(axis=1))  # elsewhere no bound binds, and that is the solution
    gram, moment, ridge = gram[rows], moment[rows], ridge[rows]
    least, best[rows] = np.full(len(rows), np.inf), 0.0
    for subset in itertools.product(*((0.0, 1.0) if bound else (1.0,) for bound in signed)):
        chosen = np.array(subset)
        if not chosen.any() or chosen.all():
            continue
        inside = gram * np.outer(chosen, chosen) + ridge + np.diag(1 - chosen)
        c = np.linalg.solve(inside, (moment * chosen)[:, :, None])[:, :, 0] * chosen
        value = np.einsum("gi,gij,gj->g", c, gram, c) - 2 * np.sum(c * moment, axis=1)
        better = (c[:, signed] >= 0).all(axis=1) & (value < least)
        least[better], best[rows[better]] = value[better], c[better]
    return best


def objectives(law: forms.Law, theta: Float[np.ndarray, "rows parameters"], data: Points, criterion: Criterion) -> Any:
    """Σ w ρ at every row; not finite where the law is not."""
    params = {name: values[:, None] for name, values in named(law, theta).items()}
    with np.errstate(all="ignore"):
        predicted = np.asarray(law(data.inputs, params), dtype=np.float64)
        residual = criterion.transform(data.y) - criterion.transform(predicted)
        return np.sum(np.where(data.weight > 0, data.weight * criterion.rho(residual), 0.0), axis=1)


def starts(
    law: forms.Law, data: Points, count: int, criterion: Criterion, fixed: Mapping[str, float] | None = None
) -> Float[np.ndarray, "starts parameters"]:
    """The best half of `count` starting points, and as many spread over the ranks of the better half of the rest."""
    grid = _grid(law, data, fixed or {})
    if any(name not in grid for name in law.linear):
        grid = _solve(law, data, criterion, grid)
    low, high = box(law, fixed)
    theta = np.clip(coordinates(law, grid), low, high)
    values = objectives(law, theta, data, criterion)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    order = order[: int(np.isfinite(values).sum())]
    best, rest = order[: count // 2], order[count // 2 : max(count, len(order) // 2)]
    spread = rest[np.linspace(0, len(rest) - 1, min(len(rest), count - len(best))).astype(int)]
    return theta[np.concatenate([best, spread]).astype(int)]


# compiling is most of a first fit; below level 1 the program runs 15 times slower, above it no faster
@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 1})
def _derivatives(
    law: forms.Law, criterion: Criterion, theta: Array, inputs: dict[str, Array], y: Array, weights: Array
) -> tuple[Array, ...]:
    """By row: the objective, its gradient, its Hessian, and the Hessian of the quadratic that majorizes it."""

    def one(theta: Array, y: Array, weights: Array) -> tuple[Array, ...]:
        directions = jnp.eye(len(theta))

        def predict(t: Array) -> Array:
            return criterion.transform(jnp.asarray(law(inputs, named(law, t))))

        def first(t: Array) -> tuple[Array, Array]:
            predicted, slopes = jax.vmap(lambda v: jax.jvp(predict, (t,), (v,)))(directions)
            return predicted[0], slopes

        def second(u: Array) -> tuple[Array, Array, Array]:
            (predicted, slopes), (_, curved) = jax.jvp(first, (theta,), (u,))
            return predicted, slopes, curved

        # points come last in `slopes` and `curved`, so that loops run along memory
        predicted, slopes, curved = jax.vmap(second)(directions)
        predicted, slopes = predicted[0], slopes[0]  # the same along every direction
        residual = jnp.where(weights > 0, criterion.transform(y) - predicted, 0.0)
        pull, curvature, robust = (
            weights * part(residual) for part in (criterion.psi, criterion.curvature, criterion.robust)
        )
        hessian = (slopes * curvature) @ slopes.T - curved @ pull
        return jnp.sum(weights * criterion.rho(residual)), -slopes @ pull, hessian, (slopes * robust) @ slopes.T

    return jax.vmap(one)(theta, y, weights)


def _evaluate(
    law: forms.Law, criterion: Criterion, theta: np.ndarray, data: Points, y: np.ndarray, weights: np.ndarray
) -> list[np.ndarray]:
    """`_derivatives` of any number of rows, in chunks, the last one filled up with copies of its last row."""
    index = np.concatenate([np.arange(len(theta)), np.full(-len(theta) % CHUNK, len(theta) - 1)])
    parts = [
        _derivatives(law, criterion, theta[rows], data.inputs, y[rows], weights[rows])
        for rows in np.split(index, len(index) // CHUNK)
    ]
    return [np.concatenate(part)[: len(theta)] for part in zip(*parts, strict=True)]


def _step(
    f: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, metric: np.ndarray, held: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By row: the step (|H| + λM)⁻¹ g in the coordinates that are not held, and the relative Newton decrement.

    M is scaled to a unit diagonal and whitened by its eigenvectors, with a floor that no rounding error reaches.
    """
    free = ~held[:, :, None] & ~held[:, None, :]
    scale = np.where(held, 1.0, np.sqrt(np.diagonal(metric, axis1=1, axis2=2)) + 1e-30)
    identity = np.eye(held.shape[1])
    with np.errstate(over="ignore"):
        metric, hessian = (  # within what eigh can take: a parameter without effect has a scale of 1e-30
            np.where(free, np.clip(part / scale[:, :, None] / scale[:, None, :], -1e150, 1e150), identity)
            for part in (metric, hessian)
        )
    size, axes = np.linalg.eigh(metric)
    white = axes / np.sqrt(np.maximum(size, 1e-13))[:, None, :]
    curved = white.swapaxes(1, 2) @ hessian @ white
    curvature, axes = np.linalg.eigh(0.5 * (curved + curved.swapaxes(1, 2)))
    white = white @ axes
    along = np.einsum("rij,ri->rj", white, np.where(held, 0.0, gradient) / scale)
    curvature = np.maximum(np.abs(curvature), 1e-9)
    decrement = np.sum(along**2 / curvature, axis=1) / np.maximum(f, EXACT)
    return np.einsum("rij,rj->ri", white, along / (curvature + damping[:, None])) / scale, decrement


def _within(
    move: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    f: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray,
    metric: np.ndarray,
    held: np.ndarray,
    damping: np.ndarray,
) -> np.ndarray:
    """The step, between `least` and `most`: coordinates that would cross go to their bound, the others step again.

    Clipping alone leaves the others where they would be without the bound, and that need not be downhill.
    """
    model = hessian + damping[:, None, None] * metric
    pinned, out = np.zeros_like(move), held
    for _ in range(move.shape[1]):
        step = np.where(out, pinned, move)
        crossing = ~out & ((step < least) | (step > most))
        rows = crossing.any(axis=1)
        if not rows.any():
            break
        pinned = np.where(crossing, np.clip(move, least, most), pinned)
        out = out | crossing
        pulled = gradient[rows] - np.einsum("rij,rj->ri", model[rows], pinned[rows])
        again, _ = _step(f[rows], pulled, hessian[rows], metric[rows], out[rows], damping[rows])
        move[rows] = np.where(out[rows], pinned[rows], again)
    return move


def refine(
    law: forms.Law,
    theta: np.ndarray,
    data: Points,
    weights: np.ndarray,
    criterion: Criterion,
    low: np.ndarray,
    high: np.ndarray,
    y: np.ndarray | None = None,
) -> Refined:
    """Every row of `theta` carried to a minimum of Σ_i w_i ρ(r_i) under its own row of weights and of bounds.

    A sum and not a mean (Besiroglu et al., arXiv 2404.10102). `weights` (rows, points) replace the points' own, and so
    does `y`, (points,) or (rows, points); `low` and `high` are (parameters,) or (rows, parameters). Damped projected
    Newton: the step is (|H| + λM)⁻¹ g with the exact Hessian H by automatic differentiation (its eigenvalues by
    magnitude in the metric M, so a saddle repels), M = Σ w ρ'(r)/r ∇f ∇fᵀ the curvature of the quadratic that
    majorizes the robust loss (so λ ≥ 1 steps stay sane far from the minimum, where H vanishes), and bounds hold the
    coordinates that push against them or would cross. A row has converged when a further Newton step would lower its
    objective by less than TOLERANCE of it.

    The loop over iterations runs in NumPy over all rows at once, and a row that is done leaves it; only the
    derivatives are compiled, in chunks of rows.
    """
    rows, columns = theta.shape
    low, high = (np.broadcast_to(bound, theta.shape) for bound in (low, high))
    y = np.broadcast_to(data.y if y is None else y, weights.shape)
    theta, candidate = theta.copy(), theta.copy()
    f, gradient = np.full(rows, np.inf), np.zeros_like(theta)
    hessian, metric = np.tile(np.eye(columns), (2, rows, 1, 1))
    damping, decrement = np.ones(rows), np.full(rows, np.inf)
    active = np.arange(rows)
    for _ in range(ITERATIONS):
        there = _evaluate(law, criterion, candidate[active], data, y[active], weights[active])
        sane = np.all([np.isfinite(part).reshape(len(active), -1).all(axis=1) for part in there], axis=0)
        better = sane & (there[0] < f[active])
        moved = active[better]
        f[moved], gradient[moved], hessian[moved], metric[moved] = (part[better] for part in there)
        theta[moved] = candidate[moved]
        damping[active] = np.where(
            better, np.maximum(damping[active] * 0.1, 1e-15), np.maximum(damping[active], 1e-3) * 8
        )
        at, bottom, top, slope = theta[active], low[active], high[active], gradient[active]
        held = ((at <= bottom + AT) & (slope > 0)) | ((at >= top - AT) & (slope < 0)) | (bottom == top)
        here = f[active], slope, hessian[active], metric[active], held, damping[active]
        move, decrement[active] = _step(*here)
        step = at - _within(move, at - top, at - bottom, *here)
        candidate[active] = np.where(step <= bottom + AT, bottom, np.where(step >= top - AT, top, step))
        active = active[(decrement[active] > 1e-3 * TOLERANCE) & (damping[active] < 1e11)]
        if not len(active):
            break
    return Refined(theta, f, decrement, gradient, np.isfinite(f) & (decrement <= TOLERANCE))
