"""Figures of any law's results: residuals, profiles, back-tests, one curve with its forecast."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import axes as mpl_axes
from matplotlib import figure

from analysis import axes, backtests, fitting, forecasting, uncertainty
from analysis import profiles as profiling
from analysis.plots.drawing import LOSS, band, labelled, styled

BOUGHT = ("params", "params_non_embedding", "flops")  # what a held-out run is drawn over, the first that it has


def _named(fit: fitting.Fit) -> str:
    return LOSS if fit.law.unit == "nats per token" else "y"


def _logged(panel: mpl_axes.Axes, values: np.ndarray, column: str) -> None:
    """A log axis with the column's name, or a plain one where values are not positive."""
    if (values > 0).all():
        axes.logarithmic(panel, "x", values, flops="flops" in column)
    panel.set_xlabel(labelled(column))


@styled
def residuals(fit: fitting.Fit) -> figure.Figure:
    """Residuals against every input and against the prediction, and their distribution: what the law misses."""
    r = fit.residuals * 100 if fit.criterion.scale == "log" else fit.residuals
    unit = {"log": "measured over predicted (%)", "log1p": "residual of log(1 + y)", "linear": "measured − predicted"}
    fig, panels = axes.new(len(fit.law.inputs) + 2, 3.6, 3.4)
    columns = {name: fit.runs[name].to_numpy() for name in fit.law.inputs}
    for panel, (name, values) in zip(panels, columns.items(), strict=False):
        panel.axhline(0, color=axes.FAINT, lw=1, zorder=1)
        panel.scatter(values, r, s=16, color=axes.INK, lw=0.4, edgecolor="white", zorder=3)
        _logged(panel, values, fit.columns[name])
    panel = panels[-2]
    panel.axhline(0, color=axes.FAINT, lw=1, zorder=1)
    panel.scatter(fit.fitted, r, s=16, color=axes.INK, lw=0.4, edgecolor="white", zorder=3)
    panel.set_xlabel("predicted " + _named(fit))
    panels[0].set_ylabel(unit[fit.criterion.scale])
    for other in panels[1:-1]:
        other.set_ylabel("residual")
    last = panels[-1]
    last.hist(r, bins=int(np.clip(np.sqrt(len(r)) * 2, 8, 40)), color=axes.ACCENT, alpha=0.8)
    last.axvline(0, color=axes.INK, lw=1)
    last.set(xlabel="residual" + (" (%)" if fit.criterion.scale == "log" else ""), ylabel="runs")
    percent = "%" if fit.criterion.scale == "log" else ""
    last.text(0.04, 0.96, f"rms {np.sqrt(np.mean(r**2)):.2g}{percent}", transform=last.transAxes, va="top")
    return fig


@styled
def profiles(profiled: Sequence[profiling.Profile]) -> figure.Figure:
    """The deviance against each profiled parameter, the interval where it lies below its quantile."""
    fig, panels = axes.new(len(profiled), 3.4, 3.2)
    for panel, profile in zip(panels, profiled, strict=True):
        low, high = profile.interval
        top = 2.5 * profile.quantile
        shown = profile.deviance <= top * 1.5
        panel.plot(profile.values[shown], profile.deviance[shown], color=axes.INK, marker=".", ms=4, zorder=3)
        panel.axhline(profile.quantile, color=axes.FAINT, ls="--", lw=1)
        panel.axvline(profile.best, color=axes.ACCENT, lw=1.2)
        panel.axvspan(max(low, profile.values[0]), min(high, profile.values[-1]), color=axes.ACCENT, alpha=0.12, lw=0)
        panel.set_ylim(-0.05 * top, top)
        ends = "" if not profile.open_ends else f"\n{' and '.join(profile.open_ends)} end open"
        text = f"{profile.best:.4g}\n{profile.level:.0%}: {low:.3g} to {high:.3g}{ends}"
        panel.text(0.5, 0.97, text, transform=panel.transAxes, va="top", ha="center", zorder=5,
                   bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})  # fmt: skip
        panel.set(xlabel=profile.name, ylabel="deviance")
    return fig


@styled
def backtest(result: backtests.Backtest) -> figure.Figure:
    """The largest group: measured over predicted with its interval; then all errors by how far they reached."""
    rows = result.latest
    x = next(name for name in (*BOUGHT, *result.law.inputs) if name in rows.columns and (rows[name] > 0).all())
    rows = rows.sort_values(x)
    fig, panels = axes.new(2 if len(result.rows["origin"].unique()) > 1 else 1, 5.2, 4.0)
    panel = panels[0]
    label = "predicted from the smaller groups"
    if rows[x].nunique() > 2:
        panel.plot(rows[x], rows["predicted"], "--", color=axes.ACCENT, label=label)
        band(panel, rows[x].to_numpy(), rows[["low", "high"]].to_numpy())
    else:
        bars = np.abs(rows[["low", "high"]].to_numpy().T - rows["predicted"].to_numpy())
        panel.errorbar(rows[x], rows["predicted"], yerr=bars, fmt="s", mfc="white", color=axes.ACCENT, label=label)
    noise = result.noise.sd
    panel.errorbar(rows[x], rows["measured"], yerr=None if np.isnan(noise) else noise, fmt="o", ms=5, color=axes.INK,
                   capsize=2.5, lw=1, label="held out" + ("" if np.isnan(noise) else " ± seed noise"))  # fmt: skip
    axes.logarithmic(panel, "x", rows[x].to_numpy(), flops=x == "flops")
    panel.set(xlabel=labelled(x), ylabel=LOSS)
    panel.legend(loc="best")
    if len(panels) > 1:
        right, shade = panels[1], axes.shades(result.rows["origin"].to_numpy())
        right.axhline(0, color=axes.FAINT, lw=1, zorder=1)
        if not np.isnan(noise):
            right.axhspan(-noise, noise, color=axes.FAINT, alpha=0.2, lw=0, zorder=0, label="seed noise")
            right.legend(loc="best")
        tints = shade.to_rgba(result.rows["origin"].to_numpy())
        right.scatter(result.rows["reach"], result.rows["error"], c=tints, s=20, lw=0.4, edgecolor="white", zorder=3)
        axes.logarithmic(right, "x", result.rows["reach"].to_numpy())
        right.set(xlabel=f"{result.hold_out} over the largest fitted", ylabel="predicted − measured")
        axes.colorbar(fig, right, shade, f"fitted up to ({'FLOPs' if result.hold_out == 'flops' else result.hold_out})")
    return fig


@styled
def curve(
    fit: fitting.Fit,
    intervals: uncertainty.Bootstrap,
    held_out: pd.DataFrame | None = None,
    *,
    reach: float = 10.0,
    loss: str = "loss",
) -> figure.Figure:
    """A law of one input over its points and `reach` times beyond, with its interval; held-out points are marked."""
    if len(fit.law.inputs) != 1:
        raise ValueError(f"{fit.law.name!r} has {len(fit.law.inputs)} inputs; a curve has one: draw residuals instead")
    (name,) = fit.law.inputs
    x, y = fit.runs[name].to_numpy(), fit.runs["loss"].to_numpy()
    beyond = None if held_out is None else held_out[fit.columns[name]].to_numpy(dtype=np.float64)
    furthest = max([x.max() * reach] + ([] if beyond is None else [beyond.max()]))
    logged = bool((x > 0).all()) and name not in fit.law.real
    at = np.geomspace(x.min(), furthest, 200) if logged else np.linspace(x.min(), x.max() + 0.2 * np.ptp(x), 200)
    fig, (panel,) = axes.new(1, 5.8, 4.0)
    panel.plot(at, fit.predict({name: at}), color=axes.ACCENT, zorder=2, label=fit.law.equation)
    low, high = intervals.predict_interval({name: at})
    band(panel, at, np.column_stack([low, high]))
    panel.scatter(x, y, s=18, color=axes.INK, lw=0.4, edgecolor="white", zorder=3, label="fitted")
    shown = [y]
    if held_out is not None and beyond is not None:
        shown.append(held_out[loss].to_numpy(dtype=np.float64))
        panel.scatter(beyond, shown[-1], s=26, marker="D", facecolor="white", edgecolor=axes.INK, zorder=4,
                      label="held out")  # fmt: skip
    if logged:
        axes.logarithmic(panel, "x", at, flops="flops" in fit.columns[name])
    if (np.concatenate(shown) > 0).all():
        axes.log_loss(panel, np.concatenate([*shown, fit.predict({name: at})]))
    panel.set(xlabel=labelled(fit.columns[name]), ylabel=_named(fit))
    panel.legend(loc="best")
    return fig


@styled
def forecast(
    result: forecasting.Forecast, held_out: pd.DataFrame | None = None, *, reach: float = 4.0
) -> figure.Figure:
    """A forecast over its points and `reach` times beyond, with its 95% interval; held-out points are marked."""
    x, y = (result.points[name].to_numpy(dtype=np.float64) for name in (result.x, result.y))
    furthest = x.max() * reach if held_out is None else max(x.max() * reach, float(held_out[result.x].max()))
    at = np.geomspace(x.min(), furthest, 200)
    predicted = result.predict({result.x: at})
    fig, (panel,) = axes.new(1, 5.8, 4.0)
    panel.plot(at, predicted, color=axes.ACCENT, zorder=2, label="forecast")
    band(panel, at, np.column_stack(result.predict_interval({result.x: at}, 0.95)))
    panel.scatter(x, y, s=18, color=axes.INK, lw=0.4, edgecolor="white", zorder=3, label="measured")
    shown = [y, predicted]
    if held_out is not None:
        beyond, values = (held_out[name].to_numpy(dtype=np.float64) for name in (result.x, result.y))
        shown.append(values)
        panel.scatter(beyond, values, s=26, marker="D", facecolor="white", edgecolor=axes.INK, zorder=4,
                      label="held out")  # fmt: skip
    axes.logarithmic(panel, "x", at, flops="flops" in result.x)
    axes.log_loss(panel, np.concatenate(shown))
    panel.set(xlabel=labelled(result.x), ylabel=LOSS if result.y == "loss" else result.y)
    panel.legend(loc="best")
    return fig
