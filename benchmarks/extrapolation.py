"""Forecasts of learning curves against laws fitted to the same points: the language tasks of Alabdulmohsin et al. 2022.

    python -m benchmarks.extrapolation

20 curves (arXiv 2209.06640; translation NMT, language models LM, BIG-Bench BB), fitted on split = fit and scored on
split = extrapolate, up to about twice as far: sqrt(mean (log predicted − log measured)²) by curve. The laws are ours,
fitted by squares of log y, which is the score; the forecast has one setting for all curves, chosen on split = fit.
With --planted, also how often the 95% intervals hold on curves that are made from known laws, twice and ten times as
far as the last point.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import tyro

from analysis import datasets, errors, fitting, forecasting

LAWS = ("m1", "m2", "m3", "m4", "broken1")
# Root mean squared log errors that the paper's estimators reached: the best of M1 to M4 in each column (the mean over
# curves is M4's, the median M3's), Alabdulmohsin et al. 2022, arXiv 2209.06640, tables of the language tasks.
PUBLISHED = {"NMT": 0.0208, "LM": 0.0009, "BB": 0.0087, "mean": 0.0116, "median": 0.0062}
LEVEL = 0.95
TRUTHS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "power (M1)": lambda x: 9.0 * x**-0.12,
    "offset (M2)": lambda x: 1.8 + 40.0 * x**-0.25,
    "saturating (M3)": lambda x: 60.0 * (1 / x + 1e-8) ** 0.3,
    "late start (M4, α = 1)": lambda x: 0.2 + 0.8 / (1 + (x / 2e7) ** 0.4),
    "broken once": lambda x: 0.5 + 30.0 * x**-0.2 * (1 + (x / 3e7) ** (1 / 0.3)) ** (0.12 * 0.3),
}  # x from 1e6: all fall, bend inside the curve or after it, and keep falling
NOISES = (0.0, 0.002, 0.01)
POINTS = (10, 16, 40)
REACH = (2.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    planted: int = 0
    """Curves a law, noise and number of points; none: the public curves alone."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Score:
    """One method on one curve."""

    error: float
    covered: float = np.nan
    width: float = np.nan
    seconds: float = np.nan
    backtested: float = np.nan


def score(curve: pd.DataFrame, law: str) -> Score:
    """The error of a law fitted to the curve's first split, or of the forecast with its intervals, on its second."""
    first, second = (curve[curve["split"] == split] for split in ("fit", "extrapolate"))
    measured, start = second["loss"].to_numpy(), time.process_time()
    if law != "forecast":
        fit = fitting.fit(law, first[["seen", "loss"]], objective="squared", x="seen")
        return Score(rmsle(fit.predict(second), measured), seconds=time.process_time() - start)
    forecast = forecasting.forecast(first)
    seconds = time.process_time() - start
    low, high = forecast.predict_interval(second, LEVEL)
    inside = (low <= measured) & (measured <= high)
    error = rmsle(forecast.predict(second), measured)
    return Score(error, float(inside.mean()), float(np.log(high / low).mean() / 2), seconds, forecast.error)


def rmsle(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(predicted / measured) ** 2)))


def public() -> pd.DataFrame:
    """A row a curve and method: what `score` found."""
    table, rows = datasets.load("alabdulmohsin2022"), []
    for key, curve in table.groupby(["domain", "task", "model"], sort=False):
        for law in (*LAWS, "forecast"):
            rows.append({"domain": key[0], "curve": key, "method": law, **dataclasses.asdict(score(curve, law))})
    return pd.DataFrame(rows)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean error by domain, mean and median over curves, a row a method, and the numbers to beat."""
    by = scores.groupby(["method", "domain"])["error"].mean().unstack()
    over = scores.groupby("method")["error"]
    table = by[["NMT", "LM", "BB"]].assign(mean=over.mean(), median=over.median())
    table["CPU s, median"] = scores.groupby("method")["seconds"].median()
    return pd.concat([table.loc[[*LAWS, "forecast"]], pd.DataFrame({"published, best": PUBLISHED}).T])


def planted(count: int, seed: int) -> Iterator[dict[str, float | str]]:
    """How the intervals hold on made curves: a row a curve."""
    rng = np.random.default_rng(seed)
    for law, truth in TRUTHS.items():
        for noise in NOISES:
            for points in POINTS:
                for _ in range(count):
                    x = np.geomspace(1e6, 3e8, points)
                    far = x[-1] * np.array(REACH)
                    exact = truth(np.concatenate([x, far]))
                    y = exact * np.exp(noise * rng.normal(size=len(exact)))
                    forecast = forecasting.forecast(pd.DataFrame({"seen": x, "loss": y[:points]}))
                    low, high = forecast.predict_interval({"seen": far}, LEVEL)
                    predicted = forecast.predict({"seen": far})
                    for i, reach in enumerate(REACH):
                        yield {
                            "law": law,
                            "noise": noise,
                            "points": points,
                            "reach": reach,
                            "error": float(abs(np.log(predicted[i] / exact[points + i]))),
                            "covered": float(low[i] <= y[points + i] <= high[i]),
                            "half width": float(np.log(high[i] / low[i]) / 2),
                        }


def main(settings: Settings) -> None:
    if settings.planted < 0:
        raise errors.Refused(f"planted = {settings.planted}: must be 0 or more curves")
    scores = public()
    print("sqrt(mean (log predicted − log measured)²) beyond the fitted points, mean over the curves of a domain")
    print(summary(scores).to_string(float_format="{:.4f}".format, na_rep=""))
    ours = scores[scores["method"] == "forecast"]
    first, warm = ours["seconds"].iloc[0], ours["seconds"].iloc[1:]
    print(f"forecast: CPU seconds {first:.1f} for the first curve, {warm.median():.1f} for a later one")
    held = ours.groupby("domain")[["covered", "width", "error", "backtested"]].mean().loc[["NMT", "LM", "BB"]]
    held.loc["mean over curves"] = ours[["covered", "width", "error", "backtested"]].mean()
    names = {"covered": "95% interval holds", "width": "half width", "backtested": "error in back-tests"}
    print(held.rename(columns=names).to_string(float_format="{:.4f}".format))
    if settings.planted:
        curves = pd.DataFrame(planted(settings.planted, settings.seed))
        for by in (["reach", "law"], ["reach", "noise"], ["reach", "points"], ["reach"]):
            print(curves.groupby(by)[["covered", "half width", "error"]].mean().to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main(tyro.cli(Settings))
