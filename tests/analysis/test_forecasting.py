"""Forecasts of one curve: planted laws, public curves, and what is refused."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import ensembles, forecasting, shapes, solver

Table = Callable[[str], pd.DataFrame]
X = np.geomspace(1e6, 2.5e8, 12)


def curve(y: np.ndarray, x: np.ndarray = X) -> pd.DataFrame:
    return pd.DataFrame({"seen": x, "loss": y})


def falling(x: np.ndarray) -> np.ndarray:
    return 1.8 + 40.0 * x**-0.25


@pytest.fixture(scope="module")
def made() -> forecasting.Forecast:
    rng = np.random.default_rng(0)
    return forecasting.forecast(curve(falling(X) * np.exp(0.002 * rng.normal(size=len(X)))))


@pytest.mark.parametrize("law", ["m1", "m2", "m3"])
def test_the_law_that_made_the_curve_gets_the_weight_and_the_forecast_is_exact(law: str) -> None:
    truth = {"m1": lambda x: 9 * x**-0.12, "m2": falling, "m3": lambda x: 60 * (1 / x + 1e-8) ** 0.3}[law]
    found = forecasting.forecast(curve(truth(X)))
    far = X[-1] * np.array([1.5, 2.0, 10.0])
    np.testing.assert_allclose(found.predict({"seen": far}), truth(far), rtol=2e-4)
    by_law = found.weights.groupby("law").sum()
    assert law == "m1" or by_law[law] > 0.95  # M1 is a limit of the others: they share it
    assert found.weights.sum() == pytest.approx(1)
    assert found.error < 2e-4


def test_units_of_x_and_y_do_not_matter(made: forecasting.Forecast) -> None:
    points = made.points
    scaled = forecasting.forecast(pd.DataFrame({"t": points["seen"] * 1e-9, "err": points["loss"] / 50}), "t", "err")
    far = X[-1] * np.array([1.0, 2.0, 5.0])
    np.testing.assert_allclose(scaled.predict({"t": far * 1e-9}) * 50, made.predict({"seen": far}), rtol=1e-5)
    np.testing.assert_allclose(scaled.weights, made.weights, atol=1e-4)


def test_rows_in_any_order_and_repeats_give_the_same_forecast(made: forecasting.Forecast) -> None:
    shuffled = forecasting.forecast(made.points.sample(frac=1, random_state=1))
    assert shuffled.predict({"seen": [5e8]}) == pytest.approx(made.predict({"seen": [5e8]}), rel=1e-12)


def test_a_row_that_repeats_another_is_left_out_with_a_warning(made: forecasting.Forecast) -> None:
    again = pd.concat([made.points, made.points[:2]])
    found = forecasting.forecast(again, made.x, made.y)
    pd.testing.assert_frame_equal(found.points, made.points)
    assert "left out: 2 rows where every column repeats another row's" in found.warnings[0]


def test_repeats_at_one_x_measure_the_noise() -> None:
    rng = np.random.default_rng(3)
    x = np.repeat(X, 5)  # 60 points, padded to 64 like all the others here
    found = forecasting.forecast(curve(falling(x) * np.exp(0.01 * rng.normal(size=len(x))), x))
    assert 0.008 < found.noise < 0.012
    assert found.predict({"seen": [5e8]}) == pytest.approx(falling(np.array([5e8])), rel=0.01)


def test_the_interval_grows_with_distance_and_with_level(made: forecasting.Forecast) -> None:
    at = {"seen": X[-1] * np.array([0.5, 1.0, 2.0, 10.0, 100.0])}
    low, high = made.predict_interval(at)
    widths = np.log(high / low)
    assert (np.diff(widths[1:]) >= -1e-12).all()
    assert widths[0] < 1.1 * widths[1]  # among the points M1 may differ from the others more than at the end
    assert widths[-1] > 2 * widths[0]
    inner_low, inner_high = made.predict_interval(at, 0.5)
    assert (low < inner_low).all()
    assert (inner_low < made.predict(at)).all()
    assert (made.predict(at) < inner_high).all()
    assert (inner_high < high).all()
    with pytest.raises(ValueError, match=r"level = 95: must lie between 0 and 1"):
        made.predict_interval(at, 95)


def test_a_short_curve_that_turns_steeper_is_inside_the_interval() -> None:
    """A loss whose fall quickens beyond the points, as under a decaying learning rate: M2 and M3 alone miss it."""
    x = np.arange(1.0, 26.0)
    y = 1.5 + x**-0.3 - 0.02 * (1 - np.cos(np.pi * x / 25)) ** 2
    short = forecasting.forecast(curve(y[:8], x[:8]))
    low, high = short.predict_interval({"seen": [25.0]})
    assert low < y[-1] < high
    assert np.log(high / low) < 0.25


def test_intervals_hold_on_planted_curves() -> None:
    rng = np.random.default_rng(5)
    inside = []
    for i in range(12):
        rate, floor = rng.uniform(0.15, 0.5), rng.uniform(0.0, 2.0)
        far = X[-1] * np.array([2.0, 4.0])
        exact = floor + (X[0] / np.concatenate([X, far])) ** rate
        y = exact * np.exp(0.003 * (1 + i % 3) * rng.normal(size=len(exact)))
        low, high = forecasting.forecast(curve(y[: len(X)])).predict_interval({"seen": far})
        inside += ((low <= y[len(X) :]) & (y[len(X) :] <= high)).tolist()
    assert np.mean(inside) >= 0.8  # 24 points, in pairs; 0.97 in a longer run


def test_back_tests_use_nothing_beyond_their_end(made: forecasting.Forecast) -> None:
    changed = made.points.copy()
    changed.loc[changed.index[-1], "loss"] *= 0.9
    again = forecasting.forecast(changed)
    second = made.tracks.ends[2]
    assert (made.tracks.ends == again.tracks.ends).all()
    before, after = (f.tracks.log_predictions(np.array([1e9]), 2) for f in (made, again))
    np.testing.assert_allclose(before, after, rtol=1e-9)
    reached = made.backtests["end"] * made.horizon < X[-1] * (1 - 1e-6)
    assert reached.any()
    assert second * made.horizon < X[-1]
    members = [forecasting.label(*name) for name in made.weights.index]
    np.testing.assert_allclose(made.backtests.loc[reached, members], again.backtests.loc[reached, members], rtol=1e-6)


def test_shares_fall_with_past_errors_and_are_equal_without_any() -> None:
    squares = np.array([[1e-6, 4e-6], [1e-6, 1e-6], [1e-4, 1e-4]])
    share = ensembles.shares(squares, np.array([1.0, 0.8]))
    assert share[1] > share[0] > share[2] > 0
    assert share.sum() == pytest.approx(1)
    assert (ensembles.shares(squares[:, :0], np.zeros(0)) == 1 / 3).all()
    once, often = (ensembles.shares(squares[:, [0] * n], np.ones(n)) for n in (1, 6))
    assert often[2] < once[2]  # more back-tests, more trust in them


def test_ends_leave_points_on_both_sides() -> None:
    ends = ensembles.ends(X, 2.0)
    assert (np.diff(ends) < 0).all()
    assert 3 <= len(ends) <= ensembles.ENDS
    assert np.sum(ends[-1] >= X) >= ensembles.LEAST
    assert ensembles.held_out(X, ends, 2.0).any(axis=1).all()
    assert not len(ensembles.ends(np.linspace(100, 110, 20), 2.0))


def test_public_curves_are_forecast_about_as_well_as_was_published(language: pd.DataFrame) -> None:
    """Means over translation and language models; published 0.0208 and 0.0009. All: `benchmarks.extrapolation`."""
    for domain, most in (("NMT", 0.0208), ("LM", 0.0010)):
        scores, inside = [], []
        for _, one in language[language["domain"] == domain].groupby("model"):
            beyond = one[one["split"] == "extrapolate"]
            found = forecasting.forecast(one[one["split"] == "fit"])
            low, high = found.predict_interval(beyond)
            scores.append(np.sqrt(np.mean(np.log(found.predict(beyond) / beyond["loss"]) ** 2)))
            inside.append(((low < beyond["loss"]) & (beyond["loss"] < high)).mean())
        assert np.mean(scores) < most
        assert np.mean(inside) > 0.9


def test_curves_of_other_lengths_compile_nothing_new(made: forecasting.Forecast) -> None:
    assert len(made.points) == len(X)
    compiled = solver._derivatives._cache_size()
    for points in (13, 20, 33):
        x = np.geomspace(1e5, 1e8, points)
        forecasting.forecast(curve(falling(x), x))
    assert solver._derivatives._cache_size() == compiled > 0


def test_the_summary_says_what_was_averaged_and_why(made: forecasting.Forecast) -> None:
    told = made.summary()
    best = forecasting.label(*made.weights.idxmax())
    assert told.index(best) == min(told.index(forecasting.label(*name)) for name in made.weights.index)
    assert f"error of the forecast in them {made.error:.2%}" in told
    assert f"noise of {made.noise:.2%}" in told
    assert f"{len(made.backtests)} back-tests" in told


def test_what_to_doubt_comes_first() -> None:
    short = forecasting.forecast(curve(falling(X[:8]) * (1 + 0.001 * (-1.0) ** np.arange(8)), X[:8]), horizon=3.0)
    assert len(short.backtests) < 3
    assert short.reach == pytest.approx(X[7] / X[5])
    assert short.summary().startswith(f"warning: only {len(short.backtests)} back-test")
    near, beyond = ({"seen": [X[7] * short.reach * factor]} for factor in (1.0, 1.01))
    assert short.doubts(near) == ()
    (doubt,) = short.doubts(beyond)
    assert "back-tests reach 2.73 times theirs" in doubt
    lines = short.summary(beyond).splitlines()
    assert f"warning: {doubt}" in lines[:2]
    assert short.summary(near) == short.summary()


def test_every_curve_of_double_descent_is_flagged_and_says_where_it_turns(table: Table) -> None:
    frame = table("nakkiran2020_double_descent.csv")
    for _, group in frame.groupby("series"):
        one = group.groupby("x", as_index=False)["y"].mean()
        noise = shapes.noise(one["x"].to_numpy(), np.log(one["y"].to_numpy()))
        assert shapes.turns(one["x"].to_numpy(), one["y"].to_numpy(), shapes.TURN * noise)
    one = frame[frame["series"] == "nlp-model-dd"]
    (warning,) = forecasting.forecast(one, "x", "y").warnings
    assert warning in analysis.fit("power_offset", one[["x", "y"]], loss="y").warnings
    assert "y is not monotone in x: it turns at x = 72 (y = 3.766); at x = 200 (y = 5.334)" in warning


def test_a_curve_that_no_law_follows_is_flagged(table: Table) -> None:
    frame = table("caballero2022_bnsl_addition.csv")
    before = forecasting.forecast(frame[frame["split"] == "fit"], "train_examples", "loss")
    assert before.warnings[0].startswith("back-tests miss loss by 34.3")
    assert before.summary().startswith(f"warning: {before.warnings[0]}")
    after = frame[frame["split"] == "extrapolate"]
    low, high = before.predict_interval(after)
    assert ((low < after["loss"]) & (after["loss"] < high)).all()


def test_noise_is_no_turn_and_a_rising_curve_is_told(language: pd.DataFrame) -> None:
    for _, group in language.groupby(["domain", "task", "model"]):
        x, y = (group[name].to_numpy(dtype=float) for name in ("seen", "loss"))
        assert not shapes.turns(x, y, shapes.TURN * shapes.noise(x, np.log(y)))
    (warning,) = forecasting.forecast(curve(X**0.1)).warnings
    assert warning.startswith("loss rises with seen, from 3.981 to 6.915")


@pytest.fixture(scope="module")
def language(table: Table) -> pd.DataFrame:
    return table("alabdulmohsin2022_language.csv")


def broken(**changes: object) -> pd.DataFrame:
    frame = curve(falling(X)).astype(object)
    for name, value in changes.items():
        frame.loc[3, name] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (broken(loss=np.nan), "column 'loss' is NaN in 1 of 12 rows"),
        (broken(loss=-1.0), "column 'loss' is zero or negative"),
        (broken(loss=0.0), "column 'loss' is zero or negative"),
        (broken(seen=np.inf), "column 'seen' is infinite"),
        (broken(loss="n/a"), "column 'loss' holds 'n/a', not a number"),
        (curve(falling(X))[:1], "1 different values of 'seen': a forecast by m1, m2, m3 needs 8; add points"),
        (curve(falling(X))[:7], "7 different values of 'seen'"),
        (
            pd.concat([curve(falling(X)), curve(falling(X))[:2].assign(note="")]),
            r"seen = 1e\+06, loss = 3.06491 is in two rows",
        ),
        (curve(falling(X), np.full(len(X), 1e6)), "1 different values"),
        (curve(falling(np.linspace(100, 110, 20)), np.linspace(100, 110, 20)), "pass a smaller horizon"),
        (curve(falling(X)).drop(columns="loss"), "no column 'loss' for the forecast's y"),
    ],
)
def test_what_cannot_be_forecast_is_refused(frame: pd.DataFrame, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        forecasting.forecast(frame)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"horizon": 1.0}, "horizon = 1: must be over 1"),
        ({"laws": ()}, "no laws or no memories"),
        ({"laws": ("m2", "m2")}, "names m2 twice"),
        ({"laws": ("hoffmann",)}, "'hoffmann' takes params, tokens: a curve has one input"),
        ({"laws": ("m7",)}, "'m7' is unknown"),
        ({"memories": (0.0,)}, r"memories = \(0.0,\): must be positive"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        forecasting.forecast(curve(falling(X)), **options)  # type: ignore[arg-type]


def test_a_prediction_at_an_impossible_place_is_refused(made: forecasting.Forecast) -> None:
    with pytest.raises(ValueError, match="needs 'seen'; got tokens"):
        made.predict({"tokens": [1e9]})
    with pytest.raises(ValueError, match="seen = -1: must be positive"):
        made.predict_interval({"seen": [1e9, -1.0]})
