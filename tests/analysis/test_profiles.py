"""Profiles and standard errors: the textbook's where there is one, wider where rows hang together, open where free."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import analysis
from analysis import errors, forms


def _line(x, *, a, b):
    return a + b * x


LINE = analysis.law(
    _line,
    equation="y = a + b x",
    source="a test",
    parameters={"a": forms.Parameter(-np.inf), "b": forms.Parameter(-np.inf)},
    linear=("a", "b"),
    scale="linear",
    real=("x",),
)


@pytest.fixture(scope="module")
def straight() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = np.linspace(1, 3, 20)
    return pd.DataFrame({"x": x, "loss": 2 + 0.5 * x + 0.1 * rng.normal(size=20), "se": np.geomspace(0.05, 0.4, 20)})


@pytest.mark.parametrize("weights", [None, "se"])
def test_linear_law_has_the_interval_and_errors_of_the_textbook(straight, weights) -> None:
    """Least squares: the F interval, s² (XᵀWX)⁻¹, and HC3."""
    fit = analysis.fit(LINE, straight, objective="squared", weights=weights)
    X = np.column_stack([np.ones(20), straight["x"]])
    weight = np.ones(20) if weights is None else straight["se"].to_numpy() ** -2 / np.mean(straight["se"] ** -2)
    inverse = np.linalg.inv(X.T @ (X * weight[:, None]))
    best = inverse @ X.T @ (weight * straight["loss"])
    residual = straight["loss"].to_numpy() - X @ best
    plain = np.sum(weight * residual**2) / 18 * inverse
    for level in (0.5, 0.95):
        half = scipy.stats.t.ppf((1 + level) / 2, 18) * np.sqrt(np.diag(plain))
        for i, name in enumerate("ab"):
            found = fit.profile(name, level)
            assert found.interval == pytest.approx((best[i] - half[i], best[i] + half[i]), rel=1e-6)
            assert not found.open_ends
            np.testing.assert_allclose(
                found.deviance, (found.values - best[i]) ** 2 / plain[i, i], rtol=1e-5, atol=1e-8
            )
    leverage = weight * np.einsum("pi,ij,pj->p", X, inverse, X)
    moved = (X * (weight * residual / (1 - leverage))[:, None]) @ inverse
    np.testing.assert_allclose(fit.diagnostics.equal_scatter, plain, rtol=1e-6)
    np.testing.assert_allclose(fit.diagnostics.covariance, moved.T @ moved, rtol=1e-6)


def test_profile_of_a_robust_fit_agrees_with_its_standard_errors(straight) -> None:
    rng = np.random.default_rng(3)
    x = np.linspace(-2, 2, 400)
    frame = pd.DataFrame({"x": x, "loss": 2 + 0.5 * x + 0.1 * (0.2 + np.abs(x)) * rng.normal(size=400)})
    for objective in ("huber", "log_cosh"):
        fit = analysis.fit(LINE, frame, objective=objective)
        low, high = fit.profile("b").interval
        assert high - low == pytest.approx(2 * 1.97 * fit.diagnostics.standard_error["b"], rel=0.25), objective
        assert fit.diagnostics.covariance[1, 1] > 1.3 * fit.diagnostics.equal_scatter[1, 1], objective


def test_parameter_that_is_not_identified_has_an_open_end(planted) -> None:
    """A law whose data term is drowned by noise: β may be anything large."""
    rng = np.random.default_rng(1)
    params, tokens = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e8, 6), np.geomspace(1e10, 1e11, 5)))
    loss = (2.0 + 300 / params**0.35 + 1e-4 * (tokens / 1e10) ** -0.4) * np.exp(0.005 * rng.normal(size=30))
    fit = analysis.fit("hoffmann", pd.DataFrame({"params": params, "tokens": tokens, "loss": loss}))
    found = fit.profile("beta")
    assert found.open_ends, found
    assert "end open: the data do not bound it" in str(found)
    bounds = fit.law.parameter("beta")
    ends = {"lower": (found.interval[0], bounds.lower), "upper": (found.interval[1], bounds.upper)}
    for end in found.open_ends:
        assert ends[end][0] == ends[end][1]
    assert not fit.profile("alpha").open_ends


def test_profile_refuses_what_has_none(sweep) -> None:
    fit = analysis.fit("hoffmann", sweep, fixed={"alpha": 0.38})
    with pytest.raises(errors.Refused, match=r"alpha is fixed at 0\.38"):
        fit.profile("alpha")
    with pytest.raises(ValueError, match="no parameter"):
        fit.profile("gamma")
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit.profile("beta", 95)


def test_checkpoints_of_one_run_widen_every_interval() -> None:
    """12 runs of 8 correlated rows: taken together 95% hold the truth, taken one by one about two in three do."""
    rng = np.random.default_rng(0)
    replicas = 60
    held = {None: np.zeros(3), "run": np.zeros(3)}
    width = {None: np.zeros(3), "run": np.zeros(3)}
    for replica in range(replicas):
        x = np.linspace(1, 3, 8) + rng.normal(size=(12, 1))
        y = 2 + 0.5 * x + 0.1 * rng.normal(size=(12, 1)) + 0.02 * rng.normal(size=x.shape)
        frame = pd.DataFrame({"x": x.ravel(), "loss": y.ravel(), "run": np.repeat(np.arange(12), 8)})
        for cluster in held:
            fit = analysis.fit(LINE, frame, objective="squared", cluster=cluster)
            half = 2.2 * fit.diagnostics.standard_error["b"]
            plain = fit.params["b"] - half, fit.params["b"] + half
            for i, (low, high) in enumerate(
                (fit.bootstrap(150, seed=replica).interval("b"), fit.profile("b").interval, plain)
            ):
                held[cluster][i] += low <= 0.5 <= high
                width[cluster][i] += high - low
    assert (held["run"] >= 0.88 * replicas).all(), held
    assert (held[None] <= 0.75 * replicas).all(), held
    assert (width["run"] > 1.5 * width[None]).all(), width


def test_left_out_clusters_are_what_the_standard_errors_are_made_of(straight) -> None:
    """For a linear law under squares the moves are exact: the fit without a run, less the fit with it."""
    frame = straight.assign(run=np.arange(20) // 3)
    fit = analysis.fit(LINE, frame, objective="squared", cluster="run")
    moves = []
    for run in range(7):
        rest = analysis.fit(LINE, frame[frame["run"] != run], objective="squared", cluster="run")
        moves.append([rest.params[name] - fit.params[name] for name in "ab"])
    np.testing.assert_allclose(fit.diagnostics.covariance, np.transpose(moves) @ np.array(moves), rtol=1e-6)


def test_standard_errors_of_the_public_rows_are_those_of_resampling(table) -> None:
    """Besiroglu's rows: the scatter differs between runs, which the form of equal scatter understates by 40%."""
    rows = table("chinchilla_besiroglu2024.csv")
    fit = analysis.fit("hoffmann", rows[rows["excluded_in_published_fit"] == 0][["params", "tokens", "loss"]])
    told = fit.diagnostics
    assert told.standard_error["alpha"] == pytest.approx(0.0154, rel=0.15)
    assert told.standard_error["E"] == pytest.approx(0.0257, rel=0.15)
    alpha = fit.law.names.index("alpha")
    assert np.sqrt(told.equal_scatter[alpha, alpha]) < 0.65 * 0.0154
