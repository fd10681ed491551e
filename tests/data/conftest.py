"""Caches of their own for every test, and one corpus of the standard library for all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling import config
from scaling.config import sources, tokenizers
from scaling.data import corpus

TEXT = "the cat sat on a mat and saw that one more black cat had come to sit there naïvely"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., sources.Files]:
    """Writes `count` files of random words to a folder below the test's own and returns the source that reads them."""

    def write(folder: str = "texts", count: int = 40, words: int = 200, seed: int = 0) -> sources.Files:
        random = np.random.default_rng(seed)
        for index in range(count):
            file = tmp_path / folder / f"part{index % 3}" / f"{index}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(" ".join(random.choice(TEXT.split(), words)), "utf-8")
        return sources.Files(glob=f"{tmp_path}/{folder}/**/*.txt", validation_fraction=0.2)

    return write


@pytest.fixture(scope="session")
def python_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python_source")


@pytest.fixture
def python_data(python_cache: Path, monkeypatch: pytest.MonkeyPatch) -> config.Data:
    """The demo's data in bytes, cached once a session."""
    monkeypatch.setenv("SCALING_CACHE", str(python_cache))
    data = config.Text(source=sources.PythonSource(), tokenizer=tokenizers.Bytes(), validation_tokens=65_536)
    corpus.prepare(data, log=lambda line: None)
    return data
