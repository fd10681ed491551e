"""Optimizers against hand computations; schedules by their values at warm-up, peak and end."""

import math
from collections.abc import Mapping
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from scaling.config import families, optimizers, schedules

Tree = dict[str, Any]
WEIGHTS: Mapping[str, families.Weight] = {
    "layers.query": families.Weight("layers.query", "hidden", (8, 2, 4), ("embed", "heads", "head"), 8, stack=3),
    "layers.output": families.Weight("layers.output", "hidden", (2, 4, 8), ("heads", "head", "embed"), 8, stack=3),
    "layers.down": families.Weight("layers.down", "hidden", (24, 8), ("mlp", "embed"), 24, stack=3),
    "layers.scale": families.Weight("layers.scale", "vector", (8,), ("embed",), stack=3),
    "embedding": families.Weight("embedding", "embedding", (16, 8), ("vocabulary", "embed")),
    "output": families.Weight("output", "output", (8, 16), ("embed", "vocabulary"), 8),
}


def random_tree(seed: int) -> Tree:
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=w.full_shape), jnp.float32) for name, w in WEIGHTS.items()}


GRADIENTS = [random_tree(1), random_tree(2), random_tree(3)]


def directions(optimizer: optimizers.Optimizer, gradients: list[Tree]) -> list[Tree]:
    transformation = optimizer.direction(WEIGHTS)
    params = random_tree(0)
    state, found = transformation.init(params), []
    for each in gradients:
        step, state = transformation.update(each, state, params)
        found.append(step)
    return found


def adam(gradients: list[Any], beta1: float, beta2: float, epsilon: float) -> list[np.ndarray]:
    first = second = 0.0
    found = []
    for t, gradient in enumerate(gradients, 1):
        g = np.asarray(gradient, np.float64)
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
        found.append(first / (1 - beta1**t) / (np.sqrt(second / (1 - beta2**t)) + epsilon))
    return found


@pytest.mark.parametrize(("beta1", "beta2", "epsilon"), [(0.9, 0.95, 1e-8), (0.0, 0.5, 1e-1)])
def test_adam_by_hand(beta1: float, beta2: float, epsilon: float) -> None:
    found = directions(optimizers.AdamW(learning_rate=0.3, beta1=beta1, beta2=beta2, epsilon=epsilon), GRADIENTS)
    for name in WEIGHTS:
        for step, expected in zip(found, adam([g[name] for g in GRADIENTS], beta1, beta2, epsilon), strict=True):
            np.testing.assert_allclose(step[name], expected, rtol=2e-5, atol=1e-6)


def test_lion_by_hand() -> None:
    found = directions(optimizers.Lion(learning_rate=0.3, beta1=0.8, beta2=0.6), GRADIENTS)
    for name in WEIGHTS:
        momentum = np.zeros(WEIGHTS[name].full_shape)
        for step, gradients in zip(found, GRADIENTS, strict=True):
            g = np.asarray(gradients[name], np.float64)
            np.testing.assert_array_equal(step[name], np.sign(0.8 * momentum + 0.2 * g))
            momentum = 0.6 * momentum + 0.4 * g


def test_sgd_by_hand() -> None:
    found = directions(optimizers.Sgd(learning_rate=0.3, momentum=0.7), GRADIENTS)
    velocity = np.zeros(WEIGHTS["output"].full_shape)
    for step, gradients in zip(found, GRADIENTS, strict=True):
        velocity = 0.7 * velocity + np.asarray(gradients["output"])
        np.testing.assert_allclose(step["output"], velocity, rtol=1e-5, atol=1e-6)


def test_adafactor_by_hand() -> None:
    """Shazeer and Stern 1804.04235, algorithm 4: V = R C / mean(R), decay 1 − t^−0.8, RMS clipped to 1."""
    found = directions(optimizers.Adafactor(learning_rate=0.3, decay_exponent=0.8, smallest_factored=8), GRADIENTS)
    rows, columns = np.zeros(8), np.zeros(16)
    for t, (step, gradients) in enumerate(zip(found, GRADIENTS, strict=True), 1):
        g = np.asarray(gradients["output"], np.float64)
        decay = 1 - t**-0.8
        rows = decay * rows + (1 - decay) * (g * g).mean(axis=1)
        columns = decay * columns + (1 - decay) * (g * g).mean(axis=0)
        update = g / np.sqrt(rows[:, None] * columns[None, :] / rows.mean())
        update /= max(1.0, math.sqrt((update**2).mean()))
        np.testing.assert_allclose(step["output"], update, rtol=1e-4, atol=1e-5)


def as_matrices(name: str, array: Any) -> np.ndarray:
    """The stacked array of a hidden weight as (layers, inputs, outputs)."""
    return np.asarray(array, np.float64).reshape(WEIGHTS[name].stack, WEIGHTS[name].fan_in, -1)


HIDDEN = [name for name, weight in WEIGHTS.items() if weight.role == "hidden"]


def well_conditioned(gradients: Tree) -> Tree:
    """Hidden matrices with their own singular vectors and singular values from 0.3 to 1."""
    made = dict(gradients)
    for name in HIDDEN:
        left, values, right = np.linalg.svd(as_matrices(name, gradients[name]), full_matrices=False)
        matrices = left * np.linspace(1.0, 0.3, values.shape[1]) @ right
        made[name] = jnp.asarray(matrices.reshape(WEIGHTS[name].full_shape), jnp.float32)
    return made


def test_muon_orthogonalises_each_layer_alone_at_the_rms_of_adam() -> None:
    """Singular values are all 0.2 √max(rows, columns), up to the 0.7 to 1.2 that five Newton–Schulz steps leave."""
    (step,) = directions(optimizers.Muon(learning_rate=0.3), [well_conditioned(GRADIENTS[0])])
    for name in HIDDEN:
        matrices = as_matrices(name, step[name])
        scale = 0.2 * math.sqrt(max(matrices.shape[1:]))
        singular = np.linalg.svd(matrices, compute_uv=False) / scale
        assert singular.shape == (3, 8)
        assert 0.65 < singular.min() <= singular.max() < 1.25, (name, singular)
        assert math.sqrt((matrices**2).mean()) == pytest.approx(0.2 * math.sqrt(8 / min(matrices.shape[1:])), rel=0.15)


def test_muon_takes_no_layer_for_the_scale_of_another() -> None:
    scaled = {**GRADIENTS[0], "layers.query": GRADIENTS[0]["layers.query"].at[1].multiply(100.0)}
    (one,), (other,) = (directions(optimizers.Muon(learning_rate=1.0), [each]) for each in (GRADIENTS[0], scaled))
    np.testing.assert_allclose(other["layers.query"], one["layers.query"], atol=1e-4)


def test_muon_turns_a_gradient_to_its_polar_factor() -> None:
    """The first step is along U Vᵀ of the gradient's singular vectors: descent, never ascent."""
    gradients = well_conditioned(GRADIENTS[0])
    (step,) = directions(optimizers.Muon(learning_rate=1.0), [gradients])
    for name in HIDDEN:
        for direction, gradient in zip(as_matrices(name, step[name]), as_matrices(name, gradients[name]), strict=True):
            left, _, right = np.linalg.svd(gradient, full_matrices=False)
            along = np.diag(left.T @ direction @ right.T) / (0.2 * math.sqrt(max(direction.shape)))
            assert along.min() > 0.6
            assert (direction * gradient).sum() > 0


def test_muon_is_adam_for_all_that_is_no_hidden_matrix() -> None:
    found = directions(optimizers.Muon(learning_rate=0.3, beta1=0.8, beta2=0.9, epsilon=1e-6), GRADIENTS)
    for name in WEIGHTS.keys() - set(HIDDEN):
        for step, expected in zip(found, adam([g[name] for g in GRADIENTS], 0.8, 0.9, 1e-6), strict=True):
            np.testing.assert_allclose(step[name], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(optimizers.Optimizer.group))
def test_a_direction_does_not_know_the_learning_rate(kind: str) -> None:
    """So that one compiled program serves all of them; and against the gradient it descends."""
    make = optimizers.Optimizer.group[kind]
    slow, fast = (
        directions(make(learning_rate=1e-3), GRADIENTS[:1])[0],
        directions(make(learning_rate=1.0), GRADIENTS[:1])[0],
    )
    for name in WEIGHTS:
        np.testing.assert_array_equal(slow[name], fast[name])
        assert float(jnp.vdot(slow[name], GRADIENTS[0][name])) > 0


@pytest.mark.parametrize("kind", sorted(optimizers.Optimizer.group))
def test_the_state_is_no_larger_than_planned(kind: str) -> None:
    optimizer = optimizers.Optimizer.group[kind](learning_rate=1.0)
    params = random_tree(0)
    state = optimizer.direction(WEIGHTS).init(params)
    floats = sum(leaf.size for leaf in jax.tree.leaves(state))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert floats <= optimizer.state_floats_per_param * count + 16  # counters, and a number where nothing is kept


@pytest.mark.parametrize(
    ("name", "axes"),
    [("layers.query", ((1,), (2, 3))), ("layers.output", ((1, 2), (3,))), ("layers.down", ((1,), (2,)))],
)
def test_the_axes_of_a_matrix_are_its_inputs_and_outputs(name: str, axes: Any) -> None:
    assert optimizers.matrix_axes(WEIGHTS[name]) == axes


# Weight decay


def test_independent_decay_follows_the_shape_and_coupled_decay_the_learning_rate() -> None:
    rates = np.array([0.01, 0.02, 0.005])
    independent = optimizers.AdamW(learning_rate=0.02, weight_decay=0.1)
    np.testing.assert_allclose(independent.decay(rates), [0.05, 0.1, 0.025])
    np.testing.assert_allclose(independent.edit({"learning_rate": 0.2}).decay(10 * rates), [0.05, 0.1, 0.025])
    coupled = independent.edit({"independent": False})
    np.testing.assert_allclose(coupled.decay(rates), [0.001, 0.002, 0.0005])
    assert not optimizers.AdamW(learning_rate=0.02).decay(rates).any()


# Schedules


def values(schedule: str, steps: int, warmup: int = 0, **fields: Any) -> np.ndarray:
    rise = schedules.WarmupTokens(tokens=warmup * 64)
    made = schedules.Schedule.group[schedule].model_validate({"warmup": rise, **fields})
    found = made.values(2.0, steps, 64)  # type: ignore[attr-defined]
    assert found.dtype == np.float32
    assert found.shape == (steps,)
    return found / 2.0


FIELDS = {"inverse_sqrt": {"timescale": 10}}


@pytest.mark.parametrize("kind", sorted(schedules.Schedule.group))
def test_a_schedule_rises_to_its_peak_and_never_above(kind: str) -> None:
    found = values(kind, 50, warmup=9, **FIELDS.get(kind, {}))
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)  # never zero, and the peak after warm-up
    assert found.max() <= 1 + 1e-6
    assert (np.diff(found[9:]) <= 1e-6).all()
    assert found[-1] > 0


@pytest.mark.parametrize("kind", sorted(schedules.Schedule.group))
@hypothesis.given(steps=st.integers(1, 40), warmup=st.integers(0, 39))
@hypothesis.settings(max_examples=12)
def test_a_schedule_of_any_length_is_finite_and_positive(kind: str, steps: int, warmup: int) -> None:
    if warmup >= steps:
        with pytest.raises(ValueError, match=f"warm-up of {warmup} steps does not end within a run of {steps} steps"):
            values(kind, steps, warmup, **FIELDS.get(kind, {}))
        return
    found = values(kind, steps, warmup, **FIELDS.get(kind, {}))
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_a_cosine_is_half_a_wave_over_the_whole_run() -> None:
    found = values("cosine", 40, floor=0.1)
    np.testing.assert_allclose(found, [0.1 + 0.9 * (1 + math.cos(math.pi * t / 40)) / 2 for t in range(40)], rtol=1e-5)
    assert values("cosine", 1040, warmup=1000, floor=0.1)[1020] == pytest.approx(0.55)  # halfway after the warm-up


def test_a_line_goes_straight_to_its_floor() -> None:
    np.testing.assert_allclose(values("linear", 10, floor=0.0), 1 - np.arange(10) / 10, rtol=1e-5)
    np.testing.assert_allclose(values("linear", 10, floor=0.5), 1 - np.arange(10) / 20, rtol=1e-5)


@pytest.mark.parametrize(("decay", "power"), [("sqrt", 0.5), ("linear", 1.0)])
def test_a_cooldown_has_its_shape_over_the_last_share(decay: str, power: float) -> None:
    found = values("wsd", 110, warmup=10, cooldown=0.2, decay=decay)
    assert (found[10:90] == 1).all()
    np.testing.assert_allclose(found[90:], 1 - (np.arange(20) / 20) ** power, rtol=1e-5)


def test_no_cooldown_is_constant() -> None:
    np.testing.assert_array_equal(values("wsd", 30, cooldown=0.0), values("constant", 30))


def test_an_inverse_root_halves_after_three_timescales() -> None:
    found = values("inverse_sqrt", 100, warmup=5, timescale=10)
    np.testing.assert_allclose(found[5:], np.sqrt(10 / (np.arange(95) + 10)), rtol=1e-5)
    assert found[5 + 30] == pytest.approx(0.5)


def test_a_warm_up_is_a_share_of_the_steps_or_a_number_of_tokens() -> None:
    assert schedules.WarmupFraction(fraction=0.1).steps(200, 64) == 20
    assert schedules.WarmupTokens(tokens=6400).steps(200, 64) == 100
    assert schedules.WarmupTokens(tokens=6400).steps(2000, 64) == 100
