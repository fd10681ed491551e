"""Pearce & Song 2024, arXiv 2406.12907: Chinchilla's law, counted without embeddings, has Kaplan's exponent locally."""

import numpy as np
import pandas as pd
import pytest

import analysis

CHINCHILLA = {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849}  # Hoffmann et al. 2203.15556
OMEGA = 47491.0  # N_total = N + ω N^(1/3): gamma of their script, fitted to the models of Hoffmann et al.
SIZES = np.logspace(2.9, 9.2, 20)  # "768 to 1.5 billion non-embedding parameters", as in their script
TOKENS = np.logspace(6, 25, 1000)


def simulated(low: float, high: float) -> pd.DataFrame:
    """Losses of Chinchilla's law for 20 sizes × 1,000 token counts, those with C = 6ND in [10^low, 10^high]."""
    n, d = (values.ravel() for values in np.meshgrid(SIZES, TOKENS, indexing="ij"))
    total = n + OMEGA * np.cbrt(n)
    loss = CHINCHILLA["E"] + CHINCHILLA["A"] / total ** CHINCHILLA["alpha"] + CHINCHILLA["B"] / d ** CHINCHILLA["beta"]
    runs = pd.DataFrame({"params_non_embedding": n, "params": total, "tokens": d, "flops": 6 * n * d, "loss": loss})
    return runs[(runs["flops"] > 10**low) & (runs["flops"] < 10**high)]


def optimum(flops: np.ndarray) -> np.ndarray:
    """Where dL/dN = 0 at D = C/6N, by a fine search in log N: no frontier code."""
    n = np.geomspace(1e2, 1e11, 400_001)
    total = n + OMEGA * np.cbrt(n)
    of_size = CHINCHILLA["A"] / total ** CHINCHILLA["alpha"]
    return np.array([n[(of_size + CHINCHILLA["B"] * (6 * n / c) ** CHINCHILLA["beta"]).argmin()] for c in flops])


def test_the_local_exponent_without_embeddings() -> None:
    runs = simulated(12.95, 20.7)
    found = analysis.frontier(runs, 1, params="params_non_embedding", resamples=100)
    assert found.exponent_params.value == pytest.approx(0.739, abs=0.005)
    budgets = np.logspace(12.95, 20.7, 100)
    exact = np.polyfit(np.log(budgets), np.log(optimum(budgets)), 1)[0]
    assert exact == pytest.approx(0.739, abs=0.005)
    assert found.exponent_params.value == pytest.approx(exact, abs=0.005)


def test_at_their_hundred_budgets() -> None:
    budgets = np.logspace(12.95, 20.7, 100)
    n = np.repeat(SIZES, len(budgets))
    d = TOKENS[np.abs(6 * SIZES[:, None, None] * TOKENS - budgets[:, None]).argmin(axis=-1)].ravel()
    runs = (
        simulated(0, 40).set_index(["params_non_embedding", "tokens"]).loc[list(zip(n, d, strict=True))].reset_index()
    )
    near = runs.assign(flops_budget=np.tile(budgets, len(SIZES)))
    near = near[np.abs(np.log(near["flops"] / near["flops_budget"])) < 0.03]
    found = analysis.frontier(near, 1, params="params_non_embedding", resamples=100)
    assert len(found.minima) == 100
    assert found.exponent_params.value == pytest.approx(0.739, abs=0.001)


def test_the_law_itself_has_the_other_exponent() -> None:
    """The same runs in total parameters and C = 6 · total · D: Chinchilla's β/(α+β) = 0.457."""
    runs = simulated(12.95, 20.7)
    runs = runs.assign(flops=6 * runs["params"] * runs["tokens"]).iloc[::37]
    found = analysis.frontier(runs, 3, resamples=20)
    assert found.exponent_params.value == pytest.approx(0.2849 / (0.3392 + 0.2849), abs=1e-4)
