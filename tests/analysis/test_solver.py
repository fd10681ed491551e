"""The solver reaches minima that lie at a bound, from every start and in every resample."""

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import analysis


@pytest.fixture(scope="module")
def floorless() -> pd.DataFrame:
    """Noisy losses of a law with an irreducible part below 0: the least objective has E at its bound, 0."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 6)))
    noise = np.exp(0.01 * np.random.default_rng(3).normal(size=len(n)))
    return pd.DataFrame({"params": n, "tokens": d, "loss": (30 / n**0.15 + 60 / d**0.2 - 0.15) * noise})


@pytest.mark.parametrize("objective", ["huber", "squared"])
def test_a_minimum_at_a_bound_is_reached_by_starts_and_resamples(floorless, objective) -> None:
    fit = analysis.fit("hoffmann", floorless, objective=objective)
    assert fit.params["E"] == pytest.approx(0, abs=1e-6)
    assert fit.status == "converged"
    assert fit.starts.share > 0.9
    assert any("E = 0 is at its lower bound" in warning for warning in fit.warnings)
    assert fit.bootstrap(100).converged > 0.97


def test_the_minimum_at_a_bound_is_that_of_scipy(floorless) -> None:
    fit = analysis.fit("hoffmann", floorless, objective="squared")
    n, d, y = (floorless[name].to_numpy() for name in ("params", "tokens", "loss"))

    def squares(t: np.ndarray) -> float:
        law = t[0] + np.exp(t[1] - t[3] * np.log(n)) + np.exp(t[2] - t[4] * np.log(d))
        return float(0.5 * np.sum((np.log(y) - np.log(law)) ** 2))

    bounds = [(0, None), (None, None), (None, None), (0, 3), (0, 3)]
    best = min(
        scipy.optimize.minimize(squares, [e, 3, 4, a, b], bounds=bounds, method="L-BFGS-B", tol=1e-14).fun
        for e in (0.0, 0.3) for a in (0.1, 0.3) for b in (0.1, 0.3)
    )  # fmt: skip
    assert fit.objective <= best * (1 + 1e-9)
