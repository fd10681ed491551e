"""How often intervals hold what they should: fits of planted laws, by grid of runs, by noise, by method.

    python -m benchmarks.calibration --replicas 1000

The law is Hoffmann's with the constants of Besiroglu et al. 2024 (arXiv 2404.10102), the noise log-normal (or Student's
t of 3 degrees of freedom on log L, with --tails). A replica is one sweep, fitted by `analysis.fit`; counted is how many
95% intervals hold the true α and β, the law's loss at the compute-optimal point of 10 times the largest compute, and
the loss of a new run there. Widths are medians over replicas; those of losses are relative.

The grids: six budgets from 1e18 to 1e21 FLOPs of seven sizes from 1/4 to 4 times the best; a rectangle of six sizes
from 5e7 to 5e9 by six token counts from 1e9 to 1e11; and 60 of the 240 runs of Besiroglu et al., drawn once, which lie
along a narrow band of tokens per parameter. Fits start from the truth; --checked of each cell are fitted from all
starts too, and the share that agrees is printed.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import scipy.stats
import tyro

import analysis
from analysis import datasets, diagnostics, errors, fitting, laws, solver, uncertainty

LAW = {"E": 1.81722, "A": 477.83, "B": 2143.4, "alpha": 0.34731, "beta": 0.36717}
NOISES = (0.001, 0.005, 0.02)
LEVEL = 0.95
REACH = 10.0
ASKED = ("alpha", "beta", "loss", "new run")
HEAVY = 3  # degrees of freedom of Student's t: the fewest with a variance

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    replicas: int = 1000
    """Sweeps a cell."""
    resamples: int = 200
    """Of the runs of each sweep."""
    profiled: int = 200
    """Replicas of a cell whose profiles are taken."""
    checked: int = 20
    """Replicas of a cell that are fitted from all starts too."""
    grids: tuple[str, ...] = ("isoflop", "rectangle", "scattered")
    noises: tuple[float, ...] = NOISES
    tails: bool = False
    """Noise of Student's t instead of the normal distribution, of the same variance."""
    seed: int = 0


def optimum(flops: float) -> tuple[float, float]:
    """N and D at the least loss for `flops` = 6ND (Hoffmann et al. 2022, arXiv 2203.15556, eq. 4)."""
    alpha, beta = LAW["alpha"], LAW["beta"]
    params = (alpha * LAW["A"] / (beta * LAW["B"]) * (flops / 6) ** beta) ** (1 / (alpha + beta))
    return params, flops / 6 / params


def grid(name: str) -> pd.DataFrame:
    """The inputs of one sweep."""
    if name == "isoflop":
        runs = [(optimum(c)[0] * w, c) for c in np.geomspace(1e18, 1e21, 6) for w in np.geomspace(0.25, 4, 7)]
        params, flops = np.array(runs).T
        return pd.DataFrame({"params": params, "tokens": flops / 6 / params})
    if name == "rectangle":
        params, tokens = np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 6))
        return pd.DataFrame({"params": params.ravel(), "tokens": tokens.ravel()})
    if name == "scattered":
        table = datasets.load("besiroglu2024")
        table = table[table["excluded_in_published_fit"] == 0]
        drawn = np.random.default_rng(0).choice(len(table), 60, replace=False)
        return table.iloc[drawn][["params", "tokens"]].reset_index(drop=True)
    raise ValueError(f"grid {name!r} is unknown; choose among {', '.join(Settings.grids)}")


def beyond(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """The compute-optimal point of 10 times the largest compute."""
    params, tokens = optimum(REACH * 6 * float((runs["params"] * runs["tokens"]).max()))
    return {"params": np.array([params]), "tokens": np.array([tokens])}


def noise(rng: np.random.Generator, count: int, tails: bool) -> np.ndarray:
    """Errors of variance one."""
    return rng.standard_t(HEAVY, count) / np.sqrt(HEAVY / (HEAVY - 2)) if tails else rng.normal(size=count)


def resampled(
    fit: fitting.Fit, at: Mapping[str, np.ndarray], resamples: int, seed: int
) -> dict[tuple[str, str], Interval]:
    """The intervals that resampling the runs gives, by method and what is asked; "corrected" is the library's."""
    boot = fit.bootstrap(resamples, seed)
    draws = {name: boot.samples[name].to_numpy() for name in ("alpha", "beta")}
    draws["loss"] = np.log(boot.predictions(at)[:, 0])
    value = {**fit.params, "loss": float(np.log(fit.predict(at)[0]))}
    quantile = scipy.stats.t.ppf((1 + LEVEL) / 2, len(fit.runs) - len(fit.params))
    intervals: dict[tuple[str, str], Interval] = {}
    for name, samples in draws.items():
        low, high = (float(end) for end in uncertainty.percentiles(samples, LEVEL))
        half = quantile * float(samples.std())
        intervals["percentile", name] = low, high
        intervals["basic", name] = 2 * value[name] - high, 2 * value[name] - low
        intervals["resampled se", name] = value[name] - half, value[name] + half
    for name in ("alpha", "beta"):
        intervals["corrected", name] = boot.interval(name, LEVEL)
    for name, noisy in (("loss", False), ("new run", True)):
        low, high = boot.predict_interval(at, LEVEL, noise=noisy)
        intervals["corrected", name] = float(np.log(low[0])), float(np.log(high[0]))
    return intervals


def analytic(fit: fitting.Fit, at: Mapping[str, np.ndarray]) -> dict[tuple[str, str], Interval]:
    """Intervals from standard errors: the diagnostics' sandwich, and the form that assumes equal scatter."""
    diagnosed, theta = fit.diagnostics, solver.coordinates(fit.law, fit.params)[0]
    there = diagnostics.jacobian(fit, solver.points(at, np.ones(1)), theta)[0]
    directions = {name: np.eye(len(theta))[fit.law.names.index(name)] for name in ("alpha", "beta")}
    quantile = scipy.stats.t.ppf((1 + LEVEL) / 2, len(fit.runs) - len(fit.params))
    value = {**fit.params, "loss": float(np.log(fit.predict(at)[0]))}
    intervals: dict[tuple[str, str], Interval] = {}
    for name, along in {**directions, "loss": there}.items():
        for method, covariance in (("sandwich", diagnosed.covariance), ("equal scatter", diagnosed.equal_scatter)):
            half = quantile * float(np.sqrt(along @ covariance @ along))
            intervals[method, name] = value[name] - half, value[name] + half
    return intervals


def profiled(fit: fitting.Fit) -> dict[tuple[str, str], Interval]:
    return {("profile", name): fit.profile(name, LEVEL).interval for name in ("alpha", "beta")}


def cell(name: str, sd: float, settings: Settings) -> tuple[pd.DataFrame, str]:
    """Coverage and width by method and what is asked, and a line about the fits."""
    runs, start = grid(name), time.process_time()
    at = beyond(runs)
    exact = np.asarray(laws.get("hoffmann")({k: runs[k].to_numpy() for k in runs}, LAW))
    truth = {**LAW, "loss": float(np.log(laws.get("hoffmann")(at, LAW)[0]))}
    rows, agree, converged, refused = [], 0, 0, 0
    for replica in range(settings.replicas):
        rng = np.random.default_rng([settings.seed, round(1e6 * sd), replica])
        frame = runs.assign(loss=exact * np.exp(sd * noise(rng, len(runs), settings.tails)))
        asked = {**truth, "new run": truth["loss"] + sd * float(noise(rng, 1, settings.tails)[0])}
        fit = analysis.fit("hoffmann", frame, start=LAW)
        converged += fit.status == "converged"
        try:
            intervals = resampled(fit, at, settings.resamples, replica) | analytic(fit, at)
        except errors.Refused:
            refused += 1
            continue
        if replica < settings.profiled:
            intervals |= profiled(fit)
        if replica < settings.checked:
            agree += analysis.fit("hoffmann", frame).objective >= fit.objective * (1 - 1e-6)
        rows += [(*key, low <= asked[key[1]] <= high, high - low) for key, (low, high) in intervals.items()]
    table = pd.DataFrame(rows, columns=["method", "asked", "cover", "width"])
    grouped = table.groupby(["method", "asked"], sort=False).agg({"cover": "mean", "width": "median"})
    checked = min(settings.checked, settings.replicas)
    line = (
        f"{name}, noise {sd:g}: {len(runs)} runs, {settings.replicas} replicas, {converged / settings.replicas:.1%} "
        f"converged, {refused} refused intervals, {agree} of {checked} at the best of all starts, "
        f"{time.process_time() - start:.0f} CPU s"
    )
    return grouped, line


def lines(table: pd.DataFrame) -> Iterator[str]:
    """One line a method: coverage (median width) of each thing asked."""
    for method in dict.fromkeys(table.index.get_level_values("method")):
        shown = []
        for name in ASKED:
            known = (method, name) in table.index
            row = table.loc[(method, name)] if known else None
            shown.append(f"{row['cover']:6.1%} ({row['width']:.4f})" if row is not None else " " * 15)
        yield f"  {method:14}" + "  ".join(shown)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {settings}", flush=True)
    print(" " * 16 + "  ".join(f"{name:15}" for name in ASKED))
    cells = []
    for name in settings.grids:
        for sd in settings.noises:
            table, line = cell(name, sd, settings)
            print(line, *lines(table), sep="\n", flush=True)
            cells.append(table["cover"])
    print("over all cells: least and most coverage")
    together = pd.concat(cells, axis=1)
    for method, rows in together.groupby("method", sort=False):
        values = [f"{name} {row.min():.1%}–{row.max():.1%}" for (_, name), row in rows.iterrows()]
        print(f"  {method:14}" + ", ".join(values))


if __name__ == "__main__":
    main()
