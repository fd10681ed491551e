"""How every figure looks: type sizes, colours that colour-blind readers can tell apart, log axes in human units."""

import contextlib
import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import axes, cm, colors, figure, ticker

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "mathtext.default": "regular",
}
ACCENT = "#d1495b"
INK = "#30343f"
FAINT = "#9aa0a6"
PALETTE = colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.9, 256)))  # no yellow too light on white


def style() -> contextlib.AbstractContextManager[None]:
    """The project's style while inside, and only then."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]  # stubs want literal keys


def new(columns: int, width: float = 4.6, height: float = 3.7) -> tuple[figure.Figure, list[axes.Axes]]:
    """A figure with one row of panels, drawn without any window or global state."""
    fig = figure.Figure(figsize=(width * columns, height), layout="constrained")
    return fig, [fig.add_subplot(1, columns, i + 1) for i in range(columns)]


def human(value: float) -> str:
    """A count as people say it: 27k, 1.5M, 70B; powers of ten beyond the trillions."""
    if value <= 0:
        return "0"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{suffix}" if value < 1e15 else power(value)
    return f"{value:.3g}"


def power(value: float) -> str:
    """A number as mantissa and power of ten: 3×10¹⁸."""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10**exponent
    front = "" if abs(mantissa - 1) < 0.005 else f"{mantissa:.2g}×"
    return f"${front}10^{{{exponent}}}$".replace("×", r"\times ")


def log_axis(axis: Any, low: float, high: float, *, flops: bool = False) -> None:
    """A log axis with about three to seven labelled ticks, in human units or, for FLOPs, powers of ten."""
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 2.6 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8 if decades > 8 else 20))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: power(v) if flops else human(v)))
    axis.set_minor_formatter(ticker.NullFormatter())


def logarithmic(panel: axes.Axes, which: str, values: np.ndarray, *, flops: bool = False, pad: float = 0.06) -> None:
    """Put x or y of a panel on a log scale around positive finite `values`."""
    values = values[np.isfinite(values) & (values > 0)]
    low, high = float(values.min()), float(values.max())
    margin = max((high / low) ** pad, 1.02)
    low, high = low / margin, high * margin
    if which == "x":
        panel.set_xscale("log")
        panel.set_xlim(low, high)
        log_axis(panel.xaxis, low, high, flops=flops)
    else:
        panel.set_yscale("log")
        panel.set_ylim(low, high)
        log_axis(panel.yaxis, low, high, flops=flops)


def log_loss(panel: axes.Axes, values: np.ndarray) -> None:
    """A log axis of losses, labelled at round losses, which span less than a decade."""
    low, high = float(values.min()), float(values.max())
    margin = (high / low) ** 0.06
    panel.set_yscale("log")
    panel.set_ylim(low / margin, high * margin)
    ticks = ticker.MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]).tick_values(low / margin, high * margin)
    panel.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    decimals = max(len(f"{tick:.4g}".partition(".")[2]) for tick in ticks)
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter(f"%.{decimals}f"))
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def shades(values: np.ndarray) -> cm.ScalarMappable:
    """Colours over the logarithm of `values`."""
    low, high = float(values.min()), float(values.max())
    if high <= low * 1.0001:
        low, high = low / 1.5, high * 1.5
    return cm.ScalarMappable(colors.LogNorm(low, high), PALETTE)


def colorbar(
    fig: figure.Figure, panel: axes.Axes, shade: cm.ScalarMappable, label: str, at: np.ndarray | None = None
) -> None:
    """A colour bar with ticks `at` the values themselves where there are few, else as on a log axis."""
    bar = fig.colorbar(shade, ax=panel, pad=0.02, aspect=28)
    low, high = (float(np.asarray(limit)) for limit in shade.get_clim())
    log_axis(bar.ax.yaxis, low, high, flops="FLOP" in label)
    if at is not None and len(at) <= 8:
        bar.ax.yaxis.set_major_locator(ticker.FixedLocator(at.tolist()))
    bar.set_label(label)
    bar.outline.set_visible(False)
