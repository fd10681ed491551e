"""Runs and sweeps: what a run refuses, what its name depends on, which points a sweep has."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from scaling import config
from scaling.config import grids, optimizers

Make = Callable[..., config.Run]
SHA = "c0ffee" * 10

# Another allowed value for every field that determines a result. `data.source` is not among them: its content counts.
CHANGES: dict[str, Any] = {
    "model": {"kind": "lstm", "width": 16, "depth": 1},
    "model.width": 32,
    "model.depth": 2,
    "model.tied": True,
    "model.heads": 1,
    "model.norm": "layernorm",
    "model.position": "none",
    "model.mlp": "swiglu",
    "model.biases": True,
    "model.qk_norm": True,
    "model.head_size": 4,
    "model.kv_heads": 1,
    "model.mlp_width": 24,
    "model.epsilon": 1e-5,
    "parametrization": {"kind": "mup", "base_width": 16, "base_depth": 1, "base_head_size": 8},
    "parametrization.init_scale": 2.0,
    "data.tokenizer": {"kind": "bpe", "vocabulary_size": 300},
    "data.validation_tokens": 256,
    "data.train_tokens": 1_000,
    "context": 32,
    "batch_size": 2,
    "tokens": 64 * 21,
    "optimizer": {"kind": "lion", "learning_rate": 0.01},
    "optimizer.learning_rate": 0.011,
    "optimizer.weight_decay": 0.1,
    "optimizer.independent": False,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.9,
    "optimizer.epsilon": 1e-6,
    "schedule": {"kind": "linear", "warmup": {"kind": "fraction", "fraction": 0.1}},
    "schedule.warmup": {"kind": "tokens", "tokens": 64},
    "schedule.warmup.fraction": 0.2,
    "precision.compute": "bfloat16",
    "precision.parameters": "bfloat16",
    "clip": 1.0,
    "z_loss": 1e-4,
    "seed": 1,
}


def leaves(part: Any, prefix: str = "") -> set[str]:
    """The dotted names of all fields of a config, parts and their fields alike."""
    names = set()
    for name in type(part).model_fields:
        names.add(prefix + name)
        value = getattr(part, name)
        if hasattr(type(value), "model_fields"):
            names |= leaves(value, f"{prefix}{name}.")
    return names


def test_every_field_of_a_run_is_among_the_changes(tiny: Make) -> None:
    names = {name for name in leaves(tiny()) if not name.startswith("data.source") and not name.endswith("kind")}
    covered = {name for change in CHANGES for name in (change, change.rpartition(".")[0])}
    assert names - covered == {
        "data.tokenizer.vocabulary_size",
        "task",
    }  # always 256; with no field


@pytest.mark.parametrize("field", CHANGES)
def test_a_run_has_another_name_where_a_field_differs(tiny: Make, field: str) -> None:
    run = tiny()
    changed = run.edit({field: CHANGES[field]})
    assert changed != run
    assert changed.run_id(SHA) != run.run_id(SHA)


@pytest.mark.smoke
def test_the_name_of_a_run_never_changes(tiny: Make) -> None:
    """Stores of results are found by it: if this fails, runs that were trained would be trained again."""
    assert tiny().run_id(SHA) == "87de1392cce26282"


def test_a_run_is_named_by_the_content_of_its_corpus_not_by_its_place(tiny: Make) -> None:
    run = tiny()
    moved = run.edit({"data.source": {"kind": "files", "glob": "/elsewhere/*.txt", "validation_fraction": 0.1}})
    assert moved.run_id(SHA) == run.run_id(SHA)
    assert run.run_id("0" * 64) != run.run_id(SHA)


def test_the_name_is_that_of_the_run_read_back_from_json(tiny: Make) -> None:
    run = tiny(optimizer__learning_rate=1, clip=1)
    assert config.Run.from_json(run.to_json()).run_id(SHA) == run.run_id(SHA)
    assert tiny(optimizer__learning_rate=1.0, clip=1.0).run_id(SHA) == run.run_id(SHA)


def test_how_a_sweep_is_executed_and_tracked_changes_no_name(tiny: Make) -> None:
    sweep = config.Sweep(name="one", base=tiny())
    other = sweep.edit(
        {
            "name": "two",
            "execution": {
                "mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "microbatch": 1, "layers": "scan", "remat": "full",
                "steps_per_dispatch": 3, "evaluations": 5, "checkpoint_seconds": 1.0, "keep_last_checkpoint": False,
            },
            "trackers": [{"kind": "wandb", "mode": "offline", "project": "p", "entity": "e"}],
        }
    )  # fmt: skip
    assert set(config.Execution.model_fields) == set(json.loads(other.to_json())["execution"])
    assert [p.run.run_id(SHA) for p in other.points()] == [p.run.run_id(SHA) for p in sweep.points()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 63}, r"63 tokens are fewer than one batch of 64 \(4 × 16\); train on more tokens"),
        ({"tokens": 100}, "no whole number of batches of 64; the nearest is 128"),
        ({"data.validation_tokens": 500}, "500 is no multiple of context 16; the nearest is 496"),
        ({"data.validation_tokens": 3}, "the nearest is 16"),
        ({"model.heads": 3}, "3 heads do not divide width 16; choose a divisor or set head_size"),
        ({"model.kv_heads": 3}, "3 kv_heads do not divide 2 heads"),
        ({"model.width": 6}, "rotary positions need an even head size, not 3"),
        ({"model.width": -8}, "greater than 0"),
        ({"batch_size": 0}, "greater than 0"),
        ({"seed": 2**32}, "less than 4294967296"),
        ({"clip": 0.0}, "greater than 0"),
        (
            {
                "parametrization": {"kind": "mup", "base_width": 16, "base_depth": 1, "base_head_size": 8},
                "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            },
            r"Adam-like optimizers \(adamw, lion\), not for 'sgd'; use one of them or parametrization 'standard'",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_the_remedy(tiny: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().edit(changes)


def test_steps_are_tokens_over_batches(tiny: Make) -> None:
    run = tiny(tokens=7 * 3 * 32, batch_size=3, context=32)
    assert (run.batch_tokens, run.steps, run.vocabulary_size) == (96, 7, 256)


@pytest.mark.parametrize("name", ["", "a b", "../a", ".hidden", "a/b"])
def test_a_sweep_is_named_as_a_folder_may_be(tiny: Make, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        config.Sweep(name=name, base=tiny())


def test_a_run_made_twice_is_one_point(tiny: Make) -> None:
    twice = grids.Chain(parts=(grids.Axis(field="seed", values=(0, 1)), grids.Axis(field="seed", values=(1, 2, 1))))
    points = config.Sweep(name="s", base=tiny(), grid=twice).points()
    assert [point.run.seed for point in points] == [0, 1, 2]


def test_points_are_labelled_with_their_own_family(tiny: Make) -> None:
    models = ({"kind": "lstm", "width": 16, "depth": 1}, tiny().model)
    points = config.Sweep(name="s", base=tiny(), grid=grids.Axis(field="model", values=models)).points()
    assert [point.labels["family"] for point in points] == ["lstm", "transformer"]
    assert {point.labels["role"] for point in points} == {"single"}


def test_importing_configs_starts_nothing() -> None:
    heavy = ("jax", "flax", "optax", "pandas", "wandb")
    code = f"import sys, scaling.config; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert shown.stdout.strip() == "[]"


def test_adam_like_optimizers_are_those_that_say_so() -> None:
    likes = {kind for kind, each in optimizers.Optimizer.group.items() if each(learning_rate=1.0).adam_like}
    assert likes == {"adamw", "lion"}
