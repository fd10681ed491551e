"""What few runs say about a law: samples of its parameters that fit them within the noise, and how sure they are.

One estimate is a poor guide when runs are few: minima are several and valleys long. `sample` draws parameters instead,
by randomise-then-optimise (Bardsley et al. 2014, SIAM J. Sci. Comput. 36, A1895): each sample is the minimum of
Σ ((y_i + e_i − f_i)/σ)² + Σ_j ((θ_j − c_j)/s_j)² for its own draw of noise e and its own centre c, one of the law's
starts. It is exact for a linear law with a Gaussian prior, keeps several minima apart, and returns the starts' own
spread where the runs say nothing.

No law is exact: its residuals are smooth in the inputs, and a hundred cheap runs that share one are not a hundred
measurements. So a measurement is y = f + δ + ε with a smooth `Drift` δ, a Gaussian process of the logarithms of the
inputs (Kennedy and O'Hagan 2001, J. R. Stat. Soc. B 63, 425), and the noise ε of a single run.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from analysis import errors, forms, solver
from analysis.criteria import Criterion

SAMPLES = 48
NOISE = 0.01  # of the loss: seed noise and the misfit of a law together are about a percent in the public tables
CERTAINTY = 4  # runs that the guess NOISE counts for beside the measured residuals
STARTS = 512
ROUNDS = 40
HUBER = 2.5  # standard deviations beyond which a run pulls linearly
LANDMARKS = 64
RATIOS = (0.5, 1.0, 2.0, 4.0)  # of the drift's standard deviation to the noise of one run
LENGTHS = (0.4, 0.8, 1.6)  # over which the drift changes, of the range of each input's logarithm: LANDMARKS resolve it

Inputs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
    """A smooth misfit: Gaussian, covariance exp(−|Δx|²/2ℓ²), x the logarithms of the inputs scaled to [0, 1].

    Held as `LANDMARKS` functions of x with independent standard normal weights (Nyström; Williams and Seeger 2001).
    `real` inputs, which may be zero, are not turned into logarithms.
    """

    law: forms.Law
    low: Float[np.ndarray, " inputs"]
    span: Float[np.ndarray, " inputs"]
    landmarks: Float[np.ndarray, "landmarks inputs"]

    @classmethod
    def over(cls, law: forms.Law, region: Inputs) -> "Drift":
        """The drift over the points of `region`; landmarks are those farthest from one another."""
        x = _coordinates(law, region)
        low, span = x.min(axis=0), np.ptp(x, axis=0)
        span = np.where(span > 0, span, 1.0)
        x = np.unique((x - low) / span, axis=0)
        chosen = [int(np.argmin(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))]
        distance = np.sum((x - x[chosen[0]]) ** 2, axis=1)
        while len(chosen) < min(LANDMARKS, len(x)):
            chosen.append(int(np.argmax(distance)))
            distance = np.minimum(distance, np.sum((x - x[chosen[-1]]) ** 2, axis=1))
        return cls(law, low, span, x[chosen])

    def scaled(self, inputs: Inputs) -> Float[np.ndarray, "points inputs"]:
        return (_coordinates(self.law, inputs) - self.low) / self.span

    def basis(self, inputs: Inputs, length: float) -> Float[np.ndarray, "points functions"]:
        """The functions at `inputs`: the drift's covariance between points is basis · basisᵀ."""

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.exp(-0.5 * np.sum((a[:, None] - b[None]) ** 2, axis=-1) / length**2)

        values, vectors = np.linalg.eigh(kernel(self.landmarks, self.landmarks))
        kept = values > 1e-8 * values[-1]
        return kernel(self.scaled(inputs), self.landmarks) @ (vectors[:, kept] / np.sqrt(values[kept]))


def _coordinates(law: forms.Law, inputs: Inputs) -> Float[np.ndarray, "points inputs"]:
    columns = [np.asarray(inputs[name], dtype=np.float64) for name in law.inputs]
    return np.stack([x if name in law.real else np.log(x) for name, x in zip(law.inputs, columns, strict=True)], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Parameters that fit the runs within the noise: rows of `theta` in the search's coordinates, equally likely.

    `noise` is the standard deviation of one run about law and drift, in the units of the law's residual (`law.scale`),
    `ratio` that of the drift over it and `length` its length; `weights` are the drift's, a row a sample. `spread` is
    the prior's standard deviation of each parameter, `measured` the inputs of the runs.
    """

    law: forms.Law
    theta: Float[np.ndarray, "samples parameters"]
    spread: Float[np.ndarray, " parameters"]
    noise: float
    drift: Drift
    ratio: float
    length: float
    weights: Float[np.ndarray, "samples functions"]
    measured: dict[str, np.ndarray]

    @property
    def criterion(self) -> Criterion:
        return Criterion("squared", scale=self.law.scale)

    def evaluate(self, inputs: Inputs, *, drift: bool = True) -> Float[np.ndarray, "samples points"]:
        """What residuals of the law are differences of (log f where its scale is "log"), by sample."""
        with solver.precise():
            padded, count = _padded(self.law, inputs)
            values = np.asarray(_evaluate(self.law, self.criterion, self.theta, padded))[:, :count]
        return values + self.weights @ self.drift.basis(inputs, self.length).T if drift else values

    def predict(self, inputs: Inputs, *, drift: bool = True) -> Float[np.ndarray, " points"]:
        """The samples' median: a prediction of the loss that no single minimum decides."""
        return np.asarray(self.criterion.invert(np.median(self.evaluate(inputs, drift=drift), axis=0)))

    def factors(self, inputs: Inputs, count: int, *, drift: bool = True) -> Float[np.ndarray, "samples points rank"]:
        """Φ with Φ Φᵀ the covariance of the prediction between `inputs`, to first order about each of `count` samples.

        J (Σ_i J_iᵀJ_i/σ² + S⁻²)⁻¹ Jᵀ, J the derivatives by the law's parameters and the drift's weights, i the runs
        measured so far. Without `drift` the law is taken for exact and its whole misfit for noise.
        """
        few = self.theta[:count]
        with solver.precise():
            jacobians = []
            for at in (inputs, self.measured):
                padded, length = _padded(self.law, at)
                jacobian = np.asarray(_jacobian(self.law, self.criterion, few, padded))[:, :length]
                jacobians.append(np.where(np.isfinite(jacobian), jacobian, 0.0) * self.spread)
        if drift:
            size = self.ratio * self.noise
            parts = [size * self.drift.basis(at, self.length) for at in (inputs, self.measured)]
            jacobians = [
                np.concatenate([j, np.broadcast_to(part, (len(few), *part.shape))], axis=2)
                for j, part in zip(jacobians, parts, strict=True)
            ]
        there, here = jacobians
        precision = here.swapaxes(1, 2) @ here / self.deviation(drift=drift) ** 2 + np.eye(here.shape[2])
        root = np.linalg.cholesky(precision)
        return np.linalg.solve(root, there.swapaxes(1, 2)).swapaxes(1, 2)

    def deviation(self, *, drift: bool = True) -> float:
        """The standard deviation of a new run about its prediction, were the parameters known."""
        return self.noise if drift else self.noise * float(np.hypot(1, self.ratio))


def _padded(law: forms.Law, inputs: Inputs) -> tuple[dict[str, np.ndarray], int]:
    """The inputs as float64, repeated to a power of four: one compilation serves neighbouring numbers of points."""
    arrays = [np.atleast_1d(np.asarray(inputs[name], dtype=np.float64)) for name in law.inputs]
    count, size = len(arrays[0]), 64
    while size < count:
        size *= 4
    return {name: np.resize(values, size) for name, values in zip(law.inputs, arrays, strict=True)}, count


def _value(law: forms.Law, criterion: Criterion, inputs: Inputs, theta: Any) -> Any:
    return criterion.transform(jnp.asarray(law(inputs, solver.named(law, theta))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(law: forms.Law, criterion: Criterion, theta: Array, inputs: Inputs) -> Array:
    return jax.vmap(lambda t: _value(law, criterion, inputs, t))(theta)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jacobian(law: forms.Law, criterion: Criterion, theta: Array, inputs: Inputs) -> Array:
    return jax.vmap(jax.jacfwd(lambda t: _value(law, criterion, inputs, t)))(theta)


@dataclasses.dataclass(frozen=True)
class _Whitening:
    """(I + κ² B Bᵀ)^(−1/2) as I − U diag(g) Uᵀ, zero-padded, and the logarithm of that matrix's determinant."""

    left: np.ndarray
    shrink: np.ndarray
    log_determinant: float

    @classmethod
    def of(cls, basis: np.ndarray, ratio: float, size: int) -> "_Whitening":
        left, singular, _ = np.linalg.svd(ratio * basis, full_matrices=False)
        padded, shrink = np.zeros((size, LANDMARKS)), np.zeros(LANDMARKS)
        padded[: len(left), : left.shape[1]] = left
        shrink[: len(singular)] = 1 - 1 / np.sqrt(1 + singular**2)
        return cls(padded, shrink, float(np.sum(np.log1p(singular**2))))

    def __call__(self, residual: np.ndarray) -> np.ndarray:
        return np.asarray(residual - self.left @ (self.shrink * (self.left.T @ residual)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _minimise(
    law: forms.Law, criterion: Criterion, theta: Array, centre: Array, inputs: Inputs, measured: Array, weight: Array,
    noise: Array, left: Array, shrink: Array, spread: Array, low: Array, high: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Levenberg-Marquardt for every row of `theta`, inside the bounds: the minimum and the objective there."""

    def one(theta: Array, centre: Array, measured: Array) -> tuple[Array, Array]:
        def residual(t: Array) -> Array:
            r = jnp.where(weight > 0, (measured - _value(law, criterion, inputs, t)) / noise, 0.0)
            r = jnp.where(jnp.isfinite(r), r, 1e6)
            return r - left @ (shrink * (left.T @ r))

        def cost(t: Array) -> Array:
            r = residual(t)
            near = jnp.clip(r, -HUBER, HUBER)
            return jnp.sum(near * (2 * r - near)) + jnp.sum(((t - centre) / spread) ** 2)

        def step(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            t, here, damping = state
            r, jacobian = residual(t), -jax.jacfwd(residual)(t) * spread
            jacobian = jnp.where(jnp.isfinite(jacobian), jacobian, 0.0)
            robust = jnp.minimum(1.0, HUBER / jnp.maximum(jnp.abs(r), 1e-12))
            gradient = jacobian.T @ (robust * r) - (t - centre) / spread
            held = ((t <= low) & (gradient < 0)) | ((t >= high) & (gradient > 0))
            metric = (jacobian * robust[:, None]).T @ jacobian + jnp.eye(len(t))
            scale = jnp.sqrt(jnp.diag(metric))
            scaled = jnp.where(~held[:, None] & ~held[None, :], metric / scale[:, None] / scale[None, :], 0.0)
            scaled += jnp.diag(jnp.where(held, 1.0, damping))
            factor = jax.scipy.linalg.cho_factor(scaled + 1e-12 * jnp.eye(len(t)))
            move = jax.scipy.linalg.cho_solve(factor, jnp.where(held, 0.0, gradient / scale)) / scale * spread
            there = jnp.clip(t + jnp.where(jnp.isfinite(move), move, 0.0), low, high)
            value = cost(there)
            better = value < here
            return (
                jnp.where(better, there, t),
                jnp.where(better, value, here),
                jnp.where(better, jnp.maximum(damping * 0.2, 1e-12), jnp.minimum(damping * 6 + 1e-6, 1e8)),
            )

        minimum, value, _ = jax.lax.fori_loop(0, ROUNDS, step, (theta, cost(theta), jnp.array(1e-2)))
        return minimum, value

    return jax.vmap(one)(theta, centre, measured)


def sample(
    law: forms.Law,
    inputs: Inputs,
    y: Float[np.ndarray, " runs"],
    drift: Drift,
    *,
    count: int = SAMPLES,
    prior: Mapping[str, tuple[float, float]] | None = None,
    noise: float = NOISE,
    seed: int = 0,
) -> Samples:
    """`count` draws of the law's parameters and of the drift given measured runs, two of them or more.

    Nonlinear parameters have the prior (centre, standard deviation) of `prior`, or the spread of the law's starts;
    linear ones, solved for at each start, may move by half the median loss (by a factor e³ where searched by
    logarithm). `noise` guesses the standard deviation of a run about the law, as a fraction of the loss; it counts as
    CERTAINTY runs beside the measured residuals. The drift's ratio and length are the likeliest of RATIOS and LENGTHS,
    the noise integrated over (conjugate prior), given the residuals of the best of a first round of minima.
    """
    criterion, rng = Criterion("squared", scale=law.scale), np.random.default_rng(seed)
    measured = {name: np.asarray(inputs[name], dtype=np.float64) for name in law.inputs}
    with solver.precise():
        padded, runs = _padded(law, measured)
        size = len(padded[law.inputs[0]])
        transformed = np.resize(criterion.transform(np.asarray(y, dtype=np.float64)), size)
        guess = noise * (1.0 if law.scale == "log" else float(np.median(np.abs(y))))
        data, pool = _starts(law, measured, y)
        if not len(pool):
            raise errors.Refused(f"{law.name!r} has no finite start on these {runs} runs: add runs that differ in more")
        centres, spread = _centres(law, pool, y, prior or {}, rng)
        misfit = solver.objectives(law, centres, data, criterion) / (5 * guess) ** 2
        order = np.argsort(misfit + rng.gumbel(size=len(misfit)), kind="stable")
        low, high = solver.box(law)
        centres = np.clip(centres[order[np.arange(count) % len(order)]], low, high)

        def minimise(theta: np.ndarray, y: np.ndarray, noise: float, white: _Whitening) -> tuple[np.ndarray, ...]:
            weight = (np.arange(size) < runs).astype(float)
            minimum = _minimise(
                law, criterion, theta, centres, padded, y, weight, noise, white.left, white.shrink, spread, low, high
            )
            return tuple(np.asarray(part) for part in minimum)

        def residuals(theta: np.ndarray) -> np.ndarray:
            return transformed[:runs] - np.asarray(_evaluate(law, criterion, theta, padded))[:, :runs]

        bases = {length: drift.basis(measured, length) for length in LENGTHS}
        first = _Whitening.of(bases[LENGTHS[1]], 1.0, size)
        minima, value = minimise(centres, np.broadcast_to(transformed, (count, size)), guess / np.sqrt(2), first)
        left = residuals(minima[[int(np.nanargmin(value))]])[0]
        freedom = max(runs - len(law.names), 0)
        ratio, length, sigma = _likeliest(left, bases, guess, freedom)
        basis, white = bases[length], _Whitening.of(bases[length], ratio, size)
        shaken = np.broadcast_to(transformed, (count, size)).copy()
        shaken[:, :runs] += sigma * rng.standard_normal((count, runs))
        shaken[:, :runs] += ratio * sigma * rng.standard_normal((count, basis.shape[1])) @ basis.T
        minima, value = minimise(minima, shaken, sigma, white)
        expected = runs + len(law.names)
        minima = minima[value <= np.nanmin(value) + expected + 6 * np.sqrt(expected)]
        gram = np.eye(basis.shape[1]) + ratio**2 * basis.T @ basis
        weights = np.linalg.solve(gram, ratio**2 * basis.T @ residuals(minima).T).T
    pick = np.arange(count) % len(minima)
    return Samples(law, minima[pick], spread, sigma, drift, ratio, length, weights[pick], measured)


def startable(law: forms.Law, inputs: Inputs, y: Float[np.ndarray, " runs"]) -> bool:
    """Whether the law has a start on these runs: some solve for their scales, and very few runs may leave none."""
    with solver.precise():
        return len(_starts(law, inputs, y)[1]) > 0


def _starts(law: forms.Law, inputs: Inputs, y: Float[np.ndarray, " runs"]) -> tuple[solver.Points, np.ndarray]:
    """The runs as the solver takes them, and the law's starts on them.

    Starts need no exact weights: rows repeated to the padded size spare a compilation for each number of runs.
    """
    padded, _ = _padded(law, inputs)
    size = len(padded[law.inputs[0]])
    data = solver.points(padded, np.resize(np.asarray(y, dtype=np.float64), size))
    return data, solver.starts(law, data, STARTS, Criterion("squared", scale=law.scale))


def _likeliest(
    residual: np.ndarray, bases: Mapping[float, np.ndarray], guess: float, freedom: int
) -> tuple[float, float, float]:
    """The drift's ratio and length of the greatest marginal likelihood, and the noise of one run with them."""
    best = (-np.inf, RATIOS[0], LENGTHS[0], guess)
    for length, basis in bases.items():
        for ratio in RATIOS:
            white = _Whitening.of(basis, ratio, len(residual))
            prior = CERTAINTY * guess**2 / (1 + ratio**2)
            total = prior + np.sum(white(residual) ** 2) * freedom / max(len(residual), 1)
            log_likelihood = 0.5 * (
                CERTAINTY * np.log(prior)
                - (CERTAINTY + freedom) * np.log(total)
                - white.log_determinant * freedom / len(residual)
                - np.log(ratio) ** 2
            )
            best = max(best, (log_likelihood, ratio, length, float(np.sqrt(total / (CERTAINTY + freedom)))))
    return best[1:]


def _centres(
    law: forms.Law,
    pool: np.ndarray,
    y: np.ndarray,
    prior: Mapping[str, tuple[float, float]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Where each sample is pulled to and how hard: the law's starts and their spread, or the prior that was given."""
    centres, spread = pool.copy(), pool.std(axis=0)
    for i, (name, parameter) in enumerate(law.parameters):
        if name in prior:
            centre, spread[i] = prior[name]
            centres[:, i] = centre + spread[i] * rng.standard_normal(len(pool))
        elif name in law.linear:
            spread[i] = 3.0 if parameter.log else 0.5 * float(np.median(np.abs(y)))
        else:
            spread[i] = max(spread[i], 0.05 * abs(float(pool[:, i].mean())), 1e-3)
    return centres, spread
