"""What all tests share: a cache of their own, and small runs on a source of known entropy that train in a second."""

import importlib.metadata
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from packaging.version import Version

from scaling import config
from scaling.launch import environments

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # exact equality of two trainings is promised on CPU only
# Tests compile dozens of programs and run each for milliseconds: this compiles them in a quarter of the time.
FAST_COMPILE = "--xla_backend_optimization_level=0"
FUSION_EMITTERS = Version(importlib.metadata.version("jax")) < Version("0.11")  # later versions have no such option
if FUSION_EMITTERS:
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)

hypothesis.settings.register_profile("tests", deadline=None)  # how long an example takes depends on what else runs here
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Tests send signals: a shell that starts pytest in the background, or nohup, has children ignore some of them.

    Programs that JAX compiles stay in pytest's cache folder, for all processes of this run and for the next one:
    half of all compiling is of programs that another process has compiled before.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if getattr(config, "cache", None) is not None:  # the processes of pytest-xdist inherit what is set here
        for name, value in environments.compiled_programs(config.cache.mkdir("compiled")).items():
            os.environ.setdefault(name, value)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Corpora and compiled programs go to a folder of this test run."""
    before = os.environ.get("SCALING_CACHE")
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["SCALING_CACHE"] = folder
    yield folder
    os.environ.pop("SCALING_CACHE") if before is None else os.environ.update(SCALING_CACHE=before)


TINY: dict[str, Any] = {
    "model": {
        "kind": "transformer", "width": 16, "depth": 1, "heads": 2, "norm": "rmsnorm", "position": "rotary",
        "mlp": "gelu", "biases": False, "qk_norm": False,
    },
    "parametrization": {"kind": "standard"},
    "data": {
        "source": {
            "kind": "synthetic", "alphabet": 8, "exponent": 1.5, "seed": 0, "train_symbols": 40_000,
            "validation_symbols": 4_100,
        },
        "tokenizer": {"kind": "bytes"},
        "validation_tokens": 512,
    },
    "context": 16,
    "batch_size": 4,
    "tokens": 64 * 20,
    "optimizer": {"kind": "adamw", "learning_rate": 0.01},
    "schedule": {"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.1}},
    "precision": {"compute": "float32"},
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> Callable[..., config.Run]:
    """A run of 20 steps of 64 tokens; `tiny(model__width=32)` changes dotted fields."""

    def make(**changes: Any) -> config.Run:
        run = config.Run.model_validate(TINY)
        return run.edit({name.replace("__", "."): value for name, value in changes.items()})

    return make
