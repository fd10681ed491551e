"""Fit things: laws, fits with intervals, compute-optimal frontiers, back-tests, forecasts, figures and reports.

Takes pandas DataFrames only (columns of a run's record, see the README) and never imports models or training code;
of `scaling` it may import `scaling.store.store` and `scaling.counting`. Who may import it: `scaling.cli`,
`experiments`, people's scripts. Modules are named so that none has the name of a public function: `analysis.fit` is
the function, `analysis.fitting` its module. Nothing here is imported before it is used, so that `import analysis` is
quick and starts no JAX backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import datasets as datasets
    from analysis import plots as plots
    from analysis import report as report
    from analysis.backtests import Backtest as Backtest
    from analysis.backtests import backtest as backtest
    from analysis.comparison import compare as compare
    from analysis.conventions import approaches as approaches
    from analysis.design import next_runs as next_runs
    from analysis.errors import Refused as Refused
    from analysis.extrapolation import extrapolate as extrapolate
    from analysis.fitting import Fit as Fit
    from analysis.fitting import fit as fit
    from analysis.fitting import load as load
    from analysis.forecasting import forecast as forecast
    from analysis.forms import Law as Law
    from analysis.forms import Parameter as Parameter
    from analysis.forms import law as law
    from analysis.frontiers import frontier as frontier
    from analysis.laws import LAWS as LAWS
    from analysis.metrics import downstream as downstream
    from analysis.noise import seed_noise as seed_noise
    from analysis.prediction import predict as predict
    from analysis.prediction import predictor as predictor
    from analysis.tables import read_csv as read_csv
    from analysis.trends import doubling_time as doubling_time

_HOMES = {
    "approaches": "conventions",
    "Backtest": "backtests",
    "backtest": "backtests",
    "compare": "comparison",
    "Refused": "errors",
    "doubling_time": "trends",
    "downstream": "metrics",
    "extrapolate": "extrapolation",
    "Fit": "fitting",
    "forecast": "forecasting",
    "next_runs": "design",
    "fit": "fitting",
    "load": "fitting",
    "frontier": "frontiers",
    "LAWS": "laws",
    "Law": "forms",
    "Parameter": "forms",
    "law": "forms",
    "seed_noise": "noise",
    "predict": "prediction",
    "predictor": "prediction",
    "read_csv": "tables",
}
_MODULES = ("datasets", "plots", "report")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"analysis.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"analysis.{name}")
    raise AttributeError(f"module 'analysis' has no attribute {name!r}; it has {', '.join(__all__)}")
