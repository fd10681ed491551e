"""M1 to M4 and broken laws: planted truths at any magnitude, M4's implicit equation, and the public curves."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import analysis
from analysis import laws, solver
from analysis.catalogue import curves

X = np.geomspace(1e3, 1e11, 60)
TRUTHS = {
    "m1": {"a": 40.0, "c": 0.15},
    "m2": {"a": 40.0, "c": 0.3, "e": 0.7},
    "m3": {"e": 0.5, "c": 0.25, "d": 1e-8},
    "m4": {"e": 0.6, "span": 3.0, "alpha": 0.6, "a": 200.0, "c": 0.35},
    "broken1": {"a": 0.3, "b": 6.0, "c0": 0.08, "c1": 0.4, "d1": 3e7, "f1": 0.5},
}
SCALES = {"m1": "a", "m2": "ae", "m3": "e", "m4": ("e", "span", "a"), "broken1": "ab"}


def _value(name: str, x: np.ndarray, truth: dict[str, float]) -> np.ndarray:
    with solver.precise():
        return np.asarray(laws.get(name)({"x": x}, truth), dtype=np.float64)


@pytest.mark.parametrize("name", ["m1", "m2", "m3", "m4", "broken1"])
@pytest.mark.parametrize("magnitude", [1e-4, 1e7])
def test_planted_laws_are_found_whatever_the_unit_of_y(name: str, magnitude: float) -> None:
    truth = {key: value * (magnitude if key in SCALES[name] else 1.0) for key, value in TRUTHS[name].items()}
    fit = analysis.fit(name, pd.DataFrame({"x": X, "loss": _value(name, X, truth)}), objective="squared")
    assert fit.status == "converged"
    for key, value in truth.items():
        assert fit.params[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.parametrize("name", ["m2", "m3", "broken1"])
def test_with_noise_the_truth_is_inside_the_intervals(name: str) -> None:
    noise = np.exp(0.003 * np.random.default_rng(5).normal(size=len(X)))
    fit = analysis.fit(name, pd.DataFrame({"x": X, "loss": _value(name, X, TRUTHS[name]) * noise}), objective="squared")
    boot = fit.bootstrap(resamples=192, seed=0)
    for key, value in TRUTHS[name].items():
        low, high = boot.interval(key, 0.99)
        assert low <= value <= high, key


def test_broken_laws_of_any_number_of_breaks() -> None:
    three = curves.broken(3)
    assert three.names[-3:] == ("c3", "d3", "f3")
    assert three is curves.broken(3)  # one law, compiled once
    plain = {"a": 0.2, "b": 5.0, "c0": 0.1}
    with_nothing = plain | {f"{k}{i}": v for i in (1, 2, 3) for k, v in (("c", 0.0), ("d", 1e5), ("f", 0.5))}
    np.testing.assert_allclose(three({"x": X}, with_nothing), 0.2 + 5 * X**-0.1, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 1"):
        curves.broken(0)


def test_a_sharp_break_joins_two_power_laws() -> None:
    sharp = {"a": 0.0, "b": 2.0, "c0": 0.1, "c1": 0.5, "d1": 1e6, "f1": 1e-3}
    x = np.array([1e3, 1e5, 1e7, 1e9])
    expected = 2 * x**-0.1 * np.where(x < 1e6, 1.0, (x / 1e6) ** -0.5)
    np.testing.assert_allclose(_value("broken1", x, sharp), expected, rtol=1e-9)


def test_m4_solves_its_published_equation() -> None:
    """Against bisection of (y − e) / (e0 − y)^α = β x^(−c) itself."""
    e, span, a = 0.4, 2.2, 300.0
    for alpha, c in ((0.05, 0.2), (0.6, 0.5), (1.0, 1.0), (4.0, 0.7)):
        for x in (1e1, 1e3, 1e6):

            def gap(u: float, right: float = a / span**alpha * x**-c, alpha: float = alpha) -> float:
                below, above = -np.logaddexp(0, -u), -np.logaddexp(0, u)
                return float(np.log(span) + below - alpha * (np.log(span) + above) - np.log(right))

            root = scipy.optimize.bisect(gap, -2000, 2000, xtol=1e-13, rtol=1e-15)
            found = _value("m4", np.array([x]), {"e": e, "span": span, "alpha": alpha, "a": a, "c": c})[0]
            assert found == pytest.approx(e + span * np.exp(-np.logaddexp(0, -root)), rel=1e-11)


def test_m4_root_and_its_derivatives() -> None:
    rng = np.random.default_rng(0)
    right, alpha = rng.normal(0, 40, 2000), np.exp(rng.uniform(np.log(0.01), np.log(20), 2000))
    u = np.asarray(curves.logit_fraction(right, alpha))
    residual = -np.logaddexp(0, -u) + alpha * np.logaddexp(0, u) - right
    assert np.abs(residual).max() < 1e-12 * np.abs(right).max()

    def total(t: jax.Array) -> jax.Array:
        given = {"e": t[0], "span": jnp.exp(t[1]), "alpha": jnp.exp(t[2]), "a": jnp.exp(t[3]), "c": t[4]}
        return jnp.sum(jnp.log(curves.m4({"x": jnp.array([1e2, 1e4, 1e7])}, given)))

    with solver.precise():
        at, step = jnp.array([0.3, 0.8, -0.4, 4.0, 0.4]), 1e-5
        both = jax.jit(jax.vmap(lambda t: (total(t), jax.jacfwd(total)(t))))
        curvature = jax.jit(jax.jacfwd(jax.jacfwd(total)))(at)
        (up, up_slope), (down, down_slope) = both(at + step * jnp.eye(5)), both(at - step * jnp.eye(5))
        slope = both(at[None])[1][0]
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(curvature, (up_slope - down_slope) / (2 * step), rtol=1e-6, atol=1e-9)


def _at_bounds(law: laws.Law, truth: dict[str, float]) -> Iterator[np.ndarray]:
    """The truth in the search's coordinates, and it again with one parameter at each of its bounds."""
    theta = solver.coordinates(law, truth)[0]
    yield theta
    low, high = solver.box(law)
    for i, (_, parameter) in enumerate(law.parameters):
        ends = (low[i], high[i]) if np.isfinite(parameter.upper) else (low[i],)
        for end in ends:
            yield np.where(np.arange(len(theta)) == i, end, theta)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_values_are_positive_and_derivatives_finite_at_every_bound(name: str) -> None:
    law = laws.get(name)
    with solver.precise():
        theta = jnp.array(list(_at_bounds(law, TRUTHS[name])))

        def value(t: jax.Array) -> jax.Array:
            return jnp.asarray(law({"x": jnp.array([1e2, 1e6, 1e12])}, solver.named(law, t)))

        parts = value, jax.jacfwd(value), jax.jacfwd(jax.jacfwd(value))
        values, slopes, curvatures = map(np.asarray, jax.jit(jax.vmap(lambda t: [part(t) for part in parts]))(theta))
    assert (values > 0).all()
    for part in (values, slopes, curvatures):
        assert np.isfinite(part).all()


def test_the_addition_task_of_caballero(table: Callable[[str], pd.DataFrame]) -> None:
    """Their Figure 4 left: squared error of log(y + 1) on 14 rows; RMSLE, of log y, on the 3 beyond."""
    frame = table("caballero2022_bnsl_addition.csv").rename(columns={"train_examples": "x"})
    seen, beyond = frame[frame["split"] == "fit"], frame[frame["split"] == "extrapolate"]
    fit = analysis.fit("broken1", seen[["x", "loss"]], objective="squared", scale="log1p")
    assert fit.status == "converged"
    assert fit.starts.share > 0.5
    assert fit.params["a"] == pytest.approx(0.41389, abs=1e-5)
    assert fit.params["c1"] == pytest.approx(5.6629, abs=1e-4)
    assert fit.params["d1"] == pytest.approx(612.58, abs=1e-2)
    error = np.sqrt(np.mean((np.log(fit.predict(beyond)) - np.log(beyond["loss"])) ** 2))
    assert error == pytest.approx(0.0109, abs=5e-5)


def _errors(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The benchmark's score, √mean((log ŷ − log y)²) beyond the fitted rows, of each of its tasks."""
    found = []
    for _, curve in frame.groupby(["domain", "task", "model"]):
        seen, beyond = curve[curve["split"] == "fit"], curve[curve["split"] == "extrapolate"]
        fit = analysis.fit(name, seen[["seen", "loss"]], x="seen", objective="squared")
        assert fit.status == "converged"
        found.append(np.sqrt(np.mean((np.log(fit.predict(beyond)) - np.log(beyond["loss"])) ** 2)))
    return np.array(found)


def test_the_language_tasks_of_alabdulmohsin(table: Callable[[str], pd.DataFrame]) -> None:
    """Published there: mean 0.0116 at best (M4), and 0.0009 for it on LM alone."""
    frame = table("alabdulmohsin2022_language.csv")
    m3 = _errors(frame, "m3")
    assert len(m3) == 20
    assert m3.mean() < 0.0116
    m4 = _errors(frame[frame["domain"] == "LM"], "m4")
    assert len(m4) == 5
    assert m4.mean() < 0.0009
