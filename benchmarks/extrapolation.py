"""Forecasts of learning curves against laws fitted to the same points: the language tasks of Alabdulmohsin et al. 2022.

    python -m benchmarks.extrapolation

20 curves (arXiv 2209.06640; translation NMT, language models LM, BIG-Bench BB), fitted on split = fit and scored on
split = extrapolate, up to about twice as far: sqrt(mean (log predicted − log measured)²) by curve. The laws are ours,
fitted by squares of log y, which is the score; the forecast has one setting for all curves, chosen on split = fit.
With --planted, also how often the 95% intervals hold on curves that are made from known laws, twice and ten times as
far as the last point.

    python -m benchmarks.extrapolation --far [--choose]

The far end of every public curve, by rule: the points of at most 1/2, 1/3 and 1/10 of the largest x are fitted where
they have `forecasting.POINTS` different x, and the last point is predicted. The curves are those above; of every fourth
run of Clark et al. 2022 one of its six losses, in turn; the least loss at each budget of Porian et al. 2024; the loss
over tokens at each size of Farseer's runs; beside them, and never chosen on, planted error rates that saturate as those
of image classifiers do. Error = |log(predicted / measured)| in %, half-width the interval's in log y, interval score
(high − low + 40 · distance of a measurement outside) / measured in %. Curves that are not monotone (Nakkiran et al.
2020) are not scored: the number of them with a warning is printed. With --choose, what else `forecasting.FORM` gives.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

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
CUTS = (1 / 2, 1 / 3, 1 / 10)
CLARK = ("loss", "loss_c4", "loss_curation_corpus", "loss_lambada", "loss_pile_europarl", "loss_wikitext103")
EVERY = 4  # of the runs of Clark et al.
CONFIGURATION = ["dataset", "hparams", "warmup", "decay", "param_count", "loss_kind"]  # of Porian et al.
FORMS = (0.0, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2)
IMAGES = (50_000, 10_000, 2_000)  # in the test set of a planted classifier


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    planted: int = 0
    """Curves a law, noise and number of points; none: the public curves alone."""
    seed: int = 0
    far: bool = False
    """Score the far end of every shown curve, instead of the 20 curves as their authors split them."""
    choose: bool = False
    """With `far`, compare the interval's constants, over all sources and with each left out in turn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A curve up to `cut` times its largest x, and its last point."""

    source: str
    curve: str
    cut: float
    points: pd.DataFrame
    far: float
    measured: float


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


def curves() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The source, the name and the points x, y of every curve that is scored at its far end."""
    for key, rows in datasets.load("alabdulmohsin2022").groupby(["domain", "task", "model"], sort=False):
        yield str(key[0]), " ".join(map(str, key)), _points(rows, "seen", "loss")
    for i, (run, rows) in enumerate(list(datasets.load("clark2022_curves").groupby("run"))[::EVERY]):
        loss = CLARK[i % len(CLARK)]
        yield "clark2022", f"{run} {loss}", _points(rows[rows["step"] > 0], "step", loss)
    for key, rows in datasets.load("porian2024_optimal").groupby(CONFIGURATION):
        yield "porian2024", " ".join(map(str, key)), _points(rows, "flops", "loss")
    for params, rows in datasets.load("scalebench_farseer").groupby("params"):
        yield "farseer", f"{params:g}", _points(rows, "tokens", "loss")


def _points(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    return rows[[x, y]].dropna().set_axis(["x", "y"], axis=1).astype(np.float64).sort_values("x", ignore_index=True)


def classifiers(count: int, seed: int) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Planted error rates over examples seen: from chance to a floor, y = floor + (top − floor) / (1 + (x / x0)^c).

    Counted on test sets of `IMAGES`; in every second curve neighbouring points share most of their deviation
    (correlation 0.8), as evaluations of one run do.
    """
    rng = np.random.default_rng(seed)
    for i in range(count):
        size, correlation = (12, 24, 60)[i % 3], (0.0, 0.8)[i % 2]
        x = np.geomspace(1e6, 1e9, size) if i % 4 < 2 else np.linspace(1e9 / size, 1e9, size)
        floor, c, x0, top = rng.uniform(0.0, 0.4), rng.uniform(0.25, 0.8), 10 ** rng.uniform(5, 7.5), 0.99
        exact = floor + (top - floor) / (1 + (x / x0) ** c)
        deviation = rng.normal(size=size)
        for j in range(1, size):
            deviation[j] = correlation * deviation[j - 1] + np.sqrt(1 - correlation**2) * deviation[j]
        images = IMAGES[i // 3 % len(IMAGES)]
        y = exact + np.sqrt(exact * (1 - exact) / images) * deviation
        yield "planted error rates", str(i), pd.DataFrame({"x": x, "y": y})


def cases(of: Iterable[tuple[str, str, pd.DataFrame]]) -> Iterator[Case]:
    for source, curve, points in of:
        far = points["x"].max()
        measured = float(points.loc[points["x"] == far, "y"].mean())
        for cut in CUTS:
            below = points[points["x"] <= cut * far * (1 + 1e-9)]
            if below["x"].nunique() >= forecasting.POINTS:
                yield Case(source, curve, cut, below, far, measured)


def forecasts(of: Iterable[Case]) -> tuple[list[tuple[Case, forecasting.Forecast]], pd.Series]:
    """The forecast of each case, and how many of each source are refused."""
    kept: list[tuple[Case, forecasting.Forecast]] = []
    refused: collections.Counter[tuple[str, int]] = collections.Counter()
    for case in of:
        try:
            kept.append((case, forecasting.forecast(case.points, "x", "y")))
        except errors.Refused:
            refused[case.source, round(1 / case.cut)] += 1
    return kept, pd.Series(refused, dtype=int)


def scored(of: Iterable[tuple[Case, forecasting.Forecast]]) -> pd.DataFrame:
    """A row a case: the error at its far end and the interval's score, in %."""
    rows = []
    for case, forecast in of:
        at = {"x": [case.far]}
        value, (low, high) = forecast.predict(at)[0], (side[0] for side in forecast.predict_interval(at, LEVEL))
        outside = max(low - case.measured, case.measured - high, 0.0)
        rows.append(
            {
                "source": case.source,
                "factor": round(1 / case.cut),
                "error": 100 * abs(np.log(value / case.measured)),
                "inside": 100.0 * (outside == 0),
                "half-width": 50 * np.log(high / low),
                "score": 100 * (high - low + 2 / (1 - LEVEL) * outside) / case.measured,
            }
        )
    return pd.DataFrame(rows)


def over(table: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """Cases, median error, share inside, median half-width and mean interval score of each group."""
    columns = {
        "cases": ("error", "size"),
        "error": ("error", "median"),
        "inside": ("inside", "mean"),
        "half-width": ("half-width", "median"),
        "score": ("score", "mean"),
    }
    return table.groupby(by, sort=False).agg(**columns)


def far(seed: int) -> list[tuple[Case, forecasting.Forecast]]:
    """The scores at the far ends, printed; the forecasts of the shown curves."""
    shown, planted_ones = (forecasts(cases(of)) for of in (curves(), classifiers(36, seed)))
    for kept, refused in (shown, planted_ones):
        table = scored(kept)
        print(over(table, ["source", "factor"]).to_string(float_format="{:.2f}".format))
        print(over(table, "factor").to_string(float_format="{:.2f}".format))
        print(f"all: {len(table)} cases, refused {refused.to_dict() or 0}, error {table['error'].median():.2f}%, "
              f"inside {table['inside'].mean():.1f}%, half-width {table['half-width'].median():.2f}%, interval score "
              f"{by_source(table):.1f}% over sources\n")  # fmt: skip
    turning = datasets.load("nakkiran2020").groupby("series")
    warned = [bool(forecasting.forecast(rows, "x", "y").warnings) for _, rows in turning]
    print(f"not monotone: {sum(warned)} of {len(warned)} curves with a warning")
    return shown[0]


def by_source(table: pd.DataFrame) -> float:
    return float(table.groupby("source")["score"].mean().mean())


def choose(of: list[tuple[Case, forecasting.Forecast]]) -> None:
    """`forecasting.FORM` of the least interval score, over all sources and with each left out in turn."""
    tables = {}
    for forecasting.FORM in FORMS:
        tables[forecasting.FORM] = scored(of)
    rows = {form: {**over(table, "source")["inside"], "score": by_source(table)} for form, table in tables.items()}
    print(pd.DataFrame(rows).T.to_string(float_format="{:.2f}".format))
    parts = []
    source = next(iter(tables.values()))["source"]  # the same rows in every table
    for left_out in sorted(source.unique()):
        others = source != left_out
        score = {form: by_source(table[others]) for form, table in tables.items()}
        best = min(FORMS, key=score.__getitem__)
        parts.append(tables[best][~others])
        print(f"without {left_out}: {best}, inside there {parts[-1]['inside'].mean():.1f}%")
    whole = pd.concat(parts)
    print(f"left out in turn: inside {whole['inside'].mean():.1f}%, interval score {by_source(whole):.1f}%")


def main(settings: Settings) -> None:
    if settings.planted < 0:
        raise errors.Refused(f"planted = {settings.planted}: must be 0 or more curves")
    if settings.choose and not settings.far:
        raise errors.Refused("choose compares the interval's constants at far ends: pass --far with it")
    if settings.far:
        shown = far(settings.seed)
        if settings.choose:
            choose(shown)
        return
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
