"""Figures of predictions beyond the runs that there are."""

import numpy as np
import pandas as pd
from matplotlib import figure

from analysis import axes, checks
from analysis import prediction as combined
from analysis.plots.drawing import LOSS, band, styled

POINTS = 40


@styled
def prediction(
    frame: pd.DataFrame, predictor: combined.Predictor, *, loss: str = "loss", flops: str = "flops"
) -> figure.Figure:
    """Losses at the best sizes for a budget by the laws together, their interval for a new run, and each law alone."""
    runs = checks.runs(frame).frame
    c, y = (checks.column(runs, name, "the figure") for name in (flops, loss))
    at = np.geomspace(c.min(), combined.FAR * predictor.largest, POINTS)
    best = predictor.predict({"flops": at})
    fig, (panel,) = axes.new(1, 6.4, 4.2)
    panel.plot(at, best.members.to_numpy(), color="0.6", lw=0.7, zorder=1)
    panel.plot([], [], color="0.6", lw=0.7, label="each law")
    panel.plot(at, best.value, color=axes.ACCENT, zorder=3, label="mean of the laws, at the best sizes")
    band(panel, at, np.stack([best.low, best.high], axis=-1))
    panel.plot([], [], color=axes.ACCENT, lw=6, alpha=0.18, label=f"{100 * best.level:g}% of new runs")
    panel.scatter(c, y, color="0.25", s=14, lw=0.4, edgecolor="white", zorder=4, label="runs, final loss")
    panel.axvline(predictor.largest, color="0.5", lw=0.8, ls=":", zorder=0, label="largest run")
    axes.logarithmic(panel, "x", np.concatenate([c, at[-1:]]), flops=True)
    axes.log_loss(panel, np.concatenate([y, best.low[-1:]]))
    panel.set(xlabel="training compute (FLOPs)", ylabel=LOSS)
    panel.legend(loc="upper right")
    return fig
