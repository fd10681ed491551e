"""Tokens a second of our training step against an equal GPT-2 in PyTorch, compiled and eager, on this machine's CPU.

    python -m benchmarks.train_step --torch-python PATH_TO_A_PYTHON_WITH_TORCH --out results.json

Both sides: LayerNorm (ε 1e-6), learned positions, GELU in its tanh form, biases, tied head, causal attention, AdamW
with decoupled weight decay and clipped gradients, the same batch of random tokens, parameters in float32. Before
anything is timed, PyTorch must reproduce from our weights our logits and the losses of a few steps.

Every measurement is a fresh process that compiles, warms up, and then trains for a fixed time; there is a rest before
each, since a process measured right after another can run 1.5 times slower. A round measures every contender once,
every other round in the opposite order. Each is measured in two settings in the first round of a size, and goes on in
the better one: ours, in the environment of our workers, on one device of all cores and on one a core
(`execution.mesh.data`), PyTorch with and without our workers' setting of glibc. The ratio is the median
over rounds of ours over the faster PyTorch of the same round. At last each library does the matmuls and the attention
of each step alone (`anatomy`), which shows where its time goes and how fast it could be at most.
"""

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
from typing import Any

import tyro

from benchmarks import anatomy
from scaling import counting, devices
from scaling.config import families
from scaling.launch import environments

# About this many non-embedding parameters: width, depth, heads.
SIZES: dict[float, tuple[int, int, int]] = {
    0.1e6: (64, 2, 2),
    0.4e6: (128, 2, 4),
    1.6e6: (160, 5, 5),
    6e6: (320, 5, 5),
    25e6: (512, 8, 8),
}
QUICK = (0.4,)  # in millions
CONTENDERS = ("ours", "torch compiled", "torch eager")
TUNABLES = "GLIBC_TUNABLES"  # of glibc's malloc; read when a process starts
# What is tried of each contender, by True and False.
_THEIRS = {True: "", False: ", malloc as it comes"}
SETTINGS = {"ours": {True: "", False: ", a device a core"}, "torch compiled": _THEIRS, "torch eager": _THEIRS}
TOLERANCE = 1e-4  # of logits and losses of order one, in float32
LEAST_STEPS = 1  # timed, where a step takes longer than the time given
START_SECONDS = {"ours": 5.0, "torch compiled": 7.0, "torch eager": 4.0}  # imports, compiling from a cache: a guess
FIRST_SECONDS = {"ours": 8.0, "torch compiled": 15.0, "torch eager": 0.0}  # compiling what is not cached: a guess
SHARE = 0.6  # of the peak that a contender reaches: a guess, for the predicted duration alone


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure, and for how long."""

    sizes: tuple[float, ...] = tuple(size / 1e6 for size in SIZES)
    """Non-embedding parameters, in millions."""
    context: tuple[int, ...] = (128, 256)
    batch: int = 16
    vocabulary: int = 256
    rounds: int = 3
    seconds: float = 2.5
    """Timed in each measurement."""
    rest: float = 1.0
    """Seconds of rest before each measurement."""
    steps_per_dispatch: int = 32
    bfloat16: bool = False
    """Measure also with the forward and backward pass in bfloat16 (PyTorch by autocast)."""
    quick: bool = False
    """One size, one round, short: about two minutes."""
    check: bool = False
    """Only check at every size that the two models are the same; time nothing."""
    torch_python: Path = Path(sys.executable)
    """The Python that has PyTorch."""
    out: Path | None = None
    """A file for the results as JSON."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A row of the table: a model, and its exact counts at the benchmark's vocabulary and a context."""

    target: float
    context: int
    model: families.Transformer
    params: int
    params_non_embedding: int
    flops_per_token: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Medians over rounds in tokens a second, and the ratio of ours to the best PyTorch of the same round."""

    medians: Mapping[str, float]
    ratio: float
    lowest: float
    highest: float


def size_of(target: float, vocabulary: int, context: int) -> Size:
    """The size of about `target` non-embedding parameters. Raises ValueError where the table has none."""
    if target not in SIZES:
        known = ", ".join(f"{size / 1e6:g}" for size in SIZES)
        raise ValueError(f"no size of {target / 1e6:g} million parameters; choose from {known}")
    width, depth, heads = SIZES[target]
    model = families.Transformer.gpt2(width, depth, heads)
    return Size(
        target=target,
        context=context,
        model=model,
        params=counting.params(model, vocabulary, context),
        params_non_embedding=counting.params_non_embedding(model, vocabulary, context),
        flops_per_token=counting.flops_per_token(model, vocabulary, context),
    )


def compare(rounds: Sequence[Mapping[str, float]]) -> Comparison:
    """Medians and ratios of rounds of tokens a second, each with all of CONTENDERS. Raises ValueError for no rounds."""
    if not rounds:
        raise ValueError("0 rounds have no median; measure at least 1")
    medians = {name: statistics.median(one[name] for one in rounds) for name in CONTENDERS}
    ratios = [one["ours"] / max(one[name] for name in CONTENDERS if name != "ours") for one in rounds]
    return Comparison(medians, statistics.median(ratios), min(ratios), max(ratios))


def order(number: int, settling: bool) -> list[tuple[str, bool | None]]:
    """What round `number` measures, in order: a contender, and in which of its SETTINGS (None: as settled).

    `settling`: the first round tries both.
    """
    if number == 0 and settling:
        return [(name, setting) for name in CONTENDERS for setting in (True, False)]
    plain: list[tuple[str, bool | None]] = [(name, None) for name in CONTENDERS]
    return plain[::-1] if number % 2 else plain


def predicted_seconds(settings: Settings, sizes: Sequence[Size], peak: float) -> float:
    """About how long it all takes at the machine's peak in FLOP/s, by guesses of its share and of compiling."""
    total = 0.0 if settings.check else settings.rest
    for precision, checked in plan(settings, sizes):
        for size in sizes:
            step = settings.batch * size.context * size.flops_per_token / (SHARE * peak)
            if precision == "float32" and size in checked:
                total += START_SECONDS["ours"] + FIRST_SECONDS["ours"] + START_SECONDS["torch eager"] + 8 * step
            if settings.check:
                continue
            warm = warm_seconds(settings) if step < warm_seconds(settings) else 0.0
            timed = max(settings.seconds + step / 2, LEAST_STEPS * step) + warm + 2 * step
            total += sum(FIRST_SECONDS.values())
            for number in range(settings.rounds):
                for name, _ in order(number, size.context == settings.context[0]):
                    total += START_SECONDS[name] + settings.rest + timed
            if precision == "float32":
                total += START_SECONDS["ours"] + START_SECONDS["torch eager"] + 8 * step
    return total


def plan(settings: Settings, sizes: Sequence[Size]) -> list[tuple[str, Sequence[Size]]]:
    """Each precision to measure, and the sizes whose models are compared in it: in float32, where equal is equal."""
    checked = sizes if settings.check else sorted(sizes, key=lambda size: (size.target, -size.context))[:1]
    return [("float32", checked), ("bfloat16", [])][: 1 + (settings.bfloat16 and not settings.check)]


def warm_seconds(settings: Settings) -> float:
    """Training before the clock starts."""
    return min(1.0, settings.seconds / 3)


def spec_of(settings: Settings, size: Size, kind: str, precision: str) -> dict[str, Any]:
    """All that a contender's process is told, as JSON."""
    model = size.model
    return {
        "kind": kind, "width": model.width, "depth": model.depth, "heads": model.heads, "epsilon": 1e-6,
        "context": size.context, "batch": settings.batch, "vocabulary": settings.vocabulary,
        "precision": precision, "learning_rate": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
        "adam_epsilon": 1e-8, "clip": 1.0, "steps_per_dispatch": settings.steps_per_dispatch,
        "seconds": settings.seconds, "warm_seconds": warm_seconds(settings), "least_steps": LEAST_STEPS, "arrays": None,
        "products": None, "part_seconds": anatomy.SECONDS, "part_calls": anatomy.CALLS,
    }  # fmt: skip


class Bench:
    """Starts contenders' processes and keeps what they measured."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        self.folder = folder
        self.peak = 0.0
        self.records: list[dict[str, Any]] = []
        self.settled: dict[tuple[float, str, str], bool] = {}  # setting by size, precision and contender
        self.workers = environments.worker()

    def measure_peak(self) -> float:
        """The best float32 FLOP/s of a square matmul seen so far; each call tries again."""
        self.peak = max(self.peak, devices.measured_cpu_flops(seconds=0.5))
        return self.peak

    def start(self, spec: Mapping[str, Any], setting: bool) -> dict[str, Any]:
        """Run a contender's process to its end and read its last line. Raises RuntimeError where it fails."""
        environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
        if spec["kind"] == "ours":
            command = [sys.executable, "-m", "benchmarks.gpt2_scaling"]
            environment |= {**self.workers, "JAX_PLATFORMS": "cpu"}
            if not setting:
                count = math.gcd(spec["batch"], len(devices.cores()))
                environment |= environments.host_devices(count)
                spec = {**spec, "execution": {"mesh": {"data": count}}}
        else:
            command = [str(self.settings.torch_python), str(Path(__file__).parent / "gpt2_torch.py")]
            environment |= {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"), "CUDA_VISIBLE_DEVICES": ""}
            environment |= {TUNABLES: self.workers[TUNABLES]} if setting else {}
        ended = subprocess.run(
            [*command, json.dumps(dict(spec))],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            tail = "\n".join(ended.stderr.strip().splitlines()[-15:])
            raise RuntimeError(f"{spec['kind']} at width {spec['width']} ended with {ended.returncode}:\n{tail}")
        answer: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
        return answer

    def check(self, size: Size) -> None:
        """Hold PyTorch's logits, losses and count to ours, from our weights. Raises ValueError where they differ."""
        arrays = str(self.folder / "check.npz")
        ours = self.start({**spec_of(self.settings, size, "ours", "float32"), "arrays": arrays}, True)
        theirs = self.start({**spec_of(self.settings, size, "torch eager", "float32"), "arrays": arrays}, True)
        self._check_params(size, "ours", ours)
        self._check_params(size, "torch eager", theirs)
        for what in ("logits", "loss"):
            difference = theirs[f"{what}_difference"]
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{what} of the two models differ by {difference:.2g} where {TOLERANCE:g} is allowed "
                    f"(losses {ours['losses']} and {theirs['losses']}); they must be made equal before they are timed"
                )
        print(
            f"{size.target / 1e6:g}M × {size.context}: the models are the same: {size.params:,} parameters, logits "
            f"within {theirs['logits_difference']:.1g}, losses of {len(theirs['losses'])} steps within "
            f"{theirs['loss_difference']:.1g}"
        )

    def measure(self, size: Size, precision: str) -> Comparison:
        """All rounds of one size at one context."""
        rounds: list[dict[str, float]] = []
        for number in range(self.settings.rounds):
            speeds: dict[str, float] = {}
            for name, asked in order(number, (size.target, precision, CONTENDERS[-1]) not in self.settled):
                key = size.target, precision, name
                setting = self.settled[key] if asked is None else asked
                time.sleep(self.settings.rest)
                answer = self.start(spec_of(self.settings, size, name, precision), setting)
                self._check_params(size, name, answer)
                speed = answer["tokens_per_second"]
                print(f"  {size.target / 1e6:g}M × {size.context} {precision} round {number + 1}: {name}"
                      f"{SETTINGS[name][setting]}: {speed:,.0f} tokens/s", flush=True)  # fmt: skip
                about = {"target": size.target, "context": size.context, "precision": precision, "round": number}
                self.records.append({**about, "contender": name + SETTINGS[name][setting], **answer})
                if speed > speeds.get(name, 0.0):
                    speeds[name], self.settled[key] = speed, setting
            rounds.append(speeds)
            self.measure_peak()
        return compare(rounds)

    def dissect(self, size: Size, result: Comparison) -> tuple[anatomy.Anatomy, anatomy.Anatomy]:
        """Where the time of our step and of PyTorch's faster one goes, in float32."""
        anatomies = []
        best = max(CONTENDERS[1:], key=lambda name: result.medians[name])
        for name, kind in (("ours", "ours"), (best, "torch eager")):
            spec = spec_of(self.settings, size, kind, "float32")
            spec |= {"products": anatomy.products(spec, fused=kind != "ours")}
            time.sleep(self.settings.rest)
            parts = self.start(spec, name == "ours" or self.settled[size.target, "float32", name])
            anatomies.append(anatomy.anatomy(spec, result.medians[name], parts))
        return anatomies[0], anatomies[1]

    def _check_params(self, size: Size, name: str, answer: Mapping[str, Any]) -> None:
        if answer["params"] != size.params:
            raise ValueError(
                f"{name} has {answer['params']:,} parameters at {size.target / 1e6:g}M where the count says "
                f"{size.params:,}; a comparison of unequal models means nothing"
            )


def table(rows: Sequence[tuple[Size, str, Comparison]], peak: float) -> str:
    """The results as lines: sizes down, contenders across."""
    lines = [
        f"{'size':>6} {'context':>7} {'width×depth':>11} {'params non-emb.':>15} {'precision':>9} "
        + " ".join(f"{name:>14}" for name in CONTENDERS)
        + f" {'ours/best torch':>20} {'peak: ours':>10} {'torch':>6}"
    ]
    for size, precision, result in rows:
        best = max(value for name, value in result.medians.items() if name != "ours")
        shares = [value * size.flops_per_token / peak for value in (result.medians["ours"], best)]
        spread = f"{result.ratio:.2f} ({result.lowest:.2f}–{result.highest:.2f})"
        lines.append(
            f"{f'{size.target / 1e6:g}M':>6} {size.context:>7} {f'{size.model.width}×{size.model.depth}':>11} "
            f"{size.params_non_embedding:>15,} {precision:>9} "
            + " ".join(f"{result.medians[name]:>14,.0f}" for name in CONTENDERS)
            + f" {spread:>20} {shares[0]:>10.0%} {shares[1]:>6.0%}"
        )
    return "\n".join(lines)


def torch_version(python: Path) -> str:
    """The PyTorch of an interpreter. Raises ValueError, with the remedy, where it has none."""
    try:
        command = [str(python), "-c", "import numpy, torch; print(torch.__version__)"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = (ended.stderr.strip().splitlines() or ["no message"])[-1] if ended.returncode else None
    except OSError as error:
        problem = str(error)
    if problem is not None:
        raise ValueError(
            f"{python} cannot import PyTorch ({problem}); run `{python} -m pip install torch numpy setuptools`, "
            "or give --torch-python the path of a Python that has them"
        )
    return ended.stdout.strip()


def settle(settings: Settings) -> Settings:
    """The settings with what --quick implies. Raises ValueError for what cannot be measured."""
    for name in ("context", "batch", "rounds", "seconds", "steps_per_dispatch"):
        value = getattr(settings, name)
        if not value or min(value if name == "context" else [value]) <= 0:
            raise ValueError(f"{name} is {value} and must be positive; leave it out for the default")
    if settings.rest < 0:
        raise ValueError(f"rest is {settings.rest} seconds and cannot be negative; give 0 for none")
    if settings.vocabulary != 256 and settings.vocabulary < 258:
        raise ValueError(f"vocabulary is {settings.vocabulary} and must be 256 (bytes) or at least 258; change it")
    if not settings.quick:
        return settings
    return dataclasses.replace(settings, sizes=QUICK, rounds=1, seconds=2.0)


def main() -> None:
    """Check, measure, print; exits with status 2 where the settings or PyTorch are not fit for it."""
    try:
        settings = settle(tyro.cli(Settings, description=__doc__))
        sizes = [size_of(round(n * 1e6), settings.vocabulary, t) for n in settings.sizes for t in settings.context]
        version = torch_version(settings.torch_python)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder))
        peak = bench.measure_peak()
        minutes = predicted_seconds(settings, sizes, peak) / 60
        print(
            f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), float32 matmul {peak / 1e9:.0f} GFLOP/s; "
            f"PyTorch {version}; batch {settings.batch}, vocabulary {settings.vocabulary}\n"
            f"about {math.ceil(minutes)} minutes to go",
            flush=True,
        )
        start = time.perf_counter()
        rows = []
        for precision, checked in plan(settings, sizes):
            for size in checked:
                bench.check(size)
            if not settings.check:
                rows += [(size, precision, bench.measure(size, precision)) for size in sizes]
        inside = [(size, *bench.dissect(size, result)) for size, precision, result in rows if precision == "float32"]
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")
    if rows:
        print(f"\ntokens/s, medians of {settings.rounds}; share of {bench.peak / 1e9:.0f} GFLOP/s by exact FLOPs\n")
        print(table(rows, bench.peak))
        print("\nwhere the time of a step goes: matmuls and attention alone, and what remains\n")
        print(anatomy.table([(f"{size.target / 1e6:g}M", size.context, *both) for size, *both in inside], bench.peak))
    if settings.out is not None:
        results = [
            {**dataclasses.asdict(result), "target": size.target, "context": size.context, "precision": precision,
             "params": size.params,
             "params_non_embedding": size.params_non_embedding, "flops_per_token": size.flops_per_token}
            for size, precision, result in rows
        ]  # fmt: skip
        values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
        content = {"settings": values, "torch": version, "peak_flops": bench.peak, "results": results}
        content["anatomy"] = [
            {"target": size.target, "context": size.context, "ours": vars(ours), "torch": vars(theirs)}
            for size, ours, theirs in inside
        ]
        settings.out.write_text(json.dumps({**content, "measurements": bench.records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
