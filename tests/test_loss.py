"""Cross-entropy: by hand, and in chunks against the whole."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import config, counting
from scaling.tasks import cross_entropy
from scaling.training import programs, steps

Make = Callable[..., config.Run]
BATCH, CONTEXT, WIDTH, VOCABULARY = 3, 10, 8, 40


def head(matrix: jax.Array, features: jax.Array) -> jax.Array:
    return features @ matrix.astype(features.dtype)


def inputs(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A matrix, features and targets whose logits are of order 3."""
    keys = jax.random.split(jax.random.key(seed), 3)
    matrix = jax.random.normal(keys[0], (WIDTH, VOCABULARY))
    features = jax.random.normal(keys[1], (BATCH, CONTEXT, WIDTH))
    return matrix, features, jax.random.randint(keys[2], (BATCH, CONTEXT), 0, VOCABULARY)


def value_and_gradients(z_loss: float, chunk: int | None) -> Callable[..., Any]:
    def objective(matrix: jax.Array, features: jax.Array, targets: jax.Array) -> Any:
        return cross_entropy.mean_loss(head, matrix, features, targets, z_loss, chunk)

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))


def largest(program: str) -> int:
    """Elements of the largest array that a compiled program names."""
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"[a-z]+\d+\[([\d,]+)\]", program))


def test_cross_entropy_by_hand() -> None:
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [4.0, 4.0, 8.0]]))
    nats, log_z = cross_entropy.cross_entropy(logits, jnp.array([2, 0]))
    np.testing.assert_allclose(nats, [np.log(8 / 5), np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(log_z, [np.log(8), np.log(16)], rtol=1e-6)


def test_cross_entropy_of_large_logits_stays_finite() -> None:
    nats, _ = cross_entropy.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    assert float(nats[0]) == 2e4


@pytest.mark.parametrize(("chunk", "z_loss"), [(1, 0.3), (12, 0.0), (12, 0.3)])  # 1 and 4 of ten positions at once
def test_the_loss_in_chunks_is_the_whole_loss(chunk: int, z_loss: float) -> None:
    """Up to the order of float32 sums."""
    whole = value_and_gradients(z_loss, None)(*inputs())
    found = value_and_gradients(z_loss, chunk)(*inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), found, whole)
    matrix, features, targets = inputs()
    nats = -jnp.take_along_axis(jax.nn.log_softmax(features @ matrix), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(cross_entropy.token_losses(head, matrix, features, targets, chunk), nats, rtol=1e-5)
    np.testing.assert_allclose(found[0][1], nats.mean(), rtol=1e-6)
    plain = cross_entropy.mean_loss(head, matrix, features, targets, z_loss, chunk)  # not differentiated
    np.testing.assert_allclose(plain, whole[0], rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 12])
def test_weights_make_sums_of_the_tokens_that_have_them(chunk: int | None) -> None:
    """Σ w·nats and Σ w·(nats + z·log²Z) with their gradients, against a softmax in plain JAX."""
    (matrix, features, targets), z_loss = inputs(), 0.3
    weights = jnp.asarray(np.random.default_rng(0).integers(0, 3, targets.shape), jnp.float32)

    def plain(matrix: jax.Array, features: jax.Array) -> Any:
        logits = features @ matrix
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nats = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return (weights * (nats + z_loss * log_z**2)).sum(), (weights * nats).sum()

    def chunked(matrix: jax.Array, features: jax.Array) -> Any:
        return cross_entropy.mean_loss(head, matrix, features, targets, z_loss, chunk, weights)

    found, expected = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))(matrix, features)
        for function in (chunked, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), found, expected)


def test_the_gradient_follows_what_is_done_with_the_loss() -> None:
    def twice(chunk: int | None) -> Callable[[jax.Array], jax.Array]:
        _, features, targets = inputs()
        return lambda matrix: 2 * cross_entropy.mean_loss(head, matrix, features, targets, 0.1, chunk)[0] ** 2

    matrix = inputs()[0]
    # 4 · loss of about 5 times the gradient: its float32 rounding is that of the order of sums.
    found, expected = (jax.jit(jax.grad(twice(chunk)))(matrix) for chunk in (6, None))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_members_of_a_vmap_have_each_their_own_loss_in_chunks() -> None:
    members = [inputs(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.vmap(value_and_gradients(0.1, 9))(*stacked)
    whole = value_and_gradients(0.1, None)
    for index, member in enumerate(members):
        alone = whole(*member)
        one = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        # Up to the order of float32 sums.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), one, alone)


def test_the_gradient_of_a_bfloat16_matrix_is_summed_in_float32() -> None:
    """1,024 chunks of one token, each adding the same: a sum in bfloat16 stops at 256 times a summand."""
    matrix, features = jnp.zeros((1, 2), jnp.bfloat16), jnp.ones((1, 1024, 1), jnp.bfloat16)
    targets = jnp.zeros((1, 1024), jnp.int32)
    (_, _), (found, _) = value_and_gradients(0.0, 1)(matrix, features, targets)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), [[-0.5, 0.5]])  # softmax less the target, exact


def tied(tiny: Make) -> config.Run:
    """A run of plain descent: Adam would magnify the rounding of small gradients."""
    return tiny(z_loss=1e-3, model__tied=True, optimizer={"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0})


@pytest.mark.parametrize(("chunk", "whole"), [(16, False), ("auto", True)])
def test_no_array_of_the_compiled_step_holds_all_logits(tiny: Make, chunk: Any, whole: bool) -> None:
    """The largest array is one chunk's logits, or all of them; the tiny run's are too few to be cut unasked."""
    run = tied(tiny)
    program: Any = programs.program(run, config.Execution(steps_per_dispatch=2, loss_chunk=chunk))
    tokens = run.batch_tokens if whole else 16
    assert largest(program.train.as_text()) == tokens * run.vocabulary_size
    assert largest(program.evaluate.as_text()) == tokens * run.vocabulary_size


def test_a_run_in_chunks_is_the_run(tiny: Make) -> None:
    """Up to the order of float32 sums; tied and with microbatches, so that all paths meet."""
    run = tied(tiny)
    batches = np.random.default_rng(0).integers(1, 9, (2, run.batch_size, run.context + 1), np.int32)
    rates = np.full(2, 0.1, np.float32)
    ends = []
    for settings in ({"loss_chunk": "auto"}, {"loss_chunk": 12, "microbatch": 2}):
        program = programs.program(run, config.Execution(steps_per_dispatch=2, **settings))
        dispatch = steps.together([steps.dispatch(run, {"tokens": batches}, rates, 0 * rates, 2)])
        state = program.stack([program.init(np.uint32(0), np.float32(1.0))])
        state, metrics = program.train(state, {}, dispatch)
        nats = program.evaluate(state.params, {"tokens": batches[0][: program.validation_batch]}, None)["loss"][0]
        ends.append((state.params, metrics, nats[:, :2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), *ends)


@pytest.mark.parametrize(
    ("setting", "tokens", "vocabulary", "shards", "chunk"),
    [
        ("auto", 16 * 256, 256, 1, None),  # 4 MB
        ("auto", 8 * 1024, 50_304, 1, 2668),  # 1.6 GB in chunks of half a GiB
        ("auto", 8 * 1024, 50_304, 4, None),  # 0.4 GB on each device
        ("auto", 64 * 1024, 50_304, 4, 10_672),
        (None, 64 * 1024, 50_304, 1, None),
        (512, 4096, 256, 1, 512),
        (4096, 4096, 256, 1, None),
    ],
)
def test_logits_are_cut_where_they_are_large(
    setting: Any, tokens: int, vocabulary: int, shards: int, chunk: int | None
) -> None:
    assert counting.loss_chunk(setting, tokens=tokens, vocabulary_size=vocabulary, width=64, shards=shards) == chunk


def test_a_pack_holds_the_logits_of_all_its_members() -> None:
    assert counting.loss_chunk("auto", tokens=8 * 1024, vocabulary_size=50_304, width=64, members=4) == 2668 // 4
    assert counting.loss_chunk("auto", tokens=4096, vocabulary_size=256, width=64, members=64) is None
