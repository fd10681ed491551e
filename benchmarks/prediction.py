"""Predictions of runs that were trained, from smaller ones: `analysis.predict` beside single laws, on public tables.

    python -m benchmarks.prediction [--choose]

Cases by rule: of each table the targets are the best five runs (least loss) of those within a factor 1.5 of the
largest FLOPs; the laws see the runs of at most 1/3, 1/10 and 1/30 of the targets' FLOPs, where those are eight or more
of three sizes over a factor 3. Error = |log(predicted / measured)| in %, the mean over a case's targets, then over the
cases of a source, then over sources. Interval score = (high − low + 40 · distance of a measurement outside) / measured
in %, averaged likewise (2/α = 40 at 95%). A source is a paper; its tables are what of it was trained and measured
alike: of several learning rates the best, of repeated data what is seen once.

`--choose` compares settings: the weights of runs by the least error, then the two constants of the interval by the
least interval score among those that hold 95% of all targets; and again with each source left out in turn, scored on
it. The members weigh the same and were fixed beforehand; subsets of them are shown beside.
`--planted N` counts instead how often the interval of a new run holds on N sweeps of each known law and noise.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import tyro

from analysis import datasets, errors, fitting, frontiers, members, prediction

FACTORS = (3.0, 10.0, 30.0)
BINS = (1.0, 5.0, 15.0, 50.0)  # of the factor, for coverage
TARGETS, NEAR, FEWEST, SIZES, RANGE = 5, 1.5, 8, 3, 3.0
WEIGHTS = ((0.0, np.inf), (0.5, np.inf), (0.5, 0.2), (0.5, 0.1), (0.5, 0.05), (1.0, 0.1))  # COMPUTE, EXCESS
SETS = {
    "all": tuple(members.MEMBERS),
    "without the free Hoffmann": tuple(name for name in members.MEMBERS if name != "hoffmann"),
    "fixed exponents and Kaplan": tuple(name for name in members.MEMBERS if "0." in name or "kaplan" in name),
    "Hoffmann free": tuple(name for name in members.MEMBERS if "0." not in name and "kaplan" not in name),
    "Kaplan": tuple(name for name in members.MEMBERS if "kaplan" in name),
}
SPREADS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
DISTANCES = (0.0, 0.002, 0.004, 0.006, 0.008, 0.01)
HELD = 0.95  # of all targets, at least


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    choose: bool = False
    """Compare settings instead of scoring the ones that are set."""
    planted: int = 0
    """Sweeps a planted law and noise; 0: public tables."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    source: str
    table: str
    factor: float
    runs: pd.DataFrame
    at: pd.DataFrame


def tables() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The source, the name and the runs of each table."""
    yield "besiroglu2024", "", datasets.load("besiroglu2024").query("excluded_in_published_fit == 0")
    porian = datasets.load("porian2024")
    keys = ["dataset", "hparams", "warmup", "decay"]
    for key, rows in porian.groupby(
        keys
    ):  # the same runs under one count of parameters, with embeddings where there is
        count = "standard" if (rows["param_count"] == "standard").any() else rows["param_count"].iloc[0]
        yield "porian2024", " ".join(map(str, key)), rows[rows["param_count"] == count]
    for key, rows in datasets.load("brandfonbrener2024").groupby("train_set"):
        yield "brandfonbrener2024", str(key), rows
    for name in ("steplaw2025", "misfitting2025"):
        rows = datasets.load(name)
        rows = rows[rows.get("status", pd.Series("finished", rows.index)) == "finished"]
        yield name, "", rows.loc[rows.groupby(["params", "tokens"])["loss"].idxmin()]
    repeated = datasets.load("muennighoff2023")
    yield "muennighoff2023", "one epoch", repeated[repeated["epochs"] <= 1.01]
    yield "scalebench", "farseer", datasets.load("scalebench_farseer")


def cases() -> Iterator[Case]:
    for source, name, rows in tables():
        rows = rows[["params", "tokens", *(["flops"] if "flops" in rows else []), "loss"]].astype(np.float64)
        if source in ("steplaw2025", "misfitting2025", "scalebench"):  # no FLOPs, or an estimate that is not 6ND
            rows = rows.assign(flops=6.0 * rows["params"] * rows["tokens"])
        at = rows[rows["flops"] >= rows["flops"].max() / NEAR].nsmallest(TARGETS, "loss")
        for factor in FACTORS:
            below = rows[rows["flops"] <= 1.02 * at["flops"].min() / factor]
            if len(below) < FEWEST or below["params"].nunique() < SIZES:
                continue
            if below["flops"].max() >= RANGE * below["flops"].min():
                yield Case(source, name, factor, below.reset_index(drop=True), at.reset_index(drop=True))


def described(case: Case) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "source": case.source, "table": case.table, "factor": case.factor, "measured": case.at["loss"],
            "reach": case.at["flops"] / case.runs["flops"].max(),
        }
    )  # fmt: skip


def by_source(scored: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The mean over a case, then over the cases of a source."""
    per_case = scored.assign(value=values).groupby(["source", "table", "factor"])["value"].mean()
    return per_case.groupby("source").mean()


def error(scored: pd.DataFrame) -> pd.Series:
    return 100 * np.abs(np.log(scored["value"] / scored["measured"]))


def interval_score(scored: pd.DataFrame) -> pd.Series:
    outside = np.maximum(scored["low"] - scored["measured"], scored["measured"] - scored["high"]).clip(lower=0)
    return 100 * (scored["high"] - scored["low"] + 40 * outside) / scored["measured"]


def inside(scored: pd.DataFrame) -> pd.Series:
    return (scored["low"] <= scored["measured"]) & (scored["measured"] <= scored["high"])


def ours(case: Case) -> pd.DataFrame:
    result = prediction.predict(case.runs, case.at)
    return described(case).assign(value=result.value, low=result.low, high=result.high)


def alone(case: Case, law: str, **options: Any) -> pd.DataFrame:
    """One law by itself with its bootstrap interval for a new run."""
    fit = fitting.fit(law, case.runs, **options)
    low, high = fit.bootstrap(300).predict_interval(case.at)
    return described(case).assign(value=fit.predict(case.at), low=low, high=high)


def along(case: Case, law: str) -> pd.DataFrame:
    """A law of compute alone, through the least loss of each group of runs of like compute; M4 and breaks are slow."""
    points = case.runs.loc[case.runs.groupby(members.groups(case.runs["flops"].to_numpy()))["loss"].idxmin()]
    fit = fitting.fit(law, points, x="flops")
    at = {"x": case.at["flops"].to_numpy()}
    low, high = fit.bootstrap(50).predict_interval(at)
    return described(case).assign(value=fit.predict(at), low=low, high=high)


def parabolas(case: Case) -> pd.DataFrame:
    """Approach 2 of Hoffmann et al. 2022: the power law with an offset through the minima of the budgets' parabolas."""
    frontier = frontiers.frontier(case.runs, 2, resamples=300)
    losses = [frontier.allocate(flops).loss for flops in case.at["flops"]]
    low, high = np.array([loss.interval for loss in losses]).T
    return described(case).assign(value=[loss.value for loss in losses], low=low, high=high)


METHODS: dict[str, Callable[[Case], pd.DataFrame]] = {
    "analysis.predict": ours,
    "hoffmann, Huber": lambda case: alone(case, "hoffmann"),
    "kaplan, Huber": lambda case: alone(case, "kaplan"),
    "kaplan_offset, Huber": lambda case: alone(case, "kaplan_offset"),
    "approach 2": parabolas,
    **{f"{law} of compute": functools.partial(along, law=law) for law in ("m1", "m2", "m3", "m4", "broken1")},
}


def scores(every: Sequence[Case]) -> None:
    """Every method on the cases that it does not refuse, with the error of ours on the same ones beside."""
    first = pd.DataFrame()
    for name, method in METHODS.items():
        rows, refused = [], 0
        for case in every:
            try:
                rows.append(method(case))
            except errors.Refused:
                refused += 1
        print(f"\n{name}: {len(rows)} cases, refused {refused}")
        if not rows:
            continue
        scored = pd.concat(rows, ignore_index=True)
        first = scored if first.empty else first
        there = first.merge(scored[["source", "table", "factor"]].drop_duplicates())
        each, ours_there = (by_source(table, error(table)) for table in (scored, there))
        print(f"  error {each.mean():.2f}% over sources (median of runs {error(scored).median():.2f}%; "
              f"{next(iter(METHODS))} on these cases {ours_there.mean():.2f}%): "
              + ", ".join(f"{source} {value:.2f}" for source, value in each.items()))  # fmt: skip
        half = 50 * np.log(scored["high"] / scored["low"])
        print(f"  inside {inside(scored).mean():.1%}, median half-width {half.median():.2f}%, interval score "
              f"{by_source(scored, interval_score(scored)).mean():.1f}%")  # fmt: skip
        for low, high in itertools.pairwise((*BINS, np.inf)):
            rows_in = scored[(scored["reach"] >= low) & (scored["reach"] < high)]
            if len(rows_in):
                print(f"    ×{low:g} to ×{high:g}: {inside(rows_in).mean():.1%} of {len(rows_in)} inside")


def by_member(case: Case, compute: float, excess: float) -> pd.DataFrame:
    """The members' log predictions and what noise there is about their mean, under these weights."""
    members.COMPUTE, members.EXCESS = compute, excess
    predictor = prediction.predictor(case.runs)
    logs = np.log(predictor.predict(case.at).members)
    noise = predictor.noise(*(case.at[name].to_numpy() for name in ("params", "tokens")))
    return pd.concat([described(case), logs.add_prefix("log ")], axis=1).assign(noise=noise)


def combined(table: pd.DataFrame, names: Sequence[str], spread: float, distance: float) -> pd.DataFrame:
    logs = table[[f"log {name}" for name in names if f"log {name}" in table]]
    value = np.exp(logs.mean(axis=1))
    apart, reach, noise = (part.to_numpy() for part in (logs.std(axis=1), table["reach"], table["noise"]))
    width = prediction.half(apart, reach, noise, spread=spread, distance=distance)
    return table.assign(value=value, low=value * np.exp(-width), high=value * np.exp(width))


def chosen(found: dict[tuple[float, float], pd.DataFrame], sources: Sequence[str]) -> tuple[Any, float, float]:
    """The weights of the least error on these sources, then the interval of the least score that holds enough."""
    names = SETS["all"]

    def of(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["source"].isin(sources)]

    _, weights = min(
        (float(by_source(scored, error(scored)).mean()), weights)
        for weights, table in found.items()
        for scored in [combined(of(table), names, prediction.SPREAD, prediction.DISTANCE)]
    )
    _, _, spread, distance = min(
        (bool(inside(scored).mean() < HELD), float(by_source(scored, interval_score(scored)).mean()), spread, distance)
        for spread in SPREADS
        for distance in DISTANCES
        for scored in [combined(of(found[weights]), names, spread, distance)]
    )
    return weights, spread, distance


def choose(every: Sequence[Case]) -> None:
    found = {
        weights: pd.concat([by_member(case, *weights) for case in every], ignore_index=True) for weights in WEIGHTS
    }
    print(f"{len(WEIGHTS)} weights, then {len(SPREADS) * len(DISTANCES)} intervals; {len(SETS)} sets of members shown")
    rows = [
        {"weights": weights, "members": names, **each, "mean": each.mean()}
        for weights, table in found.items()
        for names in SETS
        for scored in [combined(table, SETS[names], prediction.SPREAD, prediction.DISTANCE)]
        for each in [by_source(scored, error(scored))]
    ]
    print(pd.DataFrame(rows).sort_values("mean").round(2).to_string(index=False))
    sources = sorted({case.source for case in every})
    print("all sources:", chosen(found, sources))
    parts = []
    for left_out in sources:
        weights, spread, distance = chosen(found, [source for source in sources if source != left_out])
        table = found[weights]
        scored = combined(table[table["source"] == left_out], SETS["all"], spread, distance)
        parts.append(scored)
        print(f"without {left_out}: {weights}, {spread}, {distance}: error there "
              f"{by_source(scored, error(scored)).mean():.2f}%, inside {inside(scored).mean():.1%}")  # fmt: skip
    whole = pd.concat(parts)
    print(f"left out in turn: error {by_source(whole, error(whole)).mean():.2f}%, inside {inside(whole).mean():.1%}, "
          f"interval score {by_source(whole, interval_score(whole)).mean():.1f}%")  # fmt: skip


def hoffmann(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(1.82 + 482.0 / n**0.348 + 2085.0 / d**0.366)  # Besiroglu et al. 2024, arXiv 2404.10102


TRUTHS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "hoffmann": hoffmann,
    "hoffmann with an interaction": lambda n, d: hoffmann(n, d) * np.exp(-0.004 * np.log(n / 1e8) * np.log(d / 2e9)),
    "kaplan": lambda n, d: ((1e14 / n) ** (0.08 / 0.1) + 5e13 / d) ** 0.1,  # the form with round constants
    "broken": lambda n, d: 1.82 + 482.0 / n**0.348 * (1 + (n / 3e8) ** 2) ** (0.5 * 0.1) + 2085.0 / d**0.366,
}
NOISES = (0.001, 0.003, 0.01)
REACHES = (3.0, 10.0, 30.0)


def swept(truth: str, noise: float, seed: int) -> pd.DataFrame:
    """Five budgets from 1e18 to 1e20 FLOPs, seven sizes each about the best of the truth, with noise of log L."""
    budgets = np.geomspace(1e18, 1e20, 5)
    n = np.concatenate([best(truth, c)[0] * np.geomspace(0.25, 4.0, 7) for c in budgets])
    c = np.repeat(budgets, 7)
    d = c / 6 / n
    scattered = TRUTHS[truth](n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return pd.DataFrame({"params": n, "tokens": d, "flops": c, "loss": scattered})


def best(truth: str, flops: float) -> tuple[float, float]:
    """Parameters and tokens of the least loss at 6ND = C."""
    n = np.geomspace(1e6, 1e13, 20_001)
    at = int(TRUTHS[truth](n, flops / 6 / n).argmin())
    return float(n[at]), float(flops / 6 / n[at])


def planted(count: int) -> None:
    """The share of new runs, with noise of their own, inside the intervals."""
    for truth, noise in itertools.product(TRUTHS, NOISES):
        rows = []
        for seed in range(count):
            runs = swept(truth, noise, seed)
            n, d = np.array([best(truth, reach * runs["flops"].max()) for reach in REACHES]).T
            result = prediction.predict(runs, {"params": n, "tokens": d})
            own = noise * np.random.default_rng(10_000 + seed).standard_normal(len(n))
            measured = TRUTHS[truth](n, d) * np.exp(own)
            rows.append(
                pd.DataFrame(
                    {
                        "reach": REACHES,
                        "inside": (result.low < measured) & (measured < result.high),
                        "error": np.log(result.value / measured),
                        "half": np.log(result.high / result.low) / 2,
                    }
                )
            )
        table = pd.concat(rows)
        each = table.groupby("reach").agg(inside=("inside", "mean"), error=("error", "mean"), half=("half", "median"))
        listed = "; ".join(
            f"×{reach:g}: {row.inside:.0%}, {row.error:+.2%}, ±{row.half:.1%}" for reach, row in each.iterrows()
        )
        print(f"{truth}, noise {noise:.1%}: {table['inside'].mean():.1%} inside ({listed})", flush=True)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    if settings.planted:
        planted(settings.planted)
        return
    every = list(cases())
    of = {(case.source, case.table) for case in every}
    print(f"{len(every)} cases of {len(of)} tables of {len({source for source, _ in of})} sources")
    (choose if settings.choose else scores)(every)


if __name__ == "__main__":
    main()
