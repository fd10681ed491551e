"""The gradient noise scale against planted truths: gaussian gradients, and a model's own over a known population."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import config, models
from scaling.data import corpus as corpora
from scaling.tasks import cross_entropy
from scaling.training import loop, noise, programs, states, steps

Make = Callable[..., config.Run]


def squared_norms(gradients: np.ndarray, small: int) -> tuple[np.ndarray, np.ndarray]:
    """Of draws (draws, batch, dimension): the mean square of the means of `small`, and the square of the whole mean."""
    draws, batch, dimension = gradients.shape
    parts = gradients.reshape(draws, batch // small, small, dimension).mean(axis=2)
    return (parts**2).sum(axis=-1).mean(axis=1), (gradients.mean(axis=1) ** 2).sum(axis=-1)


@pytest.mark.parametrize("small", [1, 4, 8])
def test_moments_are_unbiased_where_the_signal_is_far_below_the_noise(small: int) -> None:
    """Each draw's estimate scatters by far more than the truth; the mean of 20,000 is within 4 standard errors."""
    random = np.random.default_rng(0)
    mean, deviations = np.full(30, 0.1), np.linspace(0.2, 2.0, 30)
    gradients = mean + deviations * random.standard_normal((20_000, 16, 30))
    squared, variance = noise.moments(*squared_norms(gradients, small), small, 16)
    for found, truth in ((squared, mean @ mean), (variance, deviations @ deviations)):
        error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - truth) < 4 * error < 0.2 * truth
    assert np.mean(squared < 0) > 0.1  # so that a mean of ratios would be worth nothing


def test_the_scale_is_a_ratio_of_means_and_its_error_is_honest() -> None:
    """Over 300 repetitions the scatter of the scale is what its standard error says, within 20% (4% is one σ)."""
    random = np.random.default_rng(1)
    mean, deviations = np.full(20, 0.4), np.linspace(0.5, 1.5, 20)
    gradients = mean + deviations * random.standard_normal((300 * 100, 8, 20))
    squared, variance = (column.reshape(300, 100) for column in noise.moments(*squared_norms(gradients, 4), 4, 8))
    found = [noise.scale(s, v, context=32) for s, v in zip(squared, variance, strict=True)]
    values, errors = (np.array([getattr(each, name) for each in found])
                      for name in ("noise_scale_tokens", "noise_scale_tokens_se"))  # fmt: skip
    truth = 32 * (deviations @ deviations) / (mean @ mean)
    assert np.median(values) == pytest.approx(truth, rel=0.03)  # the median's own scatter is 1%
    assert np.std(values) == pytest.approx(np.median(errors), rel=0.2)
    assert {each.noise_scale_steps for each in found} == {100}


def test_no_scale_where_the_estimate_of_the_signal_is_not_positive() -> None:
    assert noise.scale(np.array([1.0, -2.0]), np.array([3.0, 3.0]), 8) == noise.Scale(None, None, 2)
    assert noise.scale(np.array([2.0]), np.array([3.0]), 8) == noise.Scale(12.0, None, 1)


def sequence_gradients(run: config.Run, params: Any, windows: np.ndarray) -> np.ndarray:
    """The gradient of each sequence's mean loss, (sequences, parameters), by a program of its own."""
    model = functools.partial(
        models.create, run.model, vocabulary_size=run.vocabulary_size, context=run.context,
        parametrization=run.parametrization, compute_dtype="float32", parameter_dtype="float32", layers="unroll",
        remat="none", seed=0,
    )  # fmt: skip

    def objective(params: Any, window: jax.Array) -> jax.Array:
        from flax import nnx

        logits = nnx.merge(nnx.graphdef(model()), states.unflat(params))(window[None, :-1])
        return cross_entropy.cross_entropy(logits, window[None, 1:])[0].mean()

    found = jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(params, jnp.asarray(windows))
    return np.concatenate([np.asarray(leaf, np.float64).reshape(len(windows), -1) for leaf in found.values()], axis=1)


@pytest.mark.parametrize("microbatch", [None, 1])
def test_a_step_finds_the_noise_scale_of_a_known_population(tiny: Make, microbatch: int | None) -> None:
    """Batches of 4 drawn from 24 sequences at fixed parameters: |G|² and tr Σ are known exactly from all 24."""
    run, execution = tiny(), config.Execution(steps_per_dispatch=800, noise_scale=True, microbatch=microbatch)
    program = programs.program(run, execution)
    random = np.random.default_rng(2)
    windows = random.integers(1, 9, (24, run.context + 1), np.int32)
    state = program.init(np.uint32(0), np.float32(1.0))
    each = sequence_gradients(run, state.params, windows)
    mean = each.mean(axis=0)
    truth = {"gradient_squared": mean @ mean, "gradient_variance": ((each - mean) ** 2).sum(axis=1).mean()}
    drawn = random.integers(0, 24, (800, 4))
    still = np.zeros(800, np.float32)
    work = steps.together([steps.dispatch(run, {"tokens": windows[drawn]}, still, still, 800)])
    _, metrics = program.train(program.stack([state]), {}, work)
    for name, expected in truth.items():
        found = np.asarray(getattr(metrics, name)[0], np.float64)
        error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - expected) < 4 * error < 0.2 * expected, name
    scale = noise.scale(np.asarray(metrics.gradient_squared[0]), np.asarray(metrics.gradient_variance[0]), run.context)
    assert scale.noise_scale_tokens is not None
    assert scale.noise_scale_tokens_se is not None
    expected = truth["gradient_variance"] / truth["gradient_squared"] * run.context
    assert abs(scale.noise_scale_tokens - expected) < 4 * scale.noise_scale_tokens_se
    # one step exactly: pairs of sequences give |G|², their scatter tr Σ (rounding of float32 sums: 1e-3)
    g = each[drawn[0]] if microbatch else each[drawn[0]].reshape(2, 2, -1).mean(axis=0)
    inner = g @ g.T
    pairs = inner[~np.eye(len(g), dtype=bool)].mean()
    assert float(metrics.gradient_squared[0, 0]) == pytest.approx(pairs, rel=1e-3)
    scatter = ((g - g.mean(axis=0)) ** 2).sum() / (len(g) - 1) * (4 / len(g))
    assert float(metrics.gradient_variance[0, 0]) == pytest.approx(scatter, rel=1e-3)


def test_runs_record_their_noise_scales_and_train_as_without(tiny: Make, tmp_path: Path) -> None:
    """Two members of a pack with it, one run alone without it."""
    corpus = corpora.prepare(tiny().data, lambda line: None)

    def rows_of(name: str, *runs: config.Run, **settings: Any) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = [[] for _ in runs]
        members = [
            loop.TrainingRun(run, [tmp_path / f"{name}{number}"], mine.extend, lambda: False)
            for number, (run, mine) in enumerate(zip(runs, rows, strict=True))
        ]
        loop.train(members, config.Execution(steps_per_dispatch=7, evaluations=2, **settings), corpus)
        return rows

    (alone,) = rows_of("plain", tiny())
    assert not any("noise" in key or "gradient_squared" in key for row in alone for key in row)
    pack = rows_of("noise", tiny(), tiny(seed=1), noise_scale=True)
    for rows in pack:
        trained, told = ([row for row in rows if row["kind"] == kind] for kind in ("train", "validation"))
        assert [row["noise_scale_steps"] for row in told] == [10, 10]
        for row, part in zip(told, (trained[:10], trained[10:]), strict=True):
            sums = [sum(r[key] for r in part) for key in ("gradient_variance", "gradient_squared")]
            assert row["noise_scale_tokens"] == pytest.approx(16 * sums[0] / sums[1])
    # halves sum in another order, and Adam's division by small gradients magnifies what that rounds: 1e-4 of a nat
    assert [row["loss"] for row in pack[0]] == pytest.approx([row["loss"] for row in alone], abs=1e-4)
    assert pack[0][-1]["noise_scale_tokens"] != pack[1][-1]["noise_scale_tokens"]


def test_a_batch_that_has_no_two_parts_is_refused(tiny: Make) -> None:
    with pytest.raises(ValueError, match="noise_scale compares two halves of a batch, and batch_size 1 is odd"):
        config.Execution(noise_scale=True).sequences(1)
    assert config.Execution(noise_scale=True, microbatch=1).sequences(3) == 1
    with pytest.raises(ValueError, match="noise_scale compares two halves"):
        programs.program(tiny(batch_size=5), config.Execution(noise_scale=True))
