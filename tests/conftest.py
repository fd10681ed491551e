"""What all tests share: a cache of their own, and small runs on a source of known entropy that train in a second."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scaling import config

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # exact equality of two trainings is promised on CPU only
# Tests compile dozens of programs and run each for milliseconds: this compiles them in a quarter of the time.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    from moto.moto_server import threaded_moto_server

    server = threaded_moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of one test on that server; the environment holds what is needed to use it."""
    import s3fs

    settings = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{secrets.token_hex(6)}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
