"""The laws of papers on the papers' own measurements: published constants, and where they are not the minimum."""

import os
import pathlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import datasets, laws, solver

MUENNIGHOFF = {
    "alpha": 0.3526596, "beta": 0.3526596, "A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804),
}  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pd.DataFrame]:
    """A public table from SCALING_DATASETS or ../shared/data; the test is skipped where there is neither."""
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("SCALING_DATASETS", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set SCALING_DATASETS to the folder of public tables")
    monkeypatch.setenv("SCALING_DATASETS", str(folder))
    return datasets.load


def objective(fit: analysis.Fit, params: dict[str, float]) -> float:
    """The fit's objective at other parameters."""
    with solver.precise():
        theta = solver.coordinates(fit.law, params)
        return float(solver.objectives(fit.law, theta, fit.points(), fit.criterion)[0])


@pytest.mark.parametrize("train_set", ["slimpajama-chunk1", "starcoder"])
@pytest.mark.parametrize(("law", "published"), [("hoffmann", "chinchilla"), ("kaplan_offset", "kaplan")])
def test_brandfonbrener_to_four_digits(
    load: Callable[[str], pd.DataFrame], train_set: str, law: str, published: str
) -> None:
    """Both of their laws on both sets; their objective is the mean over the runs of ours, in single precision."""
    runs, fits = load("brandfonbrener2024"), load("brandfonbrener2024_fits")
    runs = runs[(runs["train_set"] == train_set) & (runs["split"] == "fit")]
    for target, column in (
        ("loss_own_val", "loss"),
        ("loss_c4", "loss_c4"),
        ("loss_fineweb_100b", "loss_fineweb_100b"),
    ):
        chosen = (fits["train_set"] == train_set) & (fits["target"] == target) & (fits["law"] == published)
        row = fits[chosen].iloc[0]
        fit = analysis.fit(law, runs, loss=column)
        names = ("E", "A", "B", "alpha", "beta") if law == "hoffmann" else ("E", "N_c", "D_c", "alpha", "beta")
        theirs = dict(zip(names, row[["E", "A", "B", "alpha", "beta"]], strict=True))
        assert fit.params == pytest.approx(theirs, rel=1e-4)
        assert fit.objective / len(runs) == pytest.approx(row["huber_objective"], rel=1e-5)
        assert fit.objective <= objective(fit, theirs)
        assert fit.starts.share > 0.9


def test_muennighoff_from_the_published_minimum(load: Callable[[str], pd.DataFrame]) -> None:
    """They print R*_D = 15.387756, R*_N = 5.309743, a little short of the minimum of that basin."""
    runs = load("muennighoff2023")
    runs = runs[runs["in_published_fit"] == 1]
    assert len(runs) == 182
    published = MUENNIGHOFF | {"R_D": 15.387756, "R_N": 5.309743}
    fit = analysis.fit("muennighoff", runs, fixed=MUENNIGHOFF, start=published)
    assert fit.objective == pytest.approx(0.0158259, abs=5e-8)
    assert fit.params["R_D"] == pytest.approx(15.388, abs=0.02)
    assert fit.params["R_N"] == pytest.approx(5.310, abs=0.006)
    assert 0 < objective(fit, published) - fit.objective < 1e-8
    residual = runs["loss"] - np.asarray(fit.predict(runs))
    assert 1 - np.sum(residual**2) / np.sum((runs["loss"] - runs["loss"].mean()) ** 2) == pytest.approx(
        0.7722, abs=2e-4
    )


def test_muennighoff_has_lower_minima_and_says_that_they_are_poorly_identified(
    load: Callable[[str], pd.DataFrame],
) -> None:
    runs = load("muennighoff2023")
    fit = analysis.fit("muennighoff", runs[runs["in_published_fit"] == 1], fixed=MUENNIGHOFF)
    assert fit.objective < 0.0158047
    assert (fit.params["R_D"], fit.params["R_N"]) == pytest.approx((95.4, 1.71), rel=5e-3)
    assert 8 <= fit.starts.reached < fit.starts.count
    told = " ".join(fit.warnings)
    assert "do not determine R_D" in told
    assert "poorly identified" in told
    assert "R_D = 15.37, R_N = 5.315" in told
    profile = fit.profile("R_D")
    assert profile.interval[0] < 15.4
    assert "upper" in profile.open_ends


@pytest.mark.parametrize(
    ("router", "a", "c"), [("S-Base", -0.083, 0.010), ("RL-R", -0.083, 0.011), ("Hash", -0.087, 0.013)]
)
def test_clark_routers(load: Callable[[str], pd.DataFrame], router: str, a: float, c: float) -> None:
    """As in the authors' notebook: the default runs of one router and the dense ones, squares of log L."""
    runs = load("clark2022")
    chosen = runs[(runs["default_config"] == 1) & runs["router"].isin([router, "Dense"])]
    fit = analysis.fit("clark", chosen, objective="squared")
    assert fit.status == "converged"
    assert fit.starts.share == 1
    assert fit.params["a"] == pytest.approx(a, abs=0.002)
    assert fit.params["c"] == pytest.approx(c, abs=0.0015)
    assert any("E_max is weakly identified" in warning for warning in fit.warnings)
    low, high = fit.profile("E_max").interval
    assert low < fit.params["E_max"] < high
    assert high > 5 * low
    assert np.sqrt(np.mean(fit.residuals**2)) / np.log(10) < 0.0035


def test_tao_is_lower_than_the_published_constants(load: Callable[[str], pd.DataFrame]) -> None:
    """Their code hands the vocabulary in thousands to its fit of tokens per character: on such D their R² is 0.972."""
    runs = load("tao2024")
    runs = runs[runs["flops"] >= 2.18e17]
    assert len(runs) == 1054
    size = np.log(runs["vocabulary_size"] / 1000)
    runs = runs.assign(counted=runs["characters"] * (0.00639222 * size**2 - 0.15811069 * size + 1.20470122))
    beta, alpha2 = 0.44660634152009615, 0.6707374679896795
    published = {
        "E": 5.5327846803337435,
        "A1": 1.8313851559554126 * 1e6**beta,
        "A2": 0.19584238398665638 * 1e6**alpha2,
        "B": 2.1241123120064955 * 1e9**beta,
        "alpha2": alpha2,
        "beta": beta,
    }
    total = np.sum((runs["loss"] - runs["loss"].mean()) ** 2)
    fit = analysis.fit("tao", runs, tokens="counted", cluster="run")
    theirs = np.asarray(laws.get("tao")({k: fit.runs[k].to_numpy() for k in fit.law.inputs}, published))
    assert 1 - np.sum((runs["loss"] - theirs) ** 2) / total == pytest.approx(0.972, abs=5e-4)
    assert fit.objective < objective(fit, published) < fit.objective * (1 + 1e-5)
    assert (fit.params["beta"], fit.params["alpha2"]) == pytest.approx((beta, alpha2), rel=0.02)
    assert 1 - np.sum(fit.residuals**2) / total > 0.971
    assert fit.starts.share == 1


@pytest.mark.slow
def test_farseer_and_an_interaction_describe_its_table_better_than_a_sum(load: Callable[[str], pd.DataFrame]) -> None:
    """Every fourth run; the published constants, in this parametrization, are a point of the same family."""
    runs = load("scalebench_farseer").drop_duplicates().iloc[::4]
    published = {}
    for i, (a, b, p) in enumerate(
        ((-1.665630816, 3.133347198805445, 0.0459), (230.73437075885855, -1.544209554, -0.1729),
         (-0.062465473, 0.1284880679442551, 0.13)), 1
    ):  # fmt: skip
        published |= {f"u{i}": a * 1e9**p + b, f"s{i}": a * p * 1e9**p, f"p{i}": p}
    fit = analysis.fit("farseer", runs)
    with solver.precise():
        theirs = np.asarray(fit.law({k: runs[k].to_numpy() for k in fit.law.inputs}, published))
    assert np.mean(np.abs(np.log(runs["loss"] / theirs))) < 0.0025
    assert fit.objective < 0.55 * objective(fit, published)
    assert fit.starts.share > 0.5
    assert fit.status == "converged"
    summed, interacting = (analysis.fit(law, runs) for law in ("hoffmann", "hoffmann_interaction"))
    assert fit.objective < 0.5 * interacting.objective < 0.25 * summed.objective
    assert interacting.params["H"] < 0


def test_over_training_is_hoffmann_with_one_exponent(load: Callable[[str], pd.DataFrame]) -> None:
    runs = load("besiroglu2024")
    runs = runs[runs["excluded_in_published_fit"] == 0].assign(ratio=lambda r: r["tokens"] / r["params"])
    fit = analysis.fit("gadre", runs, tokens_per_parameter="ratio")
    shared = analysis.fit("hoffmann_shared", runs)
    assert fit.objective == pytest.approx(shared.objective, rel=1e-9)
    assert 2 * fit.params["eta"] == pytest.approx(shared.params["alpha"], rel=1e-6)
    assert fit.params["a"] == pytest.approx(shared.params["A"] * 6 ** fit.params["eta"], rel=1e-5)
    assert 1.0182740e-3 < fit.objective < 1.03e-3


def test_error_and_accuracy_follow_the_loss(load: Callable[[str], pd.DataFrame]) -> None:
    runs = load("brandfonbrener2024")
    runs = runs[(runs["train_set"] == "slimpajama-chunk1") & (runs["split"] == "fit")]
    runs = runs.assign(error=1 - runs["olmo_suite_acc"], own=runs["loss"])
    error = analysis.fit("gadre_error", runs, loss="error", objective="squared", validation_loss="own")
    accuracy = analysis.fit(
        "bhagia_accuracy", runs, loss="olmo_suite_acc", objective="squared", task_loss="olmo_suite_ce_loss"
    )
    for fit, least in ((error, 0.99), (accuracy, 0.98)):
        assert 1 - np.var(fit.residuals) / np.var(fit.runs["loss"]) > least
        assert fit.starts.share == 1
        assert fit.status == "converged"
