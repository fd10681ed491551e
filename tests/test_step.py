"""The compiled step: what it computes against plain JAX, and what does not change it."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling import config, models
from scaling.training import programs, states, steps, updates

Make = Callable[..., config.Run]
FOUR = config.Execution(steps_per_dispatch=4)
SINGLY = FOUR.edit({"microbatch": 1})  # each sequence by itself
BFLOAT16 = {"compute": "bfloat16", "parameters": "bfloat16"}
SGD = {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0}
LION = {"kind": "lion", "learning_rate": 1.0}
ONE = np.float32(1.0)
MUP = {"kind": "mup", "base_width": 8, "base_depth": 1, "base_head_size": 4}


def batches(run: config.Run, count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(1, 9, (count, run.batch_size, run.context + 1), np.int32)


def train(
    run: config.Run,
    data: np.ndarray,
    execution: config.Execution = FOUR,
    rates: Any = 0.01,
    decays: Any = 0.0,
    start: states.State | None = None,
) -> tuple[states.State, updates.Metrics]:
    """All of `data` in dispatches of the execution's length, from the run's own start or from `start`."""
    program = programs.program(run, execution)
    chunk, count = program.steps_per_dispatch, len(data)
    rates, decays = (np.broadcast_to(np.asarray(x, np.float32), count) for x in (rates, decays))
    state = program.stack([program.init(np.uint32(run.seed), ONE) if start is None else start])
    parts = []
    for at in range(0, count, chunk):
        here = min(chunk, count - at)
        mine = steps.dispatch(
            run, {"tokens": data[at : at + here]}, rates[at : at + here], decays[at : at + here], chunk
        )
        state, metrics = program.train(state, {}, steps.together([mine]))
        parts.append(jax.tree.map(lambda x, here=here: np.asarray(x)[0, :here], metrics))
    return program.member(state, 0), jax.tree.map(lambda *x: np.concatenate(x), *parts)


def start_of(run: config.Run, execution: config.Execution = FOUR) -> dict[str, jax.Array]:
    scale = np.float32(run.parametrization.init_scale)
    return programs.program(run, execution).init(np.uint32(run.seed), scale).params


def plain_loss(run: config.Run, params: dict[str, jax.Array], batch: np.ndarray, z_loss: float = 0.0) -> jax.Array:
    """The objective in a few lines of plain JAX."""
    model = nnx.eval_shape(
        lambda: models.create(
            run.model, vocabulary_size=run.vocabulary_size, context=run.context, parametrization=run.parametrization,
            compute_dtype="float32", parameter_dtype="float32", layers="unroll", remat="none", seed=0,
        )
    )  # fmt: skip
    logits = nnx.merge(nnx.graphdef(model), states.unflat(params))(jnp.asarray(batch[:, :-1]))
    targets = jax.nn.one_hot(batch[:, 1:], run.vocabulary_size)
    nats = -(jax.nn.log_softmax(logits) * targets).sum(axis=-1)
    log_z = jnp.log(jnp.exp(logits).sum(axis=-1))
    return nats.mean() + z_loss * (log_z**2).mean()


def close(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            np.asarray(found[name]), np.asarray(expected[name]), rtol=rtol, atol=atol, err_msg=name
        )


def difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64) for name in before}


def every_role(tiny: Make) -> config.Run:
    return tiny(
        optimizer=LION, parametrization=MUP, model__norm="layernorm", model__biases=True, model__position="learned"
    )


# One step


def test_a_step_is_the_gradient_of_the_mean_loss(tiny: Make) -> None:
    run = tiny(optimizer=SGD)
    before, data = start_of(run), batches(run, 1)
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(plain_loss, run)))(before, data[0])
    state, metrics = train(run, data, rates=1.0)
    close(difference(state.params, before), {name: -g for name, g in gradient.items()}, atol=1e-5)
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    size = np.sqrt(sum(float((p**2).sum()) for p in before.values()))
    np.testing.assert_allclose(metrics.loss, [value], rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, [norm], rtol=1e-4)
    np.testing.assert_allclose(metrics.param_norm, [size], rtol=1e-5)
    np.testing.assert_allclose(metrics.update_ratio, [norm / size], rtol=1e-4)


def test_z_loss_adds_the_gradient_of_its_formula_and_leaves_the_reported_loss(tiny: Make) -> None:
    plain, with_z = tiny(optimizer=SGD), tiny(optimizer=SGD, z_loss=0.5)
    before, data = start_of(plain), batches(plain, 1)
    without, reported = train(plain, data, rates=1.0)
    state, also = train(with_z, data, rates=1.0)
    added = jax.jit(jax.grad(lambda p: plain_loss(plain, p, data[0], 0.5) - plain_loss(plain, p, data[0])))
    expected = added(before)
    close(difference(state.params, without.params), {name: -g for name, g in expected.items()}, atol=1e-5)
    np.testing.assert_allclose(also.loss, reported.loss, rtol=1e-6)
    assert max(float(jnp.abs(g).max()) for g in expected.values()) > 1e-3


@pytest.mark.parametrize(("share", "clipped"), [(0.5, True), (2.0, False)])
def test_clipping_bounds_the_global_norm_and_reports_it_before(tiny: Make, share: float, clipped: bool) -> None:
    run = tiny(optimizer=SGD)
    before, data = start_of(run), batches(run, 1)
    whole, metrics = train(run, data, rates=1.0)
    norm = float(metrics.gradient_norm[0])
    state, also = train(run.edit({"clip": share * norm}), data, rates=1.0)
    np.testing.assert_allclose(also.gradient_norm, metrics.gradient_norm, rtol=1e-6)
    factor = share if clipped else 1.0
    expected = {name: factor * change for name, change in difference(whole.params, before).items()}
    close(difference(state.params, before), expected, atol=1e-6)


def test_decay_shrinks_matrices_and_leaves_gains_biases_and_positions(tiny: Make) -> None:
    """Also where μP multiplies the learning rate of some of them."""
    run = every_role(tiny)
    before, data = start_of(run), batches(run, 1)
    roles = {weight.name: weight.role for weight in run.weights}
    state, metrics = train(run, data, rates=0.0, decays=0.25)
    for name, change in difference(state.params, before).items():
        share = 0.0 if roles[name] in ("vector", "position") else -0.25
        np.testing.assert_allclose(change, share * np.asarray(before[name]), rtol=1e-5, atol=1e-7, err_msg=name)
    assert {roles[name] for name in before} == {"embedding", "position", "hidden", "vector", "output"}
    shrunk = np.sqrt(sum(float((before[n] ** 2).sum()) for n in before if roles[n] not in ("vector", "position")))
    np.testing.assert_allclose(metrics.update_ratio, [0.25 * shrunk / float(metrics.param_norm[0])], rtol=1e-5)


def test_the_multipliers_of_mup_scale_each_update(tiny: Make) -> None:
    """At a base of half the width a hidden matrix moves half as far in a first step of Lion, which is ± the rate."""
    run = every_role(tiny)
    state, _ = train(run, batches(run, 1), rates=0.01)
    before = start_of(run)
    for weight in run.weights:
        moved = np.abs(np.asarray(state.params[weight.name] - before[weight.name]))
        expected = 0.005 if weight.role == "hidden" else 0.01
        np.testing.assert_allclose(moved.max(), expected, rtol=1e-3, err_msg=weight.name)


# What does not change the result


# Muon's program takes three times as long to compile, and Adam's shows the same in small.
@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_many_steps_a_dispatch_are_single_steps(tiny: Make, kind: str) -> None:
    """Seven steps in dispatches of one, and of four with the last one short."""
    run = tiny(optimizer={"kind": kind, "learning_rate": 0.01})
    data, rates = batches(run, 7), np.linspace(0.001, 0.01, 7)
    one, singly = train(run, data, config.Execution(steps_per_dispatch=1), rates, 0.1)
    many, chunked = train(run, data, FOUR, rates, 0.1)
    np.testing.assert_allclose(chunked.loss, singly.loss, rtol=1e-6)
    close(many.params, one.params, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), many.optimizer, one.optimizer)


def test_accumulated_microbatches_are_the_whole_batch(tiny: Make) -> None:
    """Up to the order of float32 sums, by plain descent: Adam's g/√g² of a gradient near 0 is a sign of rounding."""
    run = tiny(optimizer=SGD, clip=0.5, z_loss=1e-3)
    data = batches(run, 3)
    whole, expected = train(run, data)
    parts, found = train(run, data, FOUR.edit({"microbatch": 2}))
    for name in ("loss", "gradient_norm", "param_norm", "update_ratio"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-5, err_msg=name)
    close(parts.params, whole.params, rtol=1e-4, atol=2e-6)


def test_a_step_depends_on_every_microbatch(tiny: Make) -> None:
    run = tiny(optimizer=SGD, clip=0.5, z_loss=1e-3)
    data = batches(run, 1)
    before, _ = train(run, data, FOUR.edit({"microbatch": 2}), 1.0)
    for row in range(run.batch_size):
        changed = data.copy()
        changed[0, row] = changed[0, row][::-1]
        after, _ = train(run, changed, FOUR.edit({"microbatch": 2}), 1.0)
        assert any((np.asarray(after.params[n]) != np.asarray(before.params[n])).any() for n in before.params)


def test_scan_and_remat_change_only_rounding(tiny: Make) -> None:
    """Against plain descent through layers one after the other."""
    run, execution = tiny(model__depth=2, optimizer=SGD), FOUR.edit({"layers": "scan", "remat": "full"})
    data = batches(run, 2)
    state, found = train(run, data, execution)
    objective = jax.jit(jax.value_and_grad(functools.partial(plain_loss, run)))
    params = start_of(run, execution)
    for step, batch in enumerate(data):
        value, gradient = objective(params, batch)
        norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        np.testing.assert_allclose(found.loss[step], value, rtol=1e-5)
        np.testing.assert_allclose(found.gradient_norm[step], norm, rtol=1e-4)
        params = {name: p - 0.01 * gradient[name] for name, p in params.items()}
    close(state.params, params)


def test_rows_beyond_the_steps_asked_for_are_not_trained(tiny: Make) -> None:
    run = tiny()
    program = programs.program(run, FOUR)
    data = batches(run, 4)
    ones = np.ones(4, np.float32)
    changed = data.copy()
    changed[2:] = 3
    found = []
    for each in (data, changed):
        asked = steps.together([steps.dispatch(run, {"tokens": each}, 0.01 * ones, 0 * ones, 4)])._replace(
            steps=np.int32([2])
        )
        state, metrics = program.train(program.stack([program.init(np.uint32(0), ONE)]), {}, asked)
        found.append(state.params)
        assert not np.asarray(metrics.loss)[0, 2:].any()
    jax.tree.map(np.testing.assert_array_equal, *found)


# One program for many runs


def test_one_program_serves_learning_rates_seeds_schedules_and_lengths(tiny: Make) -> None:
    run = tiny()
    program = programs.program(run, FOUR)
    same = (
        {"optimizer.learning_rate": 0.5}, {"optimizer.weight_decay": 0.1}, {"optimizer.independent": False},
        {"seed": 5}, {"tokens": 64 * 7}, {"clip": 1.0}, {"z_loss": 1e-4}, {"parametrization.init_scale": 2.0},
        {"schedule": {"kind": "wsd", "warmup": {"kind": "tokens", "tokens": 64}}},
    )  # fmt: skip
    compiled = programs._program.cache_info().misses
    assert all(programs.program(run.edit(change), FOUR) is program for change in same)
    assert programs._program.cache_info().misses == compiled
    assert programs.program(run.edit({"optimizer": SGD}), FOUR) is not program


def test_two_learning_rates_and_seeds_compile_nothing_more(tiny: Make) -> None:
    run = tiny()
    data = batches(run, 3)
    train(run, data)
    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: (
            compilations.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    slow, _ = train(run.edit({"optimizer.learning_rate": 0.001, "seed": 1}), data, rates=0.001)
    fast, _ = train(run.edit({"optimizer.learning_rate": 0.1, "seed": 2}), data, rates=0.1)
    assert compilations == []
    assert (np.asarray(slow.params["output"]) != np.asarray(fast.params["output"])).any()
    jax.jit(lambda x: x + compilations.__len__())(1.0)  # the listener hears a compilation where there is one
    assert compilations != []


def test_seeds_differ_and_equal_seeds_are_equal(tiny: Make) -> None:
    one, two = start_of(tiny(seed=1)), start_of(tiny(seed=2))
    jax.tree.map(np.testing.assert_array_equal, one, start_of(tiny(seed=1)))
    assert (np.asarray(one["output"]) != np.asarray(two["output"])).all()
    assert np.isfinite(np.asarray(start_of(tiny(seed=2**32 - 1))["output"])).all()


def test_the_parameters_are_those_of_the_table(tiny: Make) -> None:
    run = tiny(precision=BFLOAT16)
    params = start_of(run, SINGLY)
    assert {name: p.shape for name, p in params.items()} == {w.name: w.full_shape for w in run.weights}
    assert {p.dtype for p in params.values()} == {jnp.dtype("bfloat16")}
    state, metrics = train(run, batches(run, 5), SINGLY, rates=0.01)
    assert {p.dtype for p in state.params.values()} == {jnp.dtype("bfloat16")}
    assert metrics.loss[-1] < metrics.loss[0]


def test_sums_are_float32_where_parameters_are_bfloat16(tiny: Make) -> None:
    """The gradient summed over microbatches, the loss, and the norms, which bfloat16 would give to a part in 256."""
    run = tiny(precision=BFLOAT16)
    params, data = start_of(run, SINGLY), batches(run, 1)
    gradient = jax.jit(programs.program(run, SINGLY).parts.gradient)
    mean, gradients, _ = gradient(params, {"tokens": data[0]}, jnp.float32(0.0))
    assert {leaf.dtype for leaf in [mean, *gradients.values()]} == {jnp.dtype("float32")}
    _, metrics = train(run, data, SINGLY)
    for name, tree in (("gradient_norm", gradients), ("param_norm", params)):
        exact = np.sqrt(sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in tree.values()))
        # A step may round activations elsewhere than the gradient compiled by itself.
        np.testing.assert_allclose(getattr(metrics, name)[0], exact, rtol=1e-3 if name == "gradient_norm" else 1e-6)


def test_validation_gives_the_nats_of_every_token(tiny: Make) -> None:
    run = tiny()
    program, data = programs.program(run, FOUR), batches(run, 1)
    params = jax.tree.map(lambda x: x[None], start_of(run))
    nats = program.evaluate(params, {"tokens": data[0]}, None)["loss"][0][0]
    assert nats.shape == (run.batch_size, run.context)
    np.testing.assert_allclose(np.asarray(nats).mean(), plain_loss(run, start_of(run), data[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("microbatch", "message"),
    [(3, "microbatch 3 does not divide batch_size 4; choose a divisor"), (8, "does not divide")],
)
def test_a_microbatch_that_does_not_fit_is_refused(tiny: Make, microbatch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        programs.program(tiny(), FOUR.edit({"microbatch": microbatch}))


def test_the_ops_of_a_step_bear_the_names_of_its_phases(tiny: Make) -> None:
    """What a profiler shows of them: every product of matrices belongs to the forward or the backward pass."""
    compiled: Any = programs.program(tiny(), FOUR).train
    names = set(re.findall(r'op_name="(jit\(train\)[^"]*)"', compiled.as_text()))
    for phase in ("jvp(forward)", "jvp(loss)", "transpose(jvp(forward))", "optimizer"):
        assert any(f"/{phase}/" in name for name in names), phase
    products = [name for name in names if name.endswith("dot_general")]
    assert products
    assert all("jvp(forward)" in name or "jvp(loss)" in name for name in products)
