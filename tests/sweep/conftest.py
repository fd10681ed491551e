"""Stores of small runs that nobody needs to train: what a sweep's plan would have written."""

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scaling.training
from scaling import config, store
from scaling.launch import launcher
from scaling.launch.launchers import local
from scaling.store import record

DATA: dict[str, Any] = {
    "source": {
        "kind": "synthetic", "alphabet": 8, "exponent": 1.0, "seed": 0, "train_symbols": 8192,
        "validation_symbols": 512,
    },
    "tokenizer": {"kind": "bytes"},
    "validation_tokens": 64,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Identity:
    """A corpus as far as a record needs it."""

    data_sha256: str = "a" * 64
    unique_tokens: int = 10_000
    validation_id: str = "b" * 16
    tokenizer_id: str = "bytes"


@pytest.fixture
def identity() -> Identity:
    return Identity()


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
        records = [record.config_record(run, Identity()) for run in runs]
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
def outcome() -> Callable[..., Any]:
    """What training gives back, without importing it."""

    def make(status: str, step: int = 20, reason: str = "", loss: float | None = None) -> Any:
        measured = {"loss": loss, "loss_se": 0.01 if loss else None, "bits_per_byte": loss}
        return types.SimpleNamespace(status=status, step=step, reason=reason, seconds=1.5, start=0, **measured)

    return make


@dataclasses.dataclass
class Member:
    """As `loop.Member`, which would import all that trains."""

    run: config.Run
    checkpoints: list[Path]
    record: Callable[..., None]
    stop: Callable[[], bool]
    trunk: Any = None
    branches: Any = ()
    save: Any = None


@dataclasses.dataclass
class Outcome:
    """As `loop.Outcome`."""

    status: str
    reason: str
    step: int
    seconds: float
    loss: float | None = None
    loss_se: float | None = None
    bits_per_byte: float | None = None
    start: int = 0


@pytest.fixture
def results(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "store")


@pytest.fixture
def pretend_packs(monkeypatch: pytest.MonkeyPatch, identity: Any) -> Callable[[Callable[..., Any]], None]:
    """Puts a function of members in the place of the loop, and an identity in the place of the corpus."""
    from scaling.data import corpus

    def use(train: Callable[..., Any]) -> None:
        loop = types.ModuleType("scaling.training.loop")
        loop.train = train  # type: ignore[attr-defined]
        loop.Member = Member  # type: ignore[attr-defined]
        loop.Outcome = Outcome  # type: ignore[attr-defined]
        loop.program_of = lambda *given: types.SimpleNamespace(microbatch=2)  # type: ignore[attr-defined]
        loop.Trunk = lambda *given: given  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "scaling.training.loop", loop)
        monkeypatch.setattr(scaling.training, "loop", loop, raising=False)
        monkeypatch.setattr(corpus, "prepare", lambda data, log: identity)

    return use


@pytest.fixture
def pretend(pretend_packs: Callable[[Callable[..., Any]], None]) -> Callable[[Callable[..., Any]], None]:
    """Puts a function of one run in the place of the loop."""

    def use(train: Callable[..., Any]) -> None:
        def alone(members: Any, execution: config.Execution, corpus: Any) -> list[Any]:
            (m,) = members
            return [train(m.run, execution, corpus, checkpoints=m.checkpoints, record=m.record, stop=m.stop)]

        pretend_packs(alone)

    return use


@pytest.fixture
def launch() -> Callable[..., local.LocalWorkers]:
    """Starts local workers for what is open of a sweep."""

    def start(path: Path, sweep: str, workers: int | None) -> local.LocalWorkers:
        results = store.Store(path)
        mesh = config.Mesh.model_validate(results.sweep(sweep)["config"]["execution"]["mesh"])
        left = sum(status in store.OPEN for status in results.statuses(sweep).values())
        return local.Local().start(launcher.Job(str(path), sweep, mesh, left, workers))

    return start
