"""Figures of a sweep: its runs, its iso-FLOP curves, the law that was fitted to it."""

import numpy as np
import pandas as pd
from matplotlib import axes as mpl_axes
from matplotlib import figure, ticker

from analysis import axes, budgets, checks, frontiers
from analysis.plots.drawing import LOSS, band, styled


@styled
def loss_compute(
    frame: pd.DataFrame,
    frontier: frontiers.Frontier | None = None,
    curves: pd.DataFrame | None = None,
    *,
    loss: str = "loss",
    params: str = "params",
    flops: str = "flops",
) -> figure.Figure:
    """Loss against training FLOPs: runs (and their training `curves`) coloured by size, the efficient frontier.

    `curves` has a row an evaluation: run_id, flops, loss. They are drawn and enter no fit.
    """
    runs = checks.runs(frame).frame
    n, c, y = (checks.column(runs, name, "the figure") for name in (params, flops, loss))
    shade = axes.shades(n)
    fig, (panel,) = axes.new(1, 6.4, 4.2)
    shown = [y]
    if curves is not None and len(curves):
        size = dict(zip(runs["run_id"], n, strict=True))
        for run, rows in curves[curves["run_id"].isin(size)].groupby("run_id"):
            line = rows[(rows["flops"] > 0) & rows["loss"].notna()].sort_values("flops")
            panel.plot(line["flops"], line["loss"], color=shade.to_rgba(size[run]), lw=0.8, alpha=0.55, zorder=1)
            shown.append(line.loc[line["flops"] >= c.min() / 3, "loss"].to_numpy())
    panel.scatter(c, y, c=shade.to_rgba(n), s=22, lw=0.4, edgecolor="white", zorder=3, label="runs, final loss")
    if frontier is not None:
        at = np.geomspace(c.min(), c.max(), 60)
        best = [frontier.allocate(float(value)).loss for value in at]
        panel.plot(at, [e.value for e in best], "--", color=axes.ACCENT, zorder=4,
                   label=f"efficient frontier (approach {frontier.approach})")  # fmt: skip
        band(panel, at, np.array([e.interval for e in best]))
    axes.logarithmic(panel, "x", np.concatenate([c, c.min()[None] / 3]) if len(shown) > 1 else c, flops=True)
    axes.log_loss(panel, np.concatenate(shown))
    panel.set(xlabel="training compute (FLOPs)", ylabel=LOSS)
    panel.legend(loc="upper right")
    axes.colorbar(fig, panel, shade, "parameters")
    return fig


def _by_budget(frame: pd.DataFrame, params: str, flops: str, loss: str) -> pd.DataFrame:
    runs = checks.runs(frame).frame
    table = pd.DataFrame({key: checks.column(runs, name, "the figure")
                          for key, name in (("params", params), ("flops", flops), ("loss", loss))})  # fmt: skip
    table["budget"] = budgets.label(runs, table["flops"].to_numpy())
    return table.dropna()


@styled
def loss_params(
    frame: pd.DataFrame, *, loss: str = "loss", params: str = "params", flops: str = "flops"
) -> figure.Figure:
    """Loss against parameters, one line (through the mean over seeds) for each compute budget."""
    table = _by_budget(frame, params, flops, loss)
    shade = axes.shades(table["budget"].to_numpy())
    fig, (panel,) = axes.new(1, 6.4, 4.2)
    for budget in np.unique(table["budget"]):
        rows = table[table["budget"] == budget]
        mean = rows.groupby("params")["loss"].mean()
        color = shade.to_rgba(budget)
        if len(mean) > 1 and table["budget"].nunique() <= 40:
            panel.plot(mean.index, mean, color=color, lw=1.1, zorder=2)
        panel.scatter(rows["params"], rows["loss"], color=color, s=20, lw=0.4, edgecolor="white", zorder=3)
    axes.logarithmic(panel, "x", table["params"].to_numpy())
    axes.log_loss(panel, table["loss"].to_numpy())
    panel.set(xlabel="parameters", ylabel=LOSS)
    axes.colorbar(fig, panel, shade, "compute budget (FLOPs)")
    return fig


@styled
def isoflop(
    frame: pd.DataFrame,
    frontier: frontiers.Frontier,
    *,
    loss: str = "loss",
    params: str = "params",
    flops: str = "flops",
) -> figure.Figure:
    """Iso-FLOP curves with their minima, and N*(C) and D*(C) through them (after Hoffmann et al. 2022, Fig. 3)."""
    if frontier.approach != 2:
        raise ValueError(f"approach {frontier.approach} has no iso-FLOP curves; pass frontier(frame, 2)")
    table = _by_budget(frame, params, flops, loss)
    table = table[table["budget"].isin([p.budget for p in frontier.parabolas])]
    shade = axes.shades(table["budget"].to_numpy())
    fig, panels = axes.new(3, 4.5, 4.0)
    left = panels[0]
    for parabola in frontier.parabolas:
        color = shade.to_rgba(np.array(parabola.budget))
        rows = table[table["budget"] == parabola.budget]
        left.scatter(rows["params"], rows["loss"], color=color, s=18, lw=0.4, edgecolor="white", zorder=3)
        if parabola.refused:
            continue
        at = np.geomspace(parabola.low, parabola.high, 80)
        left.plot(at, parabola.curve(at), color=color, zorder=2)
        left.plot(parabola.params, parabola.loss, marker="D", ms=6, mfc="white", mec=axes.ACCENT, mew=1.4, zorder=5)
    axes.logarithmic(left, "x", table["params"].to_numpy())
    axes.log_loss(left, table["loss"].to_numpy())
    left.set(xlabel="parameters", ylabel=LOSS)
    axes.colorbar(fig, left, shade, "FLOPs", np.unique(table["budget"]))
    c = frontier.minima["flops"].to_numpy()
    reach = np.geomspace(c.min() / 1.6, c.max() * 10, 80)
    allocated = [frontier.allocate(float(value)) for value in reach]
    for panel, quantity, letter, estimate in (
        (panels[1], "params", "N", frontier.exponent_params),
        (panels[2], "tokens", "D", frontier.exponent_tokens),
    ):
        values = [getattr(a, quantity) for a in allocated]
        panel.plot(reach, [v.value for v in values], "--", color=axes.ACCENT, zorder=3)
        band(panel, reach, np.array([v.interval for v in values]))
        y = frontier.minima[quantity].to_numpy()
        panel.scatter(c, y, c=shade.to_rgba(_budgets(frontier)), s=34, zorder=4, edgecolor="white", lw=0.5)
        axes.logarithmic(panel, "x", reach, flops=True)
        axes.logarithmic(panel, "y", np.concatenate([y, [v.value for v in values]]))
        name = {"params": "parameters", "tokens": "tokens"}[quantity]
        panel.set(xlabel="training compute (FLOPs)", ylabel=f"compute-optimal {name}")
        low, high = estimate.interval
        equation = f"${letter}^* \\propto C^{{{estimate.value:.3f}}}$\n{frontier.level:.0%}: {low:.3f} to {high:.3f}"
        panel.text(0.05, 0.95, equation, transform=panel.transAxes, va="top", linespacing=1.5)
    return fig


def _budgets(frontier: frontiers.Frontier) -> np.ndarray:
    return np.array([p.budget for p in frontier.parabolas if not p.refused])


@styled
def fitted(frontier: frontiers.Frontier, frame: pd.DataFrame, *, flops: str = "flops") -> figure.Figure:
    """The fitted law: loss contours over compute and size with the frontier, slices by budget, measured on predicted.

    After Hoffmann et al. 2022, Fig. 4. The middle panel is left out where runs share no budgets.
    """
    fit = frontier.fit
    if fit is None or not isinstance(frontier.curve, frontiers.Surface):
        raise ValueError(f"approach {frontier.approach} has no fitted law; pass frontier(frame, 3)")
    rule = frontier.curve.rule
    n, d, y = (fit.runs[name].to_numpy() for name in ("params", "tokens", "loss"))
    runs = checks.runs(frame).frame
    c = checks.column(runs, flops, "the figure") if flops in runs.columns else rule.flops(n, d)
    budget = budgets.label(runs, c)
    values, count = np.unique(budget[~np.isnan(budget)], return_counts=True)
    sliced = values[count >= 4]
    fig, panels = axes.new(3 if len(sliced) else 2, 4.7, 4.0)
    _contours(panels[0], frontier, rule, c, n, y)
    if len(sliced):
        _slices(panels[1], frontier, rule, sliced, budget, n, y)
    last = panels[-1]
    predicted = fit.fitted
    shade = axes.shades(c)
    ends = np.array([min(y.min(), predicted.min()), max(y.max(), predicted.max())])
    last.plot(ends, ends, color=axes.FAINT, lw=1, zorder=1)
    last.scatter(predicted, y, c=shade.to_rgba(c), s=18, lw=0.4, edgecolor="white", zorder=3)
    rms = np.sqrt(np.mean(fit.residuals**2))
    last.text(0.05, 0.95, f"{len(y)} runs, rms {rms:.2%}", transform=last.transAxes, va="top")
    last.set(xlabel="predicted " + LOSS, ylabel="measured " + LOSS)
    axes.colorbar(fig, last, shade, "training compute (FLOPs)")
    return fig


def _contours(
    panel: mpl_axes.Axes, frontier: frontiers.Frontier, rule: frontiers.FlopRule, c: np.ndarray, n: np.ndarray,
    y: np.ndarray,
) -> None:  # fmt: skip
    assert frontier.fit is not None
    across, up = np.geomspace(c.min() / 2, c.max() * 2, 120), np.geomspace(n.min() / 2, n.max() * 2, 120)
    C, N = np.meshgrid(across, up)
    surface = frontier.fit.predict({"params": N, "tokens": C / rule.per_token(N)})
    least = float(surface.min())
    ticks = ticker.MaxNLocator(nbins=14, steps=[1, 2, 2.5, 5, 10]).tick_values(least, float(np.quantile(y, 0.98)))
    levels = np.array([tick for tick in ticks if least < tick <= y.max()])
    tints = list(axes.PALETTE(np.linspace(1, 0, len(levels))))
    lines = panel.contour(C, N, surface, levels=levels, colors=tints, linewidths=0.9)
    panel.clabel(lines, levels[:: max(1, len(levels) // 5)], fmt="%.4g", fontsize=7.5, inline_spacing=3)
    panel.scatter(c, n, s=9, color=axes.INK, lw=0, alpha=0.75, zorder=3, label="runs")
    few = np.geomspace(across[0], across[-1], 30)  # a law without a closed form searches at each
    best = [frontier.allocate(float(value)).params for value in few]
    panel.plot(few, [e.value for e in best], "--", color=axes.ACCENT, zorder=4, label="efficient frontier")
    band(panel, few, np.array([e.interval for e in best]))
    axes.logarithmic(panel, "x", across, flops=True, pad=0.0)
    axes.logarithmic(panel, "y", up, pad=0.0)
    panel.set(xlabel="training compute (FLOPs)", ylabel="parameters")
    panel.legend(loc="upper left", handlelength=1.6, frameon=True, framealpha=0.85, edgecolor="none")
    panel.grid(False)


def _slices(
    panel: mpl_axes.Axes, frontier: frontiers.Frontier, rule: frontiers.FlopRule, sliced: np.ndarray,
    budget: np.ndarray, n: np.ndarray, y: np.ndarray,
) -> None:  # fmt: skip
    assert frontier.fit is not None
    shade = axes.shades(sliced)
    for value in sliced:
        mine = budget == value
        color = shade.to_rgba(value)
        at = np.geomspace(n[mine].min() / 1.15, n[mine].max() * 1.15, 80)
        panel.plot(at, frontier.fit.predict({"params": at, "tokens": value / rule.per_token(at)}), color=color)
        panel.scatter(n[mine], y[mine], color=color, s=18, lw=0.4, edgecolor="white", zorder=3)
    shown = np.isin(budget, sliced)
    axes.logarithmic(panel, "x", n[shown], pad=0.1)
    axes.log_loss(panel, y[shown])
    panel.set(xlabel="parameters", ylabel=LOSS)
