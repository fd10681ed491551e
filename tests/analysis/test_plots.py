"""Figures of fits, profiles, curves and forecasts show what the results hold."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import plots


@pytest.fixture(scope="module")
def curve() -> pd.DataFrame:
    x = np.geomspace(1e6, 1e9, 24)
    return pd.DataFrame({"tokens": x, "loss": (1.5 + 40 / x**0.25) * np.exp(0.002 * np.sin(np.arange(24) * 1.7))})


def test_residuals_are_those_of_the_fit(sweep) -> None:
    fit = analysis.fit("hoffmann", sweep)
    made = plots.residuals(fit)
    assert [panel.get_xlabel() for panel in made.axes[:2]] == ["parameters", "training tokens"]
    for panel in made.axes[:3]:
        (points,) = panel.collections
        np.testing.assert_allclose(np.asarray(points.get_offsets())[:, 1], 100 * fit.residuals)
    assert sum(bar.get_height() for bar in made.axes[3].patches) == len(fit.runs)


def test_profiles_show_the_interval_and_its_quantile(sweep) -> None:
    fit = analysis.fit("hoffmann", sweep)
    found = [fit.profile(name) for name in ("alpha", "E")]
    made = plots.profiles(found)
    for panel, profile in zip(made.axes, found, strict=True):
        assert panel.get_xlabel() == profile.name
        assert panel.lines[1].get_ydata()[0] == pytest.approx(profile.quantile)
        assert f"{profile.best:.4g}" in panel.texts[0].get_text()
        assert f"{profile.interval[1]:.3g}" in panel.texts[0].get_text()


def test_a_curve_is_drawn_beyond_its_points_with_what_was_held_out(curve, tmp_path) -> None:
    below, above = curve.iloc[:18], curve.iloc[18:]
    fit = analysis.fit("power_offset", below, x="tokens")
    made = plots.curve(fit, fit.bootstrap(50), above)
    panel = made.axes[0]
    assert panel.get_legend_handles_labels()[1] == [fit.law.equation, "fitted", "held out"]
    line = panel.lines[0]
    np.testing.assert_allclose(line.get_ydata(), fit.predict({"tokens": line.get_xdata()}))
    assert line.get_xdata()[-1] == pytest.approx(max(below["tokens"].max() * 10, above["tokens"].max()))
    assert len(plots.save(made, tmp_path / "curve.pdf").read_bytes()) > 5_000
    with pytest.raises(ValueError, match="a curve has one"):
        plots.curve(analysis.fit("hoffmann", _surface()), fit.bootstrap(5))


def test_a_forecast_is_drawn_with_its_interval(curve) -> None:
    below, above = curve.iloc[:18], curve.iloc[18:]
    found = analysis.forecast(below, "tokens", "loss")
    panel = plots.forecast(found, above).axes[0]
    assert panel.get_legend_handles_labels()[1] == ["forecast", "measured", "held out"]
    line = panel.lines[0]
    np.testing.assert_allclose(line.get_ydata(), found.predict({"tokens": line.get_xdata()}))


def _surface() -> pd.DataFrame:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    return pd.DataFrame({"params": n, "tokens": d, "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28})
