"""Figures from results: every function takes runs or a result, fits nothing, and returns a matplotlib Figure.

`columns` draws one column of runs against another, `predictions` what larger runs will reach, `sweeps` the runs of a
sweep and their frontier, `results` fits, profiles, back-tests, forecasts and designs of any law. `save` writes .png,
.svg or .pdf.
"""

from analysis.plots.columns import metric
from analysis.plots.drawing import LOSS, save
from analysis.plots.predictions import prediction
from analysis.plots.results import backtest, curve, forecast, profiles, residuals
from analysis.plots.sweeps import fitted, isoflop, loss_compute, loss_params

__all__ = [
    "LOSS",
    "backtest",
    "curve",
    "fitted",
    "forecast",
    "isoflop",
    "loss_compute",
    "loss_params",
    "metric",
    "prediction",
    "profiles",
    "residuals",
    "save",
]
