"""Every law of the papers, planted without noise, is found again from its own starts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import forms, laws, solver
from analysis.criteria import Kind


def crossed(**axes: Any) -> dict[str, np.ndarray]:
    """All products of the axes, an array an input."""
    return dict(zip(axes, (grid.ravel() for grid in np.meshgrid(*axes.values(), indexing="ij")), strict=True))


HOFFMANN = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
SIZES, LENGTHS = np.geomspace(2e7, 5e9, 7), np.geomspace(1e9, 3e11, 7)
FEW = crossed(params=np.geomspace(2e7, 5e9, 8), tokens=np.geomspace(1e9, 3e11, 8))
SQUARED = ("clark", "gadre_error", "bhagia_accuracy")
BITS = (2.0, 3.0, 4.0, 6.0, 8.0, 16.0)


PLANTED: dict[str, tuple[dict[str, np.ndarray], dict[str, float]]] = {
    "hoffmann_shared": (FEW, {"E": 1.8, "A": 500.0, "B": 1500.0, "alpha": 0.353}),
    "hoffmann_interaction": (FEW, HOFFMANN | {"H": -9e4}),
    "kaplan_offset": (
        FEW,
        {"E": 1.967, "N_c": 7.47e7, "D_c": 1.064e9, "alpha": 0.401, "beta": 0.434},
    ),
    "farseer": (
        FEW,
        {"u1": -1.18, "s1": -0.2, "p1": 0.05, "u2": 4.87, "s2": -1.1, "p2": -0.17, "u3": -0.8, "s3": -0.12, "p3": 0.13},
    ),
    "muennighoff": (
        crossed(params=SIZES[::2], tokens=LENGTHS[3:], unique_tokens=(1e9, 3e9, 1e10, 1e11)),
        HOFFMANN | {"R_D": 15.4, "R_N": 5.3},
    ),
    "clark": (
        crossed(params_active=np.geomspace(1.6e7, 1.3e9, 6), experts=2.0 ** np.arange(10)),
        {"a": -0.083, "b": -0.118, "c": 0.01, "d": 1.11, "E_start": 2.1, "E_max": 240.0},
    ),
    "ludziejewski_one_length": (
        crossed(params_active=np.geomspace(1.6e7, 1.3e9, 6), experts=2.0 ** np.arange(10)),
        {"a": 40.0, "c": 1.4, "alpha": 0.2, "gamma": 0.01, "delta": -0.25, "E_start": 2.1, "E_max": 240.0},
    ),
    "ludziejewski": (
        crossed(params_active=SIZES[:6:2], tokens=LENGTHS[:5:2], experts=(1.0, 2.0, 4.0, 8.0, 32.0, 128.0)),
        {"a": 35.9, "b": 35.0, "c": 1.4, "alpha": 0.18, "beta": 0.15, "gamma": 0.01, "delta": -0.23, "omega": 0.1,
         "zeta": -0.005, "E_start": 2.0, "E_max": 290.0},
    ),
    "gadre": (
        crossed(flops=np.geomspace(1e18, 1e22, 8), tokens_per_parameter=np.geomspace(5, 640, 8)),
        {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136},
    ),
    "gadre_error": ({"validation_loss": np.linspace(2.4, 4.0, 64)}, {"epsilon": 0.85, "k": 2.08, "gamma": 0.756}),
    "bhagia_accuracy": ({"task_loss": np.linspace(0.5, 1.6, 64)}, {"a": 0.72, "b": 0.25, "k": 7.0, "L_0": 0.95}),
    "tao": (
        crossed(params_non_vocab=SIZES[::2], params_vocab=(2e6, 1e7, 5e7, 2e8), tokens=LENGTHS[::2]),
        {"E": 5.53, "A1": 870.0, "A2": 2000.0, "B": 22000.0, "alpha2": 0.67, "beta": 0.447},
    ),
    "tao_free": (
        crossed(params_non_vocab=SIZES[::2], params_vocab=(2e6, 1e7, 5e7, 2e8), tokens=LENGTHS[::2]),
        {"E": 5.53, "A1": 870.0, "A2": 2000.0, "B": 22000.0, "alpha1": 0.4, "alpha2": 0.67, "beta": 0.447},
    ),
    "kumar_weights": (
        crossed(params=SIZES[::2], tokens=LENGTHS[::2], weight_bits=BITS[:4]),
        {"E": 2.76, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.5218, "gamma_w": 2.67},
    ),
    "kumar": (
        crossed(params=SIZES[::3], tokens=LENGTHS[::3], weight_bits=BITS[::2], activation_bits=BITS[1::4],
                cache_bits=(2.0, 16.0)),
        {"E": 2.76, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.5218, "gamma_w": 2.67, "gamma_a": 2.21,
         "gamma_kv": 0.96},
    ),
    "kumar_after_training": (
        crossed(params=SIZES[::2], tokens=LENGTHS[::2], weight_bits=(3.0, 4.0, 5.0, 6.0)),
        {"C_T": 0.0598, "gamma_D": 0.507, "gamma_N": 0.344, "gamma_post": 0.59},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_law_is_found_again(name: str) -> None:
    inputs, truth = PLANTED[name]
    law = laws.get(name)
    assert tuple(inputs) == law.inputs
    with solver.precise():
        y = np.asarray(law(inputs, truth))
    assert np.isfinite(y).all()
    objective: Kind = "squared" if name in SQUARED else "huber"
    fit = analysis.fit(law, pd.DataFrame({**inputs, "y": y}), loss="y", objective=objective)
    assert fit.status == "converged"
    assert fit.params == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("name", PLANTED)
def test_every_law_says_where_it_comes_from(name: str) -> None:
    law = laws.get(name)
    told = law.function.__doc__ or ""
    assert "arXiv" in law.source
    assert ("Not validated on measurements" in told) == (law.validated == forms.UNVALIDATED)
