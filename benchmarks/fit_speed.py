"""CPU seconds of our fit and bootstrap against the public recipe in scipy and the `chinchilla` package, in one run.

    SCALING_DATASETS=FOLDER python -m benchmarks.fit_speed --chinchilla-python PATH_TO_A_PYTHON_WITH_CHINCHILLA

On the 240 rows that Besiroglu et al. fit (arXiv 2404.10102). The recipe: L-BFGS-B with finite differences from the
4,500 starts of Hoffmann et al. (arXiv 2203.15556, section D.2), and for each of 4,000 resamples BFGS from Hoffmann et
al.'s law (Besiroglu et al., data_analysis.ipynb). Their notebook differentiates by autograd, which costs more than the
analytic gradients given to scipy here and less than finite differences: both are measured. `chinchilla` runs its BFGS
over the same grid, thinned unless --full.

Every measurement is a process of its own; one round measures every contender once, with a share of the recipe's starts
and resamples, so that what else runs on the machine slows all alike. BLAS has one thread in all. CPU seconds are user
and system time of a process and its children, so work in parallel is counted whole.

warm: a further fit in a process that has fitted once. cold: the first fit of a process, after the imports, nothing
compiled before and no cache. compiled before: the same with JAX's persistent cache filled by an earlier process, as the
`scaling` command keeps it. The column `with imports` adds everything since the interpreter started.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import fit_contenders

STARTS = 4500
COLD, CACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}, "JAX_COMPILATION_CACHE_DIR"
WITHIN = 1e-9  # relative difference of objectives below which neither is worse: rounding of a sum of 240 terms
REQUIRED = {"fit, warm": 100.0, "fit, cold": 30.0, "bootstrap": 15.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure."""

    starts: int = STARTS
    """Starts of the recipe that are run; with fewer than 4,500 its time is scaled to them, and labelled so."""
    resamples: int = 4000
    """Resamples of our bootstrap."""
    peer_resamples: int = 400
    """Resamples that scipy's BFGS fits; its time is scaled to `resamples`, and labelled so."""
    rounds: int = 3
    repeats: int = 5
    """Warm fits in each round."""
    full: bool = False
    """Run `chinchilla` from all 4,500 starts: some ten CPU minutes."""
    chinchilla_python: Path = Path(sys.executable)
    """The Python that has `chinchilla`."""
    seed: int = 0
    out: Path | None = None
    """A file for the results as JSON."""


def settle(settings: Settings) -> Settings:
    """The settings. Raises ValueError for what cannot be measured."""
    for name in ("starts", "resamples", "peer_resamples", "rounds", "repeats"):
        if getattr(settings, name) < 1:
            raise ValueError(
                f"{name} is {getattr(settings, name)} and must be at least 1; leave it out for the default"
            )
    if settings.starts > STARTS:
        raise ValueError(f"starts is {settings.starts} and the grid has {STARTS}; choose at most that")
    if settings.peer_resamples > settings.resamples:
        raise ValueError(f"peer_resamples is {settings.peer_resamples}; choose at most resamples, {settings.resamples}")
    return settings


@dataclasses.dataclass
class Contender:
    """What its processes measured: CPU seconds of each, and the points x = (a, b, e, α, β) that they found."""

    name: str
    work: list[float] = dataclasses.field(default_factory=list)
    imports: list[float] = dataclasses.field(default_factory=list)
    x: list[list[float]] = dataclasses.field(default_factory=list)
    count: int = 0
    note: str = ""

    def add(self, measured: Mapping[str, Any]) -> None:
        self.work += measured["work"]
        self.imports.append(measured["imports"])
        self.x += measured["x"]
        self.count += measured.get("count", 0)

    def total(self, of: int) -> float:
        """CPU seconds of all its parts together, scaled to `of` starts or resamples."""
        return sum(self.work) * of / self.count


class Bench:
    """Contenders measured round by round."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        from analysis import datasets, uncertainty

        self.settings, self.folder = settings, folder
        frame = datasets.load("besiroglu2024")
        frame = frame.loc[frame["excluded_in_published_fit"] == 0, ["params", "tokens", "loss"]]
        self.table, self.draws = folder / "table.csv", folder / "draws.npy"
        frame.to_csv(self.table, index=False)
        self.weights = uncertainty.counts(len(frame), settings.resamples, settings.seed)
        np.save(self.draws, self.weights)
        self.logs = fit_contenders.logs(str(self.table))

    def run(
        self, name: str, settings: Mapping[str, Any], env: Mapping[str, str] | None = None, python: str = ""
    ) -> Any:
        """One measurement. Raises RuntimeError with the process's own words where it fails."""
        base = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        ended = subprocess.run(
            [python or sys.executable, fit_contenders.__file__, name, str(self.table), json.dumps(dict(settings))],
            env={**base, **threads, "MPLBACKEND": "agg", **(env or {})},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"{name} failed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
        return json.loads(ended.stdout.strip().splitlines()[-1])

    def objectives(self, x: Sequence[Sequence[float]], weights: np.ndarray | float = 1.0) -> np.ndarray:
        """The objective at every x, each under its own row of weights where there are some."""
        rows = np.broadcast_to(weights, (len(x), len(self.logs[0])))
        return np.array([fit_contenders.objective(*self.logs, row)[0](at) for at, row in zip(x, rows, strict=True)])

    def measure(self) -> dict[str, Contender]:
        """All rounds, every other one in the opposite order."""
        s, sides = self.settings, {}
        for key, name in (
            ("recipe", "scipy L-BFGS-B, finite differences (the recipe)"),
            ("gradient", "scipy L-BFGS-B, analytic gradients"),
            ("cold", "ours, cold"), ("cached", "ours, cold, compiled before"), ("warm", "ours, warm"),
            ("bfgs", "scipy BFGS, finite differences"), ("bfgs_gradient", "scipy BFGS, analytic gradients"),
            ("bootstrap", "ours, after a fit"),
        ):  # fmt: skip
            sides[key] = Contender(name)
        kept = {CACHED: str(self.folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        fit = {"repeats": 0, "resamples": 0, "seed": s.seed}
        self.run("ours", fit, kept)  # fills the cache
        every = STARTS / s.starts * s.rounds
        edges = np.linspace(0, s.peer_resamples, s.rounds + 1).astype(int)
        for i in range(s.rounds):
            starts = {"first": i, "every": max(round(every), 1)}
            slices = {"first": int(edges[i]), "stop": int(edges[i + 1]), "draws": str(self.draws)}
            jobs = [
                lambda: sides["cold"].add(self.run("ours", fit, COLD)),
                lambda starts=starts: sides["recipe"].add(self.run("recipe", {**starts, "gradient": False})),
                lambda: sides["cached"].add(self.run("ours", fit, kept)),
                lambda slices=slices: sides["bfgs"].add(self.run("resampled", {**slices, "gradient": False})),
                lambda: self._warm(sides),
                lambda starts=starts: sides["gradient"].add(self.run("recipe", {**starts, "gradient": True})),
                lambda slices=slices: sides["bfgs_gradient"].add(self.run("resampled", {**slices, "gradient": True})),
            ]
            for job in jobs if i % 2 == 0 else jobs[::-1]:
                job()
            print(f"round {i + 1} of {s.rounds} done", flush=True)
        return sides

    def _warm(self, sides: dict[str, Contender]) -> None:
        s = self.settings
        result = self.run("ours", {"repeats": s.repeats, "resamples": s.resamples, "seed": s.seed}, COLD)
        if result["converged"] < 1:
            raise RuntimeError(f"{result['converged']:.1%} of our resamples converged: no rows to compare")
        sides["warm"].add({**result, "work": result["warm"], "x": result["x"][:1]})
        sides["bootstrap"].add({**result, "work": [result["bootstrap"]], "x": []})
        sides["bootstrap"].x, sides["bootstrap"].note = result["x"][1:], f"{result['converged']:.1%} converged"

    def package(self) -> Contender | str:
        """The `chinchilla` package, or why there is no such row."""
        python = str(self.settings.chinchilla_python)
        if subprocess.run([python, "-c", "import chinchilla"], capture_output=True, check=False).returncode:
            return "not installed: pip install chinchilla (in an environment of its own; then --chinchilla-python PATH)"
        contender = Contender("chinchilla package, its BFGS over the grid")
        contender.add(self.run("package", {"thin": 1 if self.settings.full else 2}, python=python))
        return contender


def scaled(count: int, of: int) -> str:
    """What a row says of its extrapolation."""
    return "" if count == of else f" [{count:,} run, scaled to {of:,}]"


def report(bench: Bench, sides: Mapping[str, Contender], package: Contender | str) -> tuple[str, dict[str, Any]]:
    """The tables, and the ratios and verdicts as a mapping."""
    ours = {key: statistics.median(sides[key].work) for key in ("warm", "cold", "cached", "bootstrap")}
    imports = {key: statistics.median(value.imports) for key, value in sides.items()}
    least = {
        key: float(bench.objectives(sides[key].x).min()) for key in ("recipe", "gradient", "warm", "cold", "cached")
    }
    peers = [least["recipe"], least["gradient"]]
    if not isinstance(package, str):
        peers.append(float(bench.objectives(package.x).min()))
    times = {key: sides[key].total(bench.settings.resamples) for key in ("bfgs", "bfgs_gradient")}
    times["bootstrap"] = ours["bootstrap"]
    recipe = sides["recipe"].total(STARTS)
    worse, notes = worst(bench, sides)
    ratios = {
        "fit, warm": recipe / ours["warm"],
        "fit, cold": recipe / ours["cold"],
        "bootstrap": times["bfgs"] / ours["bootstrap"],
    }
    verdicts = [
        f"{key}: {ratio:.0f}× (required {REQUIRED[key]:g}×): {'met' if ratio >= REQUIRED[key] else 'NOT met'}"
        for key, ratio in ratios.items()
    ]
    fit_worse = max(least[key] for key in ("warm", "cold", "cached")) / min(peers) - 1
    never = fit_worse <= WITHIN and max(worse.values()) <= WITHIN
    verdict = "met" if never else "NOT met"
    lines = [
        *fits(sides, package, ours, imports, {**least, "package": peers[-1]}),
        *bootstraps(bench, sides, times),
        *notes,
        "",
        *verdicts,
        f"never a worse objective: {verdict} (fit: ours over the best peer less 1 = {fit_worse:.1e})",
    ]
    return "\n".join(lines), {"ratios": ratios, "objectives": least, "seconds": {**ours, "recipe": recipe, **times},
                              "imports": imports, "worse": worse, "never_worse": never}  # fmt: skip


def fits(
    sides: Mapping[str, Contender], package: Contender | str, ours: Mapping[str, float], imports: Mapping[str, float],
    reached: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """The table of fits: seconds, ratios to the recipe's with and without imports, the objective reached."""
    recipe = sides["recipe"].total(STARTS)
    whole = recipe + imports["recipe"]
    lines = [f"{'fit':<84} {'CPU s':>8} {'ratio':>7} {'with imports':>12} {'ratio':>7} {'objective':>20}"]

    def row(name: str, seconds: float, before: float | None, objective: float) -> str:
        after = (
            f"{seconds + before:>12.2f} {whole / (seconds + before):>7.1f}"
            if before is not None
            else f"{'–':>12} {'–':>7}"
        )
        return f"{name:<84} {seconds:>8.2f} {recipe / seconds:>7.1f} {after} {objective:>20.12e}"

    rows = [("recipe", recipe), ("gradient", sides["gradient"].total(STARTS))]
    for key, seconds in [*rows, *((key, ours[key]) for key in ("cold", "cached", "warm"))]:
        name = sides[key].name + (scaled(sides[key].count, STARTS) if sides[key].count else "")
        lines.append(row(name, seconds, None if key == "warm" else imports[key], reached[key]))
    if isinstance(package, str):
        return [*lines, f"chinchilla package: {package}"]
    name = package.name + scaled(package.count, STARTS)
    return [*lines, row(name, package.total(STARTS), package.imports[0], reached["package"])]


def bootstraps(bench: Bench, sides: Mapping[str, Contender], times: Mapping[str, float]) -> list[str]:
    """The table of bootstraps: seconds, ratios to the recipe's, standard errors."""
    resamples = bench.settings.resamples
    titled = f"bootstrap, {resamples:,} resamples"
    lines = [f"\n{titled:<72} {'CPU s':>8} {'ratio':>7}   standard errors of A, B, E, α, β"]
    for key, seconds in times.items():
        x = np.array(sides[key].x)
        spread = np.column_stack([np.exp(x[:, :3]), x[:, 3:]]).std(axis=0, ddof=1)
        name = sides[key].name + (scaled(sides[key].count, resamples) if sides[key].count else f" ({sides[key].note})")
        lines.append(
            f"{name:<72} {seconds:>8.2f} {times['bfgs'] / seconds:>7.1f}   " + " ".join(f"{v:>9.5g}" for v in spread)
        )
    return lines


def worst(bench: Bench, sides: Mapping[str, Contender]) -> tuple[dict[str, float], list[str]]:
    """By how much our objective is above each peer's on the same resamples, at most, and a line for each."""
    worse, lines = {}, []
    for key in ("bfgs", "bfgs_gradient"):
        weights = bench.weights[: len(sides[key].x)]
        same = bench.objectives(sides["bootstrap"].x[: len(weights)], weights)
        worse[key] = float(np.max(same / bench.objectives(sides[key].x, weights) - 1))
        lines.append(
            f"  same resamples, our objective over theirs less 1, at most: {worse[key]:.1e} ({sides[key].name})"
        )
    return worse, lines


def main() -> None:
    """Measure and print; exits with status 2 where the settings or the data are not fit for it."""
    try:
        settings = settle(tyro.cli(Settings, description=__doc__))
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = Bench(settings, Path(folder))
        except ValueError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(
            f"{cores} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}, {len(bench.logs[0])} rows",
            flush=True,
        )
        sides = bench.measure()
        text, results = report(bench, sides, bench.package())
    print(f"\n{text}")
    if settings.out is not None:
        values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
        settings.out.write_text(json.dumps({"settings": values, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
