"""Optima of laws of N and D: closed forms against searches, searches against dense grids, and what is refused."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import forms, frontiers, laws, solver, surfaces, uncertainty

BEND = surfaces.Bend(6.0, 0.8, 0.6, 1e6)
SIX = surfaces.FlopRule(6.0, 1.0, "test")
RULES = {
    "power": surfaces.FlopRule(10.0, 0.9, "test"),
    "bent": surfaces.FlopRule(7.0, 0.95, "test", BEND),
}
KAPLAN = {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}  # Kaplan et al. 2020, table 2
CLOSED = {
    "hoffmann": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "hoffmann_shared": {"E": 1.8, "A": 500.0, "B": 1500.0, "alpha": 0.35},
    "kaplan": KAPLAN,
    "kaplan_offset": {"E": 1.2, "N_c": 2e9, "D_c": 3e10, "alpha": 0.3, "beta": 0.4},
}
FARSEER = {  # the authors' constants: f = a N^p + b of the exponent, the scale and the floor
    f"{name}{i}": value
    for i, (a, b, p) in enumerate(
        ((-1.665630816, 3.133347198805445, 0.0459), (230.73437075885855, -1.544209554, -0.1729),
         (-0.062465473, 0.1284880679442551, 0.13)), 1
    )
    for name, value in (("u", a * 1e9**p + b), ("s", a * p * 1e9**p), ("p", p))
}  # fmt: skip
SEARCHED = {
    "farseer": FARSEER,
    "hoffmann_interaction": {"E": 1.7, "A": 400.0, "B": 900.0, "H": -2e4, "alpha": 0.34, "beta": 0.28},
}


def searching(name: str) -> analysis.Law:
    """A law as if it had no closed form."""
    return dataclasses.replace(laws.get(name), powers=None)


def test_every_closed_form_is_of_its_law() -> None:
    n, d = np.array([1e5, 1e9]), np.array([1e10, 1e8])
    assert {law.name for law in laws.LAWS.values() if law.powers} == set(CLOSED)
    for name, params in CLOSED.items():
        E, log_a, log_b, alpha, beta, gamma = laws.get(name).powers(params)
        value = E + (np.exp(log_a) / n**alpha + np.exp(log_b) / d**beta) ** gamma
        np.testing.assert_allclose(value, laws.get(name)({"params": n, "tokens": d}, params), rtol=1e-5)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("served", [0.0, 1e11])
def test_a_search_finds_the_closed_form(name, rule, served) -> None:
    law, params = searching(name), CLOSED[name]
    for flops in (1e16, 1e23):
        exact = laws.get(name).optimum(params, flops, rule, served)
        np.testing.assert_allclose(law.optimum(params, flops, rule, served), exact, rtol=1e-6)
    samples = {key: np.full(1, value) for key, value in params.items()}
    one, other = (surfaces.Surface(form, samples, rule, 1e20) for form in (law, laws.get(name)))
    loss = float(exact[0, 2])
    np.testing.assert_allclose(one.reach(loss, served), other.reach(loss, served), rtol=1e-6)
    assert one.reach(loss, served)[0, 0] == pytest.approx(1e23, rel=1e-6)
    np.testing.assert_allclose(one.exponents_at(1e20), other.exponents_at(1e20), rtol=1e-6)
    if rule.bend is None:
        np.testing.assert_allclose(one.exponents, other.exponents, rtol=1e-4)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("served", [0.0, 1e11])
def test_a_search_finds_the_least_of_a_dense_grid(name, rule, served) -> None:
    law, params = laws.get(name), SEARCHED[name]
    for flops in (1e19, 1e22):
        ((n, d, loss),) = law.optimum(params, flops, rule, served)
        assert rule.per_token(n) * (d + served / 3) == pytest.approx(flops, rel=1e-12)
        sizes = n * np.exp(np.linspace(-3, 3, 6001))
        left = flops / rule.per_token(sizes) - served / 3
        with solver.precise():
            dense = np.asarray(law({"params": sizes, "tokens": np.maximum(left, 1.0)}, params))
        dense = np.where(left > 0.1 * sizes, dense, np.inf)
        assert dense.min() * (1 - 1e-6) < loss < dense.min() * (1 + 1e-12)
        assert n == pytest.approx(sizes[dense.argmin()], rel=1e-3)


def test_kaplans_constants_give_their_exponent_and_optimum() -> None:
    """N* ∝ C^(α_D / (α_N + α_D)) of L(N, D) under 6ND: 0.575. Their C^0.73 is of L(N, S) and batches that grow."""
    samples = {name: np.array([value]) for name, value in KAPLAN.items()}
    surface = surfaces.Surface(laws.get("kaplan"), samples, SIX, 1e20)
    assert surface.exponents[0] == pytest.approx([0.103 / 0.179, 0.076 / 0.179], rel=1e-12)
    ((n, _, loss),) = surface.at(1e20)
    sizes = n * np.exp(np.linspace(-2, 2, 40_001))
    dense = ((6.4e13 / sizes) ** (0.076 / 0.103) + 1.8e13 * 6 * sizes / 1e20) ** 0.103
    assert n == pytest.approx(sizes[dense.argmin()], rel=1e-4)
    assert loss == pytest.approx(dense.min(), rel=1e-8)


@pytest.mark.parametrize("vanished", ["A", "B", "alpha", "beta"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("served", [0.0, 1e11])
def test_a_closed_form_without_an_optimum_is_missing_and_others_are_not_touched(vanished, rule, served) -> None:
    law, params = laws.get("hoffmann"), CLOSED["hoffmann"]
    lacking, whole = (
        surfaces.Surface(law, {name: np.full(3, value) for name, value in params.items()}, rule, 1e20) for _ in range(2)
    )
    lacking.params[vanished][1] = 0.0
    for got, want, missing in (
        (lacking.at(1e21, served), whole.at(1e21, served), np.isnan),
        (lacking.exponents, whole.exponents, np.isnan),
        (lacking.reach(2.0, served), whole.reach(2.0, served), np.isposinf),
    ):
        assert missing(got[1]).all()
        np.testing.assert_array_equal(got[::2], want[::2])


def floored(params, tokens, *, L_inf, A, B, alpha, beta):
    return L_inf + A / params**alpha + B / tokens**beta


def test_the_floor_of_a_law_may_have_any_name_and_be_zero() -> None:
    bound = {name: analysis.Parameter(0.0, start=(0.3,)) for name in ("L_inf", "A", "B", "alpha", "beta")}
    own = analysis.law(
        floored, equation="", source="", parameters=bound,
        powers=lambda p: forms.Powers(p["L_inf"], np.log(p["A"]), np.log(p["B"]), p["alpha"], p["beta"], 1.0),
    )  # fmt: skip
    params = CLOSED["hoffmann"] | {"E": 0.0}
    want = laws.get("hoffmann").optimum(params, 1e21, SIX)
    np.testing.assert_array_equal(own.optimum({"L_inf": 0.0, **params}, 1e21, SIX), want)
    with pytest.raises(analysis.Refused, match="has B = 0 in"):
        own.optimum({"L_inf": 0.0, **params, "B": 0.0}, 1e21, SIX)


def test_samples_without_an_optimum_are_missing_and_others_are_not_touched() -> None:
    law, params = searching("hoffmann"), CLOSED["hoffmann"]
    samples = {name: np.full(5, value) for name, value in params.items()}
    samples["A"] = params["A"] * np.array([1.0, 0.5, 0.0, 2.0, 1e-9])
    several = law.optimum(samples, 1e21, SIX)
    assert np.isnan(several).all(axis=1).tolist() == [False, False, True, False, True]
    for i in (0, 1, 3):
        one = {name: values[i] for name, values in samples.items()}
        np.testing.assert_allclose(several[i], laws.get("hoffmann").optimum(one, 1e21, SIX)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("hoffmann_interaction", SEARCHED["hoffmann_interaction"] | {"A": 0.0, "H": 0.0},
         r"no optimum in N at 1e\+21 FLOPs under C = 6 · N · D .* goes from 1\.\d+ at N = 1.29e\+06 to .* fit a law"),
        ("hoffmann", CLOSED["hoffmann"] | {"alpha": 0.0}, r"\(.*alpha = 0, .*\) has α = 0 in .* no optimum in N"),
        ("hoffmann", CLOSED["hoffmann"] | {"A": 0.0}, r"at 1e\+21 FLOPs: 'hoffmann' as fitted .* has A = 0 in E \+"),
        ("kaplan", KAPLAN | {"alpha_N": 0.0}, r"alpha_N = 0, .*\) has α = 0 in"),
        ("kaplan", KAPLAN | {"alpha_D": 0.0}, r"alpha_D = 0\) has A = inf, α = inf, γ = 0 in"),
        ("best_rate", {"a": 1.79, "b": -0.713, "c": 0.307}, 
         r"'best_rate' takes params, tokens and gives no loss \(learning rate\); use a law of these two"),
        ("kaplan_n", {"N_c": 8.8e13, "alpha_N": 0.076}, "'kaplan_n' takes params; use a law of these two"),
        ("kumar_weights", CLOSED["hoffmann"] | {"gamma_w": 2.0}, "takes params, tokens, weight_bits"),
    ],
)  # fmt: skip
def test_a_law_without_an_optimum_is_refused(name, params, message) -> None:
    with pytest.raises(analysis.Refused, match=message):
        laws.get(name).optimum(params, 1e21, SIX)


def test_an_optimum_beyond_the_sizes_that_are_searched_is_refused() -> None:
    far = CLOSED["hoffmann"] | {"A": 1e-12}
    assert laws.get("hoffmann").optimum(far, 1e21, SIX)[0, 0] < 1e6
    with pytest.raises(analysis.Refused, match=r"D/N from 1e\+08 to 0.0001"):
        searching("hoffmann").optimum(far, 1e21, SIX)


@pytest.fixture(scope="module")
def runs(planted) -> pd.DataFrame:
    return planted(noise=0.002, seed=3, sizes=7)


@pytest.fixture(scope="module")
def fits(runs) -> dict[str, analysis.Fit]:
    return {name: analysis.fit(name, runs) for name in ("kaplan", "hoffmann_interaction")}


@pytest.mark.parametrize("name", ["kaplan", "hoffmann_interaction"])
def test_a_saved_fit_of_any_law_allocates(name, runs, fits, tmp_path: pathlib.Path) -> None:
    fit = fits[name]
    fit.save(tmp_path / "fit.json")
    frontier = frontiers.of_fit(analysis.load(tmp_path / "fit.json"), resamples=60)
    top = float(runs["flops"].max())
    bought = frontier.allocate(top)
    for estimate in (bought.params, bought.tokens, bought.loss):
        assert estimate.interval[0] < estimate.value < estimate.interval[1]
    assert 6 * bought.params.value * bought.tokens.value == pytest.approx(top, rel=1e-9)
    sizes = bought.params.value * np.geomspace(0.2, 5, 2001)
    least = fit.predict({"params": sizes, "tokens": top / 6 / sizes}).min()
    assert least * (1 - 1e-6) < bought.loss.value < least * (1 + 1e-12)
    again = frontier.reach(bought.loss.value)
    assert (again.flops.value, again.params.value) == pytest.approx((top, bought.params.value), rel=1e-6)
    served = frontier.allocate(top, inference_tokens=bought.tokens.value)
    assert served.params.value < bought.params.value
    local = frontier.exponents_at(top)
    assert local[0].value == pytest.approx(frontier.exponent_params.value, rel=1e-6)
    assert local[0].value + local[1].value == pytest.approx(1.0)
    said = any(f"at {top:.3g} FLOPs, the largest run's" in text for text in frontier.statements)
    assert said == (laws.get(name).powers is None)


@pytest.mark.parametrize(("name", "zero"), [("hoffmann_interaction", ["A", "H"]), ("kaplan", ["alpha_N"])])
def test_resamples_without_an_optimum_are_said_and_widen_the_interval(name, zero, fits, monkeypatch) -> None:
    whole = fits[name]
    boot = whole.bootstrap(200)

    def lacking(share: float) -> frontiers.Frontier:
        samples = boot.samples.copy()
        samples.loc[: int(200 * share) - 1, zero] = 0.0
        other = dataclasses.replace(boot, samples=samples)
        monkeypatch.setattr(uncertainty, "bootstrap", lambda *_: other)
        return frontiers.of_fit(whole)

    frontier, fewer = lacking(0.0), lacking(0.04)
    full, some = frontier.allocate(1e13), fewer.allocate(1e13)
    assert not full.warnings
    assert not any("have no optimum" in said for said in frontier.warnings)
    (said,) = some.warnings
    assert said.startswith("4.0% of resamples have no optimum at 1e+13 FLOPs: intervals count half of them below")
    assert fewer.warnings[-1].startswith("4.0% of resamples have no optimum at the largest run's FLOPs: intervals")
    slopes = [(each.exponent_params, each.exponents_at(1e13)[0]) for each in (frontier, fewer)]
    for narrow, wide in ((full.params, some.params), *zip(*slopes, strict=True)):
        assert wide.interval[0] < narrow.interval[0] < narrow.interval[1] < wide.interval[1]
    assert (
        lacking(0.1).allocate(1e13).warnings[0].endswith("above all others, so that they are the whole range of these")
    )
    many = r"{}% of resamples have no optimum at {} FLOPs: .* nearer to them, or add runs"
    for share, vanished, refusal in (
        (0.6, slice(1, 121), many.format(r"60\.0", r"1e\+13")),
        (1.0, slice(1, 201), many.format(r"100\.0", r"1e\+13")),
        (1.0, slice(0, 1), f"'{name}' as fitted .*has no optimum in N"),
    ):
        with pytest.raises(analysis.Refused, match=many.format(f"{100 * share:.1f}", "the largest run's")):
            lacking(share)
        params = {key: values.copy() for key, values in frontier.curve.params.items()}
        for key in zero:
            params[key][vanished] = 0.0
        there = dataclasses.replace(frontier, curve=dataclasses.replace(frontier.curve, params=params))
        for ask in (there.allocate, there.exponents_at):
            with pytest.raises(analysis.Refused, match=refusal):
                ask(1e13)


def test_a_loss_that_no_optimum_has_is_refused(fits) -> None:
    frontier = frontiers.of_fit(fits["hoffmann_interaction"], resamples=20)
    with pytest.raises(analysis.Refused, match="optima of 'hoffmann_interaction' as fitted do not come to it"):
        frontier.reach(0.5)
