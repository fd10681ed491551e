"""Stores of small runs, as the plan of a sweep writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, store
from scaling.launch import launcher
from scaling.launch.launchers import local
from scaling.store import record
from tests.sweep import trainers

DATA: dict[str, Any] = {
    "source": {
        "kind": "synthetic", "alphabet": 8, "exponent": 1.0, "seed": 0, "train_symbols": 8192,
        "validation_symbols": 512,
    },
    "tokenizer": {"kind": "bytes"},
    "validation_tokens": 64,
}  # fmt: skip


@pytest.fixture
def identity() -> trainers.Identity:
    return trainers.Identity()


@pytest.fixture
def make_run() -> Callable[..., config.Run]:
    """Small transformers of 20 steps; keyword arguments change dotted fields."""

    def make(**changes: Any) -> config.Run:
        run = config.Run.model_validate(
            {
                "model": {
                    "kind": "transformer", "width": 8, "depth": 1, "heads": 2, "norm": "rmsnorm",
                    "position": "rotary", "mlp": "gelu", "biases": False, "qk_norm": False,
                },
                "parametrization": {"kind": "standard"},
                "data": DATA,
                "context": 16,
                "batch_size": 2,
                "tokens": 640,
                "optimizer": {"kind": "adamw", "learning_rate": 0.01},
                "schedule": {"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.1}},
                "precision": {"compute": "float32"},
            }
        )  # fmt: skip
        return run.edit({name.replace("__", "."): value for name, value in changes.items()})

    return make


@pytest.fixture
def fill() -> Callable[..., list[str]]:
    """Puts runs, and a sweep of them, into a store; gives their ids."""

    def put(
        results: store.Store,
        runs: list[config.Run],
        name: str = "small",
        trackers: Any = (),
        execution: config.Execution | None = None,
        **labels: Any,
    ) -> list[str]:
        records = [record.config_record(run, trainers.Identity()) for run in runs]
        for kept in records:
            results.add_run(kept["run_id"], kept)
        settings = {"execution": execution or config.Execution(), "trackers": trackers}
        sweep = config.Sweep(name=name, base=runs[0], **settings)
        labels = {"family": "transformer", "role": "single", **labels}
        members = [{"run_id": kept["run_id"], "labels": labels} for kept in records]
        results.add_sweep(name, sweep.model_dump(mode="json"), members)
        return [kept["run_id"] for kept in records]

    return put


@pytest.fixture
def results(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "store")


@pytest.fixture
def launch() -> Callable[..., local.LocalWorkers]:
    """Starts local workers for what is open of a sweep."""

    def start(path: Path, sweep: str, workers: int | None) -> local.LocalWorkers:
        results = store.Store(path)
        mesh = config.Mesh.model_validate(results.sweep(sweep)["config"]["execution"]["mesh"])
        left = sum(status in store.OPEN for status in results.statuses(sweep).values())
        return local.Local().start(launcher.Job(str(path), sweep, mesh, left, workers))

    return start
