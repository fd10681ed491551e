"""Planted sweeps whose law is known, and the public tables where this machine has them."""

import os
import pathlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

LAW = {"E": 1.25, "A": 38.0, "B": 75.0, "alpha": 0.38, "beta": 0.42}


def _planted(
    noise: float = 0.0,
    seed: int = 0,
    budgets: int = 5,
    sizes: int = 6,
    width: float = 3.0,
    law: dict[str, float] = LAW,
    low: float = 2e11,
    high: float = 4e12,
    two_seeds: bool = True,
) -> pd.DataFrame:
    """An iso-FLOP sweep, exactly C = 6ND, of losses from the law times exp(noise · normal); two seeds at the first."""
    rng = np.random.default_rng(seed)
    rows = []
    for budget in np.geomspace(low, high, budgets):
        ratio = law["alpha"] * law["A"] / (law["beta"] * law["B"])
        best = (ratio * (budget / 6) ** law["beta"]) ** (1 / (law["alpha"] + law["beta"]))
        for params in best * np.geomspace(1 / width, width, sizes):
            tokens = budget / 6 / params
            exact = law["E"] + law["A"] / params ** law["alpha"] + law["B"] / tokens ** law["beta"]
            for repeat in range(2 if two_seeds and budget < 1.01 * low else 1):
                rows.append(
                    {
                        "run_id": f"r{len(rows):04d}",
                        "family": "transformer",
                        "role": "single",
                        "params": params,
                        "tokens": tokens,
                        "flops": budget,
                        "flops_budget": budget,
                        "tokenizer_id": "bytes",
                        "vocabulary_size": 256,
                        "context": 128,
                        "precision": "float32",
                        "validation_id": "v1",
                        "epochs": 0.5,
                        "seed": repeat,
                        "loss": exact * np.exp(noise * rng.normal()),
                        "status": "finished",
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def law_params() -> dict[str, float]:
    return dict(LAW)


@pytest.fixture(scope="session")
def planted() -> Callable[..., pd.DataFrame]:
    return _planted


@pytest.fixture(scope="session")
def sweep() -> pd.DataFrame:
    return _planted(noise=0.003, seed=1)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of empty figure files: drawing takes most of the time of a test that looks at the words alone."""

    def save(_made: object, path: pathlib.Path) -> pathlib.Path:
        path.touch()
        return path

    monkeypatch.setattr("analysis.plots.save", save)


@pytest.fixture(scope="session")
def table() -> Callable[[str], pd.DataFrame]:
    """A public table by file name, from SCALING_DATASETS or ../shared/data; the test is skipped where it is absent."""
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("SCALING_DATASETS", beside))

    def read(name: str) -> pd.DataFrame:
        if not (folder / name).is_file():
            pytest.skip(f"{folder / name} is absent: set SCALING_DATASETS to the folder of public tables")
        return pd.read_csv(folder / name)

    return read
