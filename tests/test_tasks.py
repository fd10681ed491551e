"""Tasks and data that are no text, as docs/extending.md shows them: exact sums, reproducible draws, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from scaling import config, registry
from scaling.config import families
from scaling.data import corpus as corpora
from scaling.training import evaluation, loop, programs, steps
from tests import extending

Make = Callable[..., config.Run]
OWN = extending.module("sine.py")
SGD = {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0}


class Weighted(OWN.Regression):
    """Squared error, with weights of the examples as the data have them."""

    kind: str = "weighted_regression"

    def draw(self, example: dict[str, Any], key: Any) -> dict[str, Any]:
        return example

    def measure(self, model: Any, batch: dict[str, Any], options: Any) -> dict[str, Any]:
        return {"loss": super().measure(model, batch, options)["loss"]}


@pytest.mark.parametrize(
    ("group", "module"),
    [(config.Data, "corpus"), (config.Data, "text"), (config.Task, "cross_entropy"), (families.Family, "builder")],
)
def test_a_kind_of_ones_own_may_have_the_name_of_any_module(
    group: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "group", {})
    own = pydantic.create_model("Own", __base__=group, __module__=__name__, kind=(str, module))
    assert registry.implementation(own.model_construct()) is None
    assert registry.implementation(config.Text.model_construct()) is not None


def run_of(task: config.Task, **changes: Any) -> config.Run:
    run = OWN.sweep().base
    return run.edit({"task": task, "optimizer": SGD, "batch_size": 8, "tokens": 8 * 20, **changes})


def batch_of(seed: int = 0, weights: bool = True) -> dict[str, np.ndarray]:
    """Eight examples whose weights differ, some of them zero."""
    random = np.random.default_rng(seed)
    batch = {"x": random.standard_normal((8, 8), np.float32), "y": random.standard_normal(8, np.float32)}
    return {**batch, "weights": np.float32([0, 0, 1, 2, 0, 3, 0.5, 0])} if weights else batch


def one_step(run: config.Run, batch: dict[str, np.ndarray], first: int = 0, **execution: Any) -> Any:
    """The change of the parameters by one step of plain descent, and its metrics."""
    layout = corpora.ArrayCorpus(batch, batch).train_examples(1).layout(resident=False)
    program = programs.program(run, config.Execution(steps_per_dispatch=1, **execution), layout=layout)
    start = program.init(np.uint32(0), np.float32(1.0))
    one = np.ones(1, np.float32)
    given = steps.dispatch(run, {name: x[None] for name, x in batch.items()}, one, 0 * one, 1, first)
    state, metrics = program.train(program.stack([start]), {}, program.put(steps.together([given])))
    after = program.member(state, 0)
    return {name: np.asarray(after.params[name] - start.params[name]) for name in start.params}, metrics, start.params


@pytest.mark.parametrize("microbatch", [None, 2, 1])
def test_a_gradient_is_of_the_weighted_mean_over_the_batch_however_it_is_cut(microbatch: int | None) -> None:
    """Σ w·loss / Σ w over the whole batch; half of the microbatches of one example have no weight at all."""
    run, batch = run_of(Weighted()), batch_of()

    def plain(params: dict[str, jax.Array]) -> jax.Array:
        found = (jnp.tanh(batch["x"] @ params["input"]) @ params["output"])[:, 0]
        return (batch["weights"] * (found - batch["y"]) ** 2).sum() / batch["weights"].sum()

    moved, metrics, start = one_step(run, batch, microbatch=microbatch)
    value, gradient = jax.value_and_grad(plain)(start)
    np.testing.assert_allclose(metrics.loss, [[value]], rtol=1e-5)
    for name, expected in gradient.items():
        np.testing.assert_allclose(moved[name], -expected, rtol=1e-4, atol=1e-6)


def test_draws_follow_from_seed_and_step_and_not_from_the_microbatch() -> None:
    run, batch = run_of(OWN.Regression()), batch_of(weights=False)
    losses = {
        name: float(one_step(run.edit({"seed": seed}), batch, first, microbatch=microbatch)[1].loss[0, 0])
        for name, (seed, first, microbatch) in {
            "base": (0, 0, None), "again": (0, 0, None), "cut": (0, 0, 2), "seed": (1, 0, None), "step": (0, 1, None),
        }.items()
    }  # fmt: skip
    assert losses["again"] == losses["base"]
    assert losses["cut"] == pytest.approx(losses["base"], rel=1e-5)
    assert len({losses["base"], losses["seed"], losses["step"]}) == 3


def validated(task: config.Task, data: corpora.Corpus, seed: int = 0, **execution: Any) -> evaluation.Validation:
    run = run_of(task, seed=seed)
    layout = data.train_examples(1).layout(resident=False)
    program = programs.program(run, config.Execution(steps_per_dispatch=1, **execution), layout=layout)
    params = program.stack([program.init(np.uint32(0), np.float32(1.0))]).params
    return evaluation.validate(program, params, run, data)[0]


def test_validation_draws_the_same_for_every_run_and_batch() -> None:
    task, data = OWN.Regression(), OWN.Sine().find()
    base = validated(task, data)
    for other in (validated(task, data, seed=3), validated(task, data, microbatch=2)):
        assert other.loss == pytest.approx(base.loss, rel=1e-6)
        assert other.metrics == pytest.approx(base.metrics, rel=1e-6)
    reversed_data = corpora.ArrayCorpus(data.train, {name: x[::-1].copy() for name, x in data.validation.items()})
    assert validated(task, reversed_data).loss != base.loss  # other draws of other data
    assert base.bits_per_byte is None


@pytest.mark.parametrize("weights", [None, "ones", "zeros and ones"])
def test_means_and_errors_are_those_of_the_examples_that_count(weights: str | None) -> None:
    """Of 0 and 1, those of the examples of weight 1 alone; 30 examples, so that the last batch is not full."""
    random = np.random.default_rng(1)
    arrays = {"x": random.standard_normal((30, 8), np.float32), "y": random.standard_normal(30, np.float32)}
    counted = np.ones(30, bool) if weights != "zeros and ones" else random.random(30) < 0.5
    given = arrays if weights is None else {**arrays, "weights": np.float32(counted)}
    found = validated(Weighted(), corpora.ArrayCorpus(given, given))
    subset = {name: x[counted] for name, x in arrays.items()}
    alone = validated(Weighted(), corpora.ArrayCorpus(subset, subset))
    assert found.loss == pytest.approx(alone.loss, rel=1e-6)
    # n/(n−1) of all examples in place of those that count: 2% here
    assert found.loss_se == pytest.approx(alone.loss_se, rel=1e-6 if counted.all() else 0.05)


@pytest.mark.parametrize("resident", [True, False])
def test_rows_on_the_device_are_those_that_are_sent(resident: bool, tmp_path: Path, monkeypatch: Any) -> None:
    if not resident:
        monkeypatch.setattr(loop, "RESIDENT_BYTES", 0)
    run, data, rows = run_of(Weighted()).edit({"optimizer.learning_rate": 0.1}), OWN.Sine().find(), []
    given = loop.TrainingRun(run, [tmp_path / "1"], rows.extend, lambda: False)
    (outcome,) = loop.train([given], config.Execution(steps_per_dispatch=7, evaluations=2), data)
    assert outcome.status == "finished"
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    # by hand: the first batch is the first eight examples of the epoch's order
    batch = given.batches.at(0)
    np.testing.assert_array_equal(np.sin(batch["x"][:, 0]), batch["y"])
    assert len(losses) == 20
    assert losses[0] == pytest.approx(float(one_step(run, batch)[1].loss[0, 0]), rel=1e-5)


class Crooked(OWN.Regression):
    """Measures a number for each feature of an example, and weights of another shape."""

    kind: str = "crooked"

    def measure(self, model: Any, batch: dict[str, Any], options: Any) -> dict[str, Any]:
        return {**super().measure(model, batch, options), "wide": (batch["x"], batch["y"])}


def text_without_vocabulary() -> config.Run:
    return OWN.sweep().base.edit({"task": {"kind": "causal_lm"}})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (text_without_vocabulary, ValueError, "'causal_lm' predicts tokens, and data of kind 'sine' have no vocab.*"),
        (lambda: config.Data(), TypeError, "Data is a group of configs; write one of its kinds: .*Text"),
        (lambda: config.Task(), TypeError, "Task is a group of configs; write one of its kinds: .*CausalLM"),
        (lambda: config.Data.model_validate({"kind": "txet"}), ValueError, "did you mean 'text'"),
        (lambda: OWN.Sine().find().train_examples(4), ValueError, "1 positions; set context to 1"),
        (lambda: corpora.ArrayCorpus({"x": np.zeros(3)}, {}), ValueError, "'x' is of float64, .* cast it to f4"),
        (lambda: corpora.ArrayCorpus({"x": np.int32([0]), "y": np.int32([0, 1])}, {}).unique_tokens, ValueError,
         "are to be of one length and are {'x': 1, 'y': 2}"),
        (lambda: validated(Crooked(), OWN.Sine().find()), ValueError, "'wide' of the task 'crooked' has"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_data_without_a_kind_are_text_and_are_named_as_before(tiny: Make) -> None:
    run = tiny()
    assert isinstance(run.data, config.Text)
    assert "kind" not in run.identity()["data"]
    assert "task" not in run.identity()
    assert config.Run.model_validate(run.identity()) == run
