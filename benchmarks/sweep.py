"""The wall-clock of a whole sweep: run by run as public codebases train them, and by `scaling sweep`.

    python -m benchmarks.sweep                    # 96 runs: 4 sizes × 3 learning rates × 2 seeds × 4 budgets
    python -m benchmarks.sweep --grid demo        # configs/demo.py with its tune stage
    python -m benchmarks.sweep --quick            # a miniature

The baseline trains one run after another, each in a fresh process that has all cores and JAX's defaults
(`benchmarks.one_run`): no compiled programs kept, no setting of malloc, no pinning. It is our own loop, so that what
differs is how a sweep is run, not the model. Ours is the command as a user starts it, in a fresh store and with no
compiled programs from before, report included. The text is prepared before, for both.

The baseline of a whole grid takes long, so `--sample` of its runs are trained, half of them before ours and half
after, with each size and each budget as often as can be; of a run that is not, the seconds are those of the start and
end of the sampled ones plus its steps at the pace of its size. `--full` trains all. The losses of runs trained by both
are compared: what differs between them is the order of sums (cores, packs), and training makes much of it.
"""

import collections
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from configs import demo
from scaling import config, devices, store
from scaling.config import grids, rates, schedules
from scaling.data import corpus
from scaling.planning import plan

BATCH_TOKENS = 512  # of the demo: 4 sequences of 128 tokens
SIZES: tuple[tuple[int, int, int], ...] = (
    (16, 2, 1),
    (32, 2, 2),
    (48, 2, 3),
    (64, 3, 4),
)  # width, depth, heads: 10 to 160 thousand parameters
RATES: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2)
SEEDS: tuple[int, ...] = (0, 1)
BUDGETS: tuple[int, ...] = (1, 2, 4, 8)  # times the steps of the shortest run
WARMUP_SHARE = 0.1  # of the shortest run; in tokens, so that runs that differ in length begin alike
# Training turns rounding into noise like a seed's; a run computed in another order may so end anywhere within it.
LOSS_TOLERANCE = 0.02
FOREIGN = ("GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XLA_FLAGS")

Size = tuple[int, int]  # width, depth


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train, and how much of it by the baseline."""

    grid: Literal["budgets", "demo"] = "budgets"
    """The 96 runs, or the demo's own grid."""
    steps: int = 1600
    """Of the shortest runs of the 96; the others take 2, 4 and 8 times as many: at the paces of the
    demo's sizes the baseline would then train for 85% of its time."""
    sample: int = 12
    """Runs that the baseline trains."""
    full: bool = False
    """The baseline trains every run."""
    quick: bool = False
    """Eight short runs of two sizes: about two minutes, which show that it works and not how fast it is."""
    workers: int | None = None
    """As for `scaling sweep`."""
    out: Path | None = None
    """A file for the results as JSON."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A run of the grid: its size, what it is grouped by beside it, and its steps."""

    run: config.Run
    run_id: str
    budget: float

    @property
    def size(self) -> Size:
        """What decides the pace."""
        return self.run.model.width, self.run.model.depth


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run trained by the baseline: the seconds of its process, and those that its steps took."""

    run_id: str
    size: Size
    steps: int
    seconds: float
    training: float
    loss: float | None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of the baseline for a whole grid, those of its training steps, and how many runs were measured."""

    seconds: float
    training: float
    measured: int
    runs: int


def sweep_of(settings: Settings) -> config.Sweep:
    """The sweep that both sides train."""
    if settings.grid == "demo":
        return demo.sweep()
    sizes, learning_rates, seeds, budgets = SIZES, RATES, SEEDS, BUDGETS
    if settings.quick:
        sizes, learning_rates, seeds, budgets = SIZES[:2], RATES[:2], SEEDS[:1], BUDGETS[:2]
    warmup = round(WARMUP_SHARE * settings.steps) * BATCH_TOKENS
    base = demo.sweep().base.edit(
        {
            "tokens": settings.steps * BATCH_TOKENS,
            "schedule": schedules.Wsd(warmup=schedules.WarmupTokens(tokens=warmup)).model_dump(mode="json"),
        }
    )
    axes: list[grids.Grid] = [
        grids.Ladder(sizes=tuple(grids.Size(width=w, depth=d, heads=h) for w, d, h in sizes)),
        grids.Axis(field="optimizer.learning_rate", values=learning_rates),
        grids.Axis(field="seed", values=seeds),
        grids.Axis(field="tokens", values=tuple(settings.steps * BATCH_TOKENS * times for times in budgets)),
    ]
    return config.Sweep(name="price", base=base, grid=grids.Product(parts=tuple(axes)), learning_rate=rates.AsGiven())


def items(resolved: plan.Plan) -> list[Item]:
    """The runs of a plan whose learning rates are known, the tune stage's first. Trunks are ours alone."""
    runs = []
    for planned in resolved.tune + resolved.runs:
        if planned.run_id is not None:
            label = planned.labels.get("flops_budget")
            runs.append(Item(planned.run, planned.run_id, float(label) if label else float(planned.run.tokens)))
    return runs


def sampled(everything: Sequence[Item], count: int) -> list[Item]:
    """`count` runs with each size, budget, learning rate and seed as often as can be; which ones is fixed.

    Raises ValueError where they would not hold every size and every budget.
    """
    least = max(len({item.size for item in everything}), len({item.budget for item in everything}))
    if not least <= count <= len(everything):
        raise ValueError(
            f"a sample of {count} of {len(everything)} runs cannot hold every size and every budget once; take "
            f"{least} to {len(everything)}"
        )
    seen: collections.Counter[tuple[str, Any]] = collections.Counter()

    def marks(item: Item) -> list[tuple[str, Any]]:
        return [
            ("size", item.size), ("budget", item.budget), ("both", (item.size, item.budget)),
            ("rate", item.run.optimizer.learning_rate), ("seed", item.run.seed),
        ]  # fmt: skip

    def novelty(item: Item) -> tuple[int, int, int, int]:
        size, budget, both, rate, seed = (seen[mark] for mark in marks(item))
        return max(size, budget), size + budget, both, rate + seed

    left, chosen = list(everything), list[Item]()
    while len(chosen) < count:
        best = min(left, key=novelty)
        left.remove(best)
        chosen.append(best)
        seen.update(marks(best))
    return chosen


def estimate(everything: Sequence[Item], measured: Sequence[Measured]) -> Estimate:
    """The baseline's seconds for all runs: what was measured, and for the others the steps at the pace of their size.

    Raises ValueError where no run of a size was measured.
    """
    known = {one.run_id: one for one in measured}
    paces = {
        size: sum(m.training for m in measured if m.size == size) / sum(m.steps for m in measured if m.size == size)
        for size in {one.size for one in measured}
    }
    if missing := {item.size for item in everything} - set(paces):
        raise ValueError(f"no run of size {sorted(missing)[0]} was measured; enlarge the sample")
    rest = statistics.mean(one.seconds - one.training for one in measured)
    seconds = training = 0.0
    for item in everything:
        one = known.get(item.run_id)
        steps = one.training if one else paces[item.size] * item.run.steps
        seconds += one.seconds if one else rest + steps
        training += steps
    return Estimate(seconds, training, len(known), len(everything))


def largest_difference(measured: Sequence[Measured], losses: Mapping[str, float | None]) -> tuple[float, int]:
    """The largest difference of final losses between the two sides, and how many runs were compared.

    A run that diverged on one side alone differs by infinity; one that did on both by nothing.
    """
    largest, compared = 0.0, 0
    for one in measured:
        if one.run_id in losses:
            ours = losses[one.run_id]
            compared += 1
            if ours is not None and one.loss is not None and math.isfinite(ours) and math.isfinite(one.loss):
                largest = max(largest, abs(ours - one.loss))
            elif (ours is None) != (one.loss is None):
                largest = math.inf
    return largest, compared


class Bench:
    """Trains runs by the baseline, and the sweep by the command, in folders of its own."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        self.folder = folder
        self.sweep = sweep_of(settings)
        self.measured: list[Measured] = []
        self.environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        self.environment |= {"SCALING_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        os.environ["SCALING_CACHE"] = self.environment["SCALING_CACHE"]
        corpus.prepare(self.sweep.base.data, lambda line: None)

    def planned(self, results: store.Store | None) -> list[Item]:
        """The runs, as far as their learning rates are known."""
        return items(plan.resolve(self.sweep, corpus.find, results))

    def baseline(self, item: Item) -> Measured:
        """Train one run in a fresh process. Raises RuntimeError where it fails."""
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            file = Path(own) / "run.json"
            file.write_text(item.run.to_json())
            start = time.perf_counter()
            ended = subprocess.run(
                [sys.executable, "-m", "benchmarks.one_run", str(file), own],
                env=self.environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - start
        if ended.returncode:
            raise RuntimeError(f"the baseline of run {item.run_id} failed:\n{ended.stderr[-2000:]}")
        answer = json.loads(ended.stdout.strip().splitlines()[-1])
        one = Measured(item.run_id, item.size, answer["steps"], seconds, answer["training"], answer["loss"])
        self.measured.append(one)
        print(
            f"  baseline: width {item.size[0]} depth {item.size[1]}, {one.steps} steps: {seconds:.1f} s, "
            f"{one.training:.1f} of them training, loss {'none' if one.loss is None else f'{one.loss:.4f}'}",
            flush=True,
        )
        return one

    def ours(self) -> tuple[float, store.Store]:
        """Seconds of `scaling sweep` from nothing, and its store. Raises RuntimeError where it leaves runs undone."""
        file, results = self.folder / "sweep.json", self.folder / "store"
        file.write_text(self.sweep.to_json())
        workers = [] if self.settings.workers is None else ["--workers", str(self.settings.workers)]
        command = [sys.executable, "-m", "scaling.cli", "sweep", str(file), "--store", str(results), *workers]
        start = time.perf_counter()
        ended = subprocess.run(
            command, env=self.environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if ended.returncode:
            raise RuntimeError(
                f"scaling sweep ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
            )
        return seconds, store.Store(results)


def settle(settings: Settings) -> Settings:
    """The settings with what --quick implies. Raises ValueError for what cannot be measured."""
    if settings.steps < 10:
        raise ValueError(f"steps is {settings.steps}; runs need at least 10 for a warm-up and a cooldown")
    if settings.quick and settings.grid == "demo":
        raise ValueError("quick is a miniature of the grid of budgets; leave out --grid demo")
    if not settings.quick:
        return settings
    return dataclasses.replace(settings, steps=min(settings.steps, 250), sample=min(settings.sample, 4))


def shares(results: store.Store) -> str:
    """What the store says of where our side's seconds went."""
    rows = [row for run_id in results.run_ids() if (row := results.result(run_id))]
    training = sum(row["seconds"] for row in rows)
    roles = collections.Counter(row["role"] for row in rows)
    spent, bought = sum(row["flops_spent"] for row in rows), sum(r["flops"] for r in rows if r["role"] != "trunk")
    counts = ", ".join(f"{count} {role}" for role, count in roles.items())
    return (
        f"rows: {counts}; {training:.0f} s of training in all workers; FLOPs spent {spent / bought:.0%} of those bought"
    )


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both sides of a comparison: the planned runs, our seconds and losses, what the baseline measured.

    `peaks` are the machine's float32 matmul FLOP/s before, between and after.
    """

    runs: Sequence[Item]
    seconds: float
    losses: dict[str, float | None]
    measured: Sequence[Measured]
    peaks: tuple[float, ...]


def trained(settings: Settings, folder: Path) -> Sides:
    """One half of the baseline's runs, the sweep by the command, the other half, so that a drift hits both sides."""
    peaks = [devices.measured_cpu_flops(seconds=0.5)]
    bench = Bench(settings, folder)
    runs = bench.planned(None)
    tuned = bool(bench.sweep.learning_rate.tuning_points(bench.sweep.points()))
    chosen = [] if tuned else _chosen(settings, runs)
    print(f"{bench.sweep.name}: {len(os.sched_getaffinity(0))} cores ({platform.machine()})", flush=True)
    for item in chosen[::2]:
        bench.baseline(item)
    seconds, results = bench.ours()
    peaks.append(devices.measured_cpu_flops(seconds=0.5))
    print(f"  scaling sweep: {seconds:.1f} s; {shares(results)}", flush=True)
    if tuned:  # the grid's learning rates are known only now
        runs = bench.planned(results)
        chosen = _chosen(settings, runs)
    for item in chosen if tuned else chosen[1::2]:
        bench.baseline(item)
    peaks.append(devices.measured_cpu_flops(seconds=0.5))
    losses = {item.run_id: row["loss"] for item in runs if (row := results.result(item.run_id))}
    return Sides(runs, seconds, losses, bench.measured, tuple(peaks))


def _chosen(settings: Settings, runs: Sequence[Item]) -> list[Item]:
    return sampled(runs, len(runs) if settings.full else settings.sample)


def main() -> None:
    """Train both sides, compare, print; exits with status 2 for settings that cannot be measured."""
    try:
        settings = settle(tyro.cli(Settings, description=__doc__))
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    with tempfile.TemporaryDirectory() as folder:
        sides = trained(settings, Path(folder))
    whole, seconds = estimate(sides.runs, sides.measured), sides.seconds
    difference, compared = largest_difference(sides.measured, sides.losses)
    how = (
        "all measured" if whole.measured == whole.runs else f"from {whole.measured} measured, the others by their size"
    )
    print(
        f"\nbaseline, {whole.runs} runs one after another: {whole.seconds:,.0f} s ({how}), "
        f"{whole.training / whole.seconds:.0%} of them training\n"
        f"scaling sweep: {seconds:,.0f} s\nratio: {whole.seconds / seconds:.2f}\n"
        f"largest difference of {compared} losses: {difference:.4f} nats a token (tolerance {LOSS_TOLERANCE})\n"
        f"float32 matmul before, between, after: {', '.join(f'{peak / 1e9:.0f}' for peak in sides.peaks)} GFLOP/s"
    )
    if settings.out is not None:
        content = {
            "settings": {**vars(settings), "out": str(settings.out)},
            "baseline": dataclasses.asdict(whole), "ours_seconds": seconds, "ratio": whole.seconds / seconds,
            "difference": difference, "compared": compared, "peaks": sides.peaks,
            "measured": [dataclasses.asdict(one) for one in sides.measured], "losses": sides.losses,
        }  # fmt: skip
        settings.out.write_text(json.dumps(content, indent=2) + "\n")
    if difference > LOSS_TOLERANCE:
        raise SystemExit(f"losses differ by {difference:.4f}, more than {LOSS_TOLERANCE}")


if __name__ == "__main__":
    main()
