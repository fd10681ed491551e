"""Planted laws are recovered, real ones reach the known minimum, and scipy agrees on the objective."""

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import laws, solver, uncertainty

PLANTED = {
    "power": {"a": 7.0, "b": 0.31},
    "power_offset": {"E": 1.6, "A": 55.0, "alpha": 0.28},
    "hoffmann": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "kaplan_n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan_d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan_c": {"C_c": 2.7e28, "alpha_C": 0.05},
}


def grid(law: laws.Law, points: int = 7) -> pd.DataFrame:
    axes = np.meshgrid(*(np.geomspace(1e6, 1e10, points),) * len(law.inputs))
    if len(law.inputs) == 1:
        axes = [np.geomspace(1e6, 1e10, 40)]
    return pd.DataFrame({name: axis.ravel() for name, axis in zip(law.inputs, axes, strict=True)})


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_law_is_recovered(name: str) -> None:
    law = laws.LAWS[name]
    frame = grid(law)
    frame["loss"] = law(frame, PLANTED[name])
    fit = analysis.fit(name, frame)
    assert fit.status == "converged"
    assert fit.objective < 1e-16
    for key, value in PLANTED[name].items():
        assert fit.params[key] == pytest.approx(value, rel=1e-5), key
    np.testing.assert_allclose(fit.predict(frame), frame["loss"], rtol=1e-8)


@settings(max_examples=25)
@given(
    E=st.floats(0.0, 3.0),
    alpha=st.floats(0.15, 0.8),
    beta=st.floats(0.15, 0.8),
    first=st.floats(0.3, 3.0),
    second=st.floats(0.3, 3.0),
)
def test_any_hoffmann_law_is_recovered(E: float, alpha: float, beta: float, first: float, second: float) -> None:
    """`first` and `second` are the sizes of the two terms at the smallest model and the fewest tokens."""
    truth = {"E": E, "A": first * 1e6**alpha, "B": second * 1e6**beta, "alpha": alpha, "beta": beta}
    frame = grid(laws.LAWS["hoffmann"])
    frame["loss"] = laws.LAWS["hoffmann"](frame, truth)
    fit = analysis.fit("hoffmann", frame)
    assert fit.params["alpha"] == pytest.approx(alpha, rel=1e-4)
    assert fit.params["beta"] == pytest.approx(beta, rel=1e-4)
    assert fit.params["E"] == pytest.approx(E, abs=1e-4)


def test_besiroglu_reaches_the_minimum_of_the_published_objective(table) -> None:
    frame = table("chinchilla_besiroglu2024.csv")
    frame = frame[frame["excluded_in_published_fit"] == 0]
    fit = analysis.fit("hoffmann", frame)
    assert len(fit.runs) == 240
    assert fit.objective <= 1.0182740179e-3  # sum of Huber at the true minimum of arXiv 2404.10102's objective
    expected = {"A": 477.83, "B": 2143.4, "E": 1.81722, "alpha": 0.34731, "beta": 0.36717}
    for name, value in expected.items():
        assert fit.params[name] == pytest.approx(value, rel=2e-5), name
    assert fit.starts.share == 1.0


@pytest.mark.parametrize("name", ["hoffmann", "kaplan", "power_offset"])
def test_scipy_finds_nothing_lower(name: str, sweep: pd.DataFrame) -> None:
    columns = {"x": "params"} if name == "power_offset" else {}
    fit = analysis.fit(name, sweep, **columns)
    law = fit.law
    log_loss = np.log(sweep["loss"].to_numpy())

    def objective(theta: np.ndarray) -> float:
        params = {
            key: np.exp(t) if parameter.log else t for (key, parameter), t in zip(law.parameters, theta, strict=True)
        }
        residual = log_loss - np.log(law({k: sweep[v].to_numpy() for k, v in fit.columns.items()}, params))
        size = np.abs(residual)
        return float(np.sum(np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 0.5e-3))))

    best = solver.coordinates(law, {k: np.array([v]) for k, v in fit.params.items()})[0]
    assert objective(best) == pytest.approx(fit.objective, rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(6):
        found = scipy.optimize.minimize(objective, best + 0.05 * rng.normal(size=len(best)), method="Nelder-Mead")
        assert found.fun >= fit.objective * (1 - 1e-9)


def test_inputs_may_have_other_names(planted) -> None:
    frame = planted(noise=0.002)
    renamed = frame.rename(columns={"params": "params_non_embedding", "loss": "loss_c4"})
    a, b = (
        analysis.fit("hoffmann", frame),
        analysis.fit("hoffmann", renamed, loss="loss_c4", params="params_non_embedding"),
    )
    assert a.params == b.params
    np.testing.assert_array_equal(a.predict(frame), b.predict(renamed))
    np.testing.assert_array_equal(b.predict(renamed), b.predict({"params": frame["params"], "tokens": frame["tokens"]}))
    with pytest.raises(ValueError, match="needs 'tokens'"):
        a.predict({"params": 1e6})


def test_a_law_of_ones_own_fits_saves_and_loads(tmp_path, planted) -> None:
    def saturating(tokens, *, E, B, beta):
        return E + B / tokens**beta

    parameter = analysis.Parameter
    mine = analysis.law(
        saturating,
        equation="L = E + B / D^β",
        source="this test",
        parameters={"E": parameter(0.0), "B": parameter(0.0, log=True), "beta": parameter(0.0, 3.0, start=(0.2, 0.6))},
        linear=("E", "B"),
    )
    frame = pd.DataFrame({"tokens": np.geomspace(1e6, 1e9, 20)})
    frame["loss"] = 1.5 + 40 / frame["tokens"] ** 0.3
    fit = analysis.fit(mine, frame)
    assert fit.params["beta"] == pytest.approx(0.3, rel=1e-5)
    fit.save(tmp_path / "mine.json")
    assert analysis.load(tmp_path / "mine.json", law=mine).params == fit.params
    with pytest.raises(ValueError, match="pass that law"):
        analysis.load(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="make the two agree"):
        analysis.law(saturating, equation="", source="", parameters={"E": parameter(0.0)})
    with pytest.raises(ValueError, match="nothing to start"):
        analysis.law(saturating, equation="", source="", parameters=dict(mine.parameters) | {"beta": parameter(0, 1)})


@pytest.mark.smoke
def test_a_saved_fit_is_the_same_fit(tmp_path, sweep) -> None:
    fit = analysis.fit("hoffmann", sweep)
    fit.save(tmp_path / "fit.json")
    again = analysis.load(tmp_path / "fit.json")
    assert (again.params, again.objective, again.starts) == (fit.params, fit.objective, fit.starts)
    assert again.checklist() == fit.checklist()
    pd.testing.assert_frame_equal(again.bootstrap(20, seed=3).samples, fit.bootstrap(20, seed=3).samples)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a saved fit"):
        analysis.load(tmp_path / "other.json")


def test_the_checklist_says_what_a_reader_needs(sweep) -> None:
    frame = pd.concat(
        [sweep, sweep.iloc[:2].assign(status="diverged", loss=np.nan), sweep.iloc[:3].assign(role="trunk")]
    )
    frame["run_id"] = [f"r{i}" for i in range(len(frame))]
    told = analysis.fit("hoffmann", frame).checklist()
    for part in ("E + A / N^α", "alpha =", "36 used of 41", "2 where status is diverged", "3 where role is trunk",
                 "δ = 0.001", "32 of 32", "rms residual", "one tokenizer_id: bytes"):  # fmt: skip
        assert part in told, part
    bare = analysis.fit("hoffmann", sweep[["params", "tokens", "loss"]].drop_duplicates()).checklist()
    assert "one tokenizer_id: not checked" in bare
    assert "status: not checked" in bare


def test_warnings_name_what_the_data_do_not_determine(planted, law_params) -> None:
    frame = planted(noise=0.001)
    frame["loss"] = 1.5 + 30 / frame["tokens"] ** 0.4 * np.exp(1e-4 * np.random.default_rng(0).normal(size=len(frame)))
    told = " ".join(analysis.fit("hoffmann", frame).warnings)
    assert "do not determine" in told
    repeated = planted(noise=0.001).assign(epochs=2.5)
    assert any("repeat data" in w for w in analysis.fit("hoffmann", repeated).warnings)


def test_float64_is_used_and_the_configuration_left_alone(sweep) -> None:
    import jax

    before = jax.config.jax_enable_x64
    fit = analysis.fit("hoffmann", sweep)
    assert jax.config.jax_enable_x64 == before
    assert fit.predict(sweep).dtype == np.float64


@pytest.fixture(scope="module")
def booted(sweep) -> uncertainty.Bootstrap:
    return analysis.fit("hoffmann", sweep).bootstrap(5)


@pytest.mark.parametrize("params", [-1e6, 0.0, np.nan, np.inf, [1e6, -1e6]])
def test_a_prediction_at_what_cannot_be_is_refused(params, booted) -> None:
    for predict in (booted.fit.predict, booted.predict_interval):
        with pytest.raises(ValueError, match=r"params = .* needs positive finite numbers"):
            predict({"params": params, "tokens": 1e8})


def test_a_saved_fit_with_parts_missing_is_refused_by_their_names(tmp_path) -> None:
    (tmp_path / "fit.json").write_text('{"format": "scaling-fit-2", "law": "hoffmann"}')
    with pytest.raises(ValueError, match="lacks params, objective, status"):
        analysis.load(tmp_path / "fit.json")


def test_the_checklist_counts_what_is_mixed_and_a_mixture_of_kinds_is_warned_about(sweep) -> None:
    told = analysis.fit("hoffmann", sweep).checklist()
    assert "one family: transformer" in told
    assert "one optimizer: not checked (no column)" in told
    half = np.arange(len(sweep)) % 3 == 0
    mixed = sweep.assign(
        family=np.where(half, "lstm", "transformer"), optimizer="adamw", batch_tokens=np.where(half, 4096, 8192)
    )
    fit = analysis.fit("hoffmann", mixed)
    assert "family: transformer (24), lstm (12)" in fit.checklist()
    assert "batch_tokens: 8192 (24), 4096 (12)" in fit.checklist()
    for warnings in (fit.warnings, analysis.frontier(mixed, 1, resamples=20).warnings):
        assert sum("kinds of family in one law" in warning for warning in warnings) == 1
        assert not any("kinds of optimizer" in warning or "batch_tokens" in warning for warning in warnings)
