"""One column of runs against another, a line for each value of a third."""

import dataclasses
from collections.abc import Hashable

import numpy as np
import pandas as pd
from matplotlib import axes as mpl_axes
from matplotlib import cm, colors, figure, ticker

from analysis import axes, checks, errors, settings
from analysis.plots.drawing import labelled, styled

DECADE = 10.0  # positive values that span more go on a log axis
FEW = 10  # numeric hues that a legend lists; more are read off a colour bar
TICKED = 7  # numbers on an x axis that are few enough to be its ticks
CROWDED = 48  # characters of category names, with a space either side, that fit side by side under a panel
MARKERS = "osD^vP*X"


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale:
    """A column as positions: the numbers themselves, or 0, 1, 2 … for the sorted `categories` of a column of others."""

    name: str
    positions: np.ndarray
    categories: tuple[Hashable, ...] = ()

    @property
    def label(self) -> str:
        return labelled(self.name)


@styled
def metric(frame: pd.DataFrame, x: str, y: str, hue: str | None = None) -> figure.Figure:
    """Runs as points of `y` over `x`, with a line for each value of `hue` through their means, sorted by x.

    Error bars are the standard errors in the column `<y>_se`, where there is one. Positive values that span more than a
    decade have a log axis, as have such values beside zeros on x. Columns of numbers are axes and colours of numbers,
    others of categories, in which a missing value is one of its own. Trunks are no runs; they are left out, and so is a
    row without a number for `y`, or for an `x` of numbers: the title says how many.
    Raises `Refused` for a column that is not there, a `y` that is no number, and where nothing is left to draw.
    """
    for name, purpose in ((x, "the x axis"), (y, "the y axis"), *(((hue, "the hue"),) if hue else ())):
        checks.there(frame, name, purpose)
    rows, left_out = _drawn(frame, x, y)
    across, up = _scale(rows, x), checks.numbers(rows, y)
    se = checks.numbers(rows, f"{y}_se") if f"{y}_se" in rows.columns else np.full(len(rows), np.nan)
    fig, (panel,) = axes.new(1, 6.4, 4.2)
    colouring = _colouring(_scale(rows, hue)) if hue else ALIKE
    for group in colouring.groups:
        mine = group.rows(len(rows))
        _group(panel, group, across.positions[mine], up[mine], se[mine])
    colouring.key(fig, panel)
    _across(panel, across)
    _up(panel, y, up, se)
    if left_out:
        panel.set_title(left_out, loc="left", fontsize=8, color=axes.INK)
    return fig


def _drawn(frame: pd.DataFrame, x: str, y: str) -> tuple[pd.DataFrame, str]:
    """The rows that can be drawn, and what is to be said of the others."""
    trunk = (frame["role"] == "trunk").to_numpy() if "role" in frame.columns else np.zeros(len(frame), dtype=bool)
    lacking = {y: ~np.isfinite(checks.numbers(frame, y))}
    if _numeric(frame[x]):
        lacking[x] = ~np.isfinite(checks.numbers(frame, x)) & ~lacking[y]
    rows = frame[~trunk & ~np.logical_or.reduce(list(lacking.values()))]
    parts = [f"{count} of {len(frame)} runs without {name}" for name, lost in lacking.items()
             if (count := int((lost & ~trunk).sum()))]  # fmt: skip
    parts += [f"{int(trunk.sum())} trunks"] if trunk.any() else []
    left_out = f"left out: {' and '.join(parts)}" if parts else ""
    if not len(rows):
        raise errors.Refused(f"no run has {x!r} and {y!r}{f' ({left_out})' if left_out else ''}: name other columns")
    return rows, left_out


def _numeric(column: pd.Series) -> bool:
    """Whether all that a column holds are numbers; True and False are none."""
    held = column.dropna()
    if pd.api.types.is_bool_dtype(held) or held.map(lambda value: isinstance(value, bool | np.bool_)).any():
        return False
    return len(held) > 0 and bool(pd.to_numeric(held, errors="coerce").notna().all())


def _scale(rows: pd.DataFrame, name: str) -> _Scale:
    if _numeric(rows[name]):
        return _Scale(name, checks.numbers(rows, name))
    held = settings.values(rows[name])
    categories = tuple(sorted(held.unique(), key=_order))
    return _Scale(name, held.map({value: i for i, value in enumerate(categories)}).to_numpy(np.float64), categories)


def _order(value: Hashable) -> tuple[int, float, str]:
    """Numbers by size, then words by the alphabet, then what is missing."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return (2 if value == settings.MISSING else 1), 0.0, str(value)


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Runs of one hue and how they are drawn; `mine` says which rows, None all."""

    mine: np.ndarray | None
    color: str
    marker: str
    label: str | None

    def rows(self, count: int) -> np.ndarray:
        return np.ones(count, dtype=bool) if self.mine is None else self.mine


@dataclasses.dataclass(frozen=True, eq=False)
class _Colouring:
    """The groups of a hue, and what says which is which: a legend, or a bar of `shade` where they are many."""

    groups: tuple[_Group, ...]
    label: str
    shade: cm.ScalarMappable | None = None

    def key(self, fig: figure.Figure, panel: mpl_axes.Axes) -> None:
        if self.shade is not None and isinstance(self.shade.norm, colors.LogNorm):
            axes.colorbar(fig, panel, self.shade, self.label)
        elif self.shade is not None:
            bar = fig.colorbar(self.shade, ax=panel, pad=0.02, aspect=28)
            bar.set_label(self.label)
            bar.outline.set_visible(False)
        if panel.get_legend_handles_labels()[1]:
            title = None if self.shade else self.label
            panel.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left")


ALIKE = _Colouring((_Group(None, axes.INK, MARKERS[0], None),), "")


def _colouring(scale: _Scale) -> _Colouring:
    """A colour for each value: over many numbers by their size, else evenly in their order; grey for a missing one."""
    values = np.unique(scale.positions[~np.isnan(scale.positions)])
    if not scale.categories and len(values) > FEW:
        shade = _shade(values, logarithmic=True)
        groups = [_Group(scale.positions == value, _hex(shade, value), MARKERS[0], None) for value in values]
    else:
        shade, groups = None, _few(scale, values)
    if (unknown := np.isnan(scale.positions)).any():
        groups.append(_Group(unknown, axes.FAINT, MARKERS[1], settings.MISSING))
    return _Colouring(tuple(groups), scale.label, shade)


def _few(scale: _Scale, values: np.ndarray) -> list[_Group]:
    """Groups that a legend names, categories with a marker each; sorted, the missing one comes last."""
    names = [str(name) for name in scale.categories] or [_number(float(value), scale.name) for value in values]
    shade = _shade(np.arange(max(1, sum(name != settings.MISSING for name in names))), logarithmic=False)
    groups = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        color = axes.FAINT if name == settings.MISSING else _hex(shade, i)
        marker = MARKERS[i % len(MARKERS)] if scale.categories else MARKERS[0]
        groups.append(_Group(scale.positions == value, color, marker, name))
    return groups


def _hex(shade: cm.ScalarMappable, value: float) -> str:
    return colors.to_hex(shade.to_rgba(np.array([value]))[0])


def _shade(values: np.ndarray, logarithmic: bool) -> cm.ScalarMappable:
    """Colours over numbers, by their logarithms where asked for and all are positive."""
    low, high = float(values.min()), float(values.max())
    if logarithmic and low > 0:
        return axes.shades(values)
    return cm.ScalarMappable(colors.Normalize(low, high if high > low else low + 1.0), axes.PALETTE)


def _group(panel: mpl_axes.Axes, group: _Group, at: np.ndarray, measured: np.ndarray, se: np.ndarray) -> None:
    """All points with their standard errors, and the line through the means of those at one place."""
    if (there := np.isfinite(se)).any():
        panel.errorbar(at[there], measured[there], yerr=se[there], fmt="none", ecolor=group.color, elinewidth=1,
                       capsize=2.5, zorder=2)  # fmt: skip
    panel.scatter(at, measured, color=group.color, marker=group.marker, s=26, lw=0.4, edgecolor="white", zorder=3,
                  label=group.label)  # fmt: skip
    means = pd.Series(measured).groupby(at).mean()
    panel.plot(means.index, means, color=group.color, lw=1.2, zorder=2)


def _across(panel: mpl_axes.Axes, scale: _Scale) -> None:
    """The x axis: names of categories, or numbers, on a log scale where they span more than a decade."""
    panel.set_xlabel(scale.label)
    if scale.categories:
        names = [str(value) for value in scale.categories]
        slanted = sum(len(name) + 2 for name in names) > CROWDED
        panel.set_xticks(range(len(names)), names, rotation=25 if slanted else 0, ha="right" if slanted else "center")
        panel.set_xlim(-0.5, len(names) - 0.5)
        return
    values = np.unique(scale.positions)
    positive = values[values > 0]
    if len(positive) and values[0] >= 0 and positive[-1] > DECADE * positive[0]:
        if values[0] > 0:
            axes.logarithmic(panel, "x", values, flops=_is_flops(scale.name))
        else:
            _from_zero(panel, positive)
    if len(values) <= TICKED:
        panel.xaxis.set_major_locator(ticker.FixedLocator(values.tolist()))
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _number(value, scale.name)))


def _from_zero(panel: mpl_axes.Axes, positive: np.ndarray) -> None:
    """A log axis with a place for zero: straight from there to the least positive value."""
    panel.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.6)
    panel.set_xlim(-0.25 * positive[0], positive[-1] * 1.3)
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))


def _up(panel: mpl_axes.Axes, name: str, values: np.ndarray, se: np.ndarray) -> None:
    panel.set_ylabel(labelled(name))
    ends = np.concatenate([values, values - np.nan_to_num(se), values + np.nan_to_num(se)])
    if values.min() > 0 and values.max() > DECADE * values.min():
        axes.logarithmic(panel, "y", ends[ends > 0], flops=_is_flops(name))


def _is_flops(name: str) -> bool:
    return name.startswith("flops")


def _number(value: float, name: str) -> str:
    """A value on an axis or in a legend: FLOPs as powers of ten, large counts short, others as they are."""
    if value > 0 and _is_flops(name):
        return axes.power(value)
    return axes.human(value) if value >= 1e4 else f"{value:.4g}"
