"""Seconds from `scaling sweep` to the first training step, with compiled programs kept from before and without.

    python -m benchmarks.startup --repeats 5

Each start is what a user's is: a fresh process of the command line and a fresh store, for the demo's base run with two
seeds, a worker a core. The text is prepared before. Cold is a cache folder without compiled programs; warm is one where
the same sweep has trained before. The files of the environment are in the page cache in both. The clock starts before
the command does; a step is over when its loss stands in the store, and a dispatch is one step here, so that no more
than the first steps are waited for. What there is to see from outside (a worker's log, a lease) splits the time.

Two more warm starts are told to speak, which slows them: one of every import (`-X importtime`), one of what JAX traces,
lowers, compiles or loads. Their seconds say where to look, not how long a start takes. CPU seconds are those of the
command and of its busiest worker until the first step: a machine that others use too shows them all the same.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import tyro

from scaling.config import loading
from scaling.data import corpus

CONFIG = Path(__file__).parents[1] / "configs" / "demo.py"
NAME = "startup"
OVERRIDES = (
    f"name={NAME}",
    'grid={"kind": "axis", "field": "seed", "values": [0, 1]}',
    'learning_rate={"kind": "as_given"}',
    "execution.steps_per_dispatch=1",
    'base.schedule={"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0}}',
    "base.tokens=2048",  # four steps, after which there is nothing to wait for but the report
    "base.data.validation_tokens=4096",
)
CPU = "(CPU seconds to the first step)"
MARKS = ("worker started", "run claimed", "first step", "first step of the last worker", "report written")
POLL_SECONDS = 0.01
LIMIT_SECONDS = 300.0  # of one start, after which something is wrong

IMPORT = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|( +)(\S+)")
JAX_WORK = re.compile(
    r"Finished (tracing|jaxpr to MLIR module conversion|XLA compilation of) (?:jit\()?([\w<>]+)\)?"
    r".*? in ([\d.]+) sec"
)
WORK_NAMES = {
    "tracing": "trace",
    "jaxpr to MLIR module conversion": "lower",
    "XLA compilation of": "compile or load",
}
ENTRY = re.compile(r"jit_(\w+?)_?-[0-9a-f]+-cache")  # of JAX's cache of compiled programs


@dataclasses.dataclass(frozen=True)
class Settings:
    """How often to start."""

    repeats: int = 5
    """Starts of each kind; warm and cold take turns."""
    rest: float = 1.0
    """Seconds of rest before each."""
    workers: int | None = None
    """As for `scaling sweep`."""
    out: Path | None = None
    """A file for the results as JSON."""


def marks_of(store: Path) -> dict[str, bool]:
    """Which of `MARKS` a store shows."""
    runs = store / "runs"
    logs = list((store / "sweeps" / NAME / "logs").glob("*.log"))
    steps = sum(file.stat().st_size > 0 for file in runs.glob("*/metrics/*.jsonl"))
    return {
        "worker started": bool(logs),
        "run claimed": any(runs.glob("*/leases/*")),
        "first step": steps >= 1,
        "first step of the last worker": steps >= len(logs) > 0,
        "report written": any((store / "sweeps" / NAME / "report").glob("*.html")),
    }


def cpu_seconds(command: psutil.Process) -> float:
    """CPU seconds of a process and of its busiest child: what they would take on cores that nobody else uses."""
    spent = []
    for process in [command, *command.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent.append(times.user + times.system)
    return spent[0] + max(spent[1:], default=0.0)


def watched(command: Sequence[str], environment: Mapping[str, str], store: Path) -> tuple[dict[str, float], str]:
    """Seconds until each mark and until the end of a command, and its standard error.

    Raises RuntimeError where it fails or takes longer than `LIMIT_SECONDS`.
    """
    seen: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=stderr)
        while process.poll() is None:
            now = time.perf_counter() - start
            for mark, there in marks_of(store).items():
                if there:
                    seen.setdefault(mark, now)
            if "first step" in seen and CPU not in seen:
                seen[CPU] = cpu_seconds(psutil.Process(process.pid))
            if now > LIMIT_SECONDS:
                process.terminate()
                process.wait()
            time.sleep(POLL_SECONDS)
        seen["end"] = time.perf_counter() - start
        stderr.seek(0)
        errors = stderr.read()
    missing = [mark for mark in (*MARKS, CPU) if mark not in seen]
    if process.returncode or missing:
        raise RuntimeError(f"{command} ended with {process.returncode} and without {missing}:\n{errors[-2000:]}")
    return seen, errors


class Bench:
    """Starts sweeps in stores of their own under one folder."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        self.folder = folder
        self.starts = 0
        self.caches = {kind: folder / kind for kind in ("warm", "cold")}
        for cache in self.caches.values():
            os.environ["SCALING_CACHE"] = str(cache)
            for point in loading.load(CONFIG, OVERRIDES).points()[:1]:
                corpus.prepare(point.run.data, lambda line: None)

    def start(self, kind: str, variables: Mapping[str, str] | None = None) -> tuple[dict[str, float], str]:
        """One start; `variables` are added to its environment. Returns its marks, and what it and its workers told."""
        if kind == "cold":
            shutil.rmtree(self.caches["cold"] / "compiled", ignore_errors=True)
        self.starts += 1
        store = self.folder / f"store{self.starts}"
        workers = [] if self.settings.workers is None else ["--workers", str(self.settings.workers)]
        command = [sys.executable, "-m", "scaling.cli", "sweep", str(CONFIG), "--store", str(store), *workers]
        for override in OVERRIDES:
            command += ["--set", override]
        environment = {**os.environ, "SCALING_CACHE": str(self.caches[kind]), **(variables or {})}
        time.sleep(self.settings.rest)
        marks, errors = watched(command, environment, store)
        log = min((store / "sweeps" / NAME / "logs").glob("*.log"))
        return marks, f"{errors}\n{LAUNCHER_ENDS}\n{log.read_text(errors='replace')}"


LAUNCHER_ENDS = "---- the first worker ----"


def imports(lines: Iterable[str]) -> dict[str, float]:
    """Seconds that each package took to import, itself and without what it imports, from `-X importtime`."""
    seconds: collections.Counter[str] = collections.Counter()
    for line in lines:
        if match := IMPORT.match(line):
            seconds[match[4].partition(".")[0]] += int(match[1])
    return {name: spent / 1e6 for name, spent in seconds.most_common()}


def compiling(lines: Iterable[str]) -> dict[tuple[str, str], float]:
    """Seconds that JAX spent on (function, trace | lower | compile or load).

    A function that was traced within another counts in both.
    """
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    for line in lines:
        if match := JAX_WORK.search(line):
            seconds[match[2], WORK_NAMES[match[1]]] += float(match[3])
    return dict(seconds)


def programs(cache: Path) -> list[str]:
    """The names of the compiled programs in a cache folder, one an entry."""
    return sorted(match[1] for path in cache.rglob("*-cache") if (match := ENTRY.fullmatch(path.name)))


def medians(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median over starts of the seconds until each mark."""
    return {mark: statistics.median(start[mark] for start in starts) for mark in (*MARKS, "end", CPU)}


def table(kinds: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Marks down; medians of each kind of start across, with their range."""
    lines = [f"{'seconds until':36}" + "".join(f"{kind:>24}" for kind in kinds)]
    for mark in (*MARKS, "end", CPU):
        cells = []
        for starts in kinds.values():
            values = [start[mark] for start in starts]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})")
        lines.append(f"{mark:36}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def breakdown(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Print and return where a warm start's time goes, by imports and by JAX's own log."""
    _, text = bench.start("warm", {"PYTHONPROFILEIMPORTTIME": "1"})
    answer: dict[str, Any] = {}
    for who, part in zip(("command", "worker"), text.split(LAUNCHER_ENDS), strict=True):
        packages = imports(part.splitlines())
        answer[f"imports of the {who}"] = packages
        most = ", ".join(f"{name} {spent:.2f}" for name, spent in list(packages.items())[:10])
        say(f"imports of the {who} to its end, profiled: {sum(packages.values()):.2f} s: {most}")
    before = programs(bench.caches["warm"])
    _, text = bench.start("warm", {"JAX_LOG_COMPILES": "1"})
    missed = collections.Counter(programs(bench.caches["warm"])) - collections.Counter(before)
    seconds = compiling(text.partition(LAUNCHER_ENDS)[2].splitlines())
    for name in dict.fromkeys(name for name, _ in seconds):
        parts = {what: seconds[name, what] for what in WORK_NAMES.values() if (name, what) in seconds}
        if sum(parts.values()) >= 0.01:
            say(f"  {name}: " + ", ".join(f"{what} {spent:.2f}" for what, spent in parts.items()))
    names = ", ".join(missed.elements()) or "none"
    say(f"programs in the cache: {len(before)}; compiled by a warm start although they should have been there: {names}")
    answer["jax"] = [{"function": name, "what": what, "seconds": spent} for (name, what), spent in seconds.items()]
    return {**answer, "cached": before, "missed": list(missed.elements())}


def main() -> None:
    """Start, measure, print."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.repeats < 1:
        raise SystemExit(f"{settings.repeats} repeats measure nothing; give at least 1")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder))
        bench.start("warm")  # fills its cache
        kinds: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
        for number in range(settings.repeats):
            for kind in ("warm", "cold") if number % 2 == 0 else ("cold", "warm"):
                marks, _ = bench.start(kind)
                kinds[kind].append(marks)
                print(f"  {kind}: first step after {marks['first step']:.2f} s", flush=True)
        print(f"\n{len(os.sched_getaffinity(0))} cores, medians of {settings.repeats} and ranges\n\n{table(kinds)}\n")
        details = breakdown(bench, print)
    if settings.out is not None:
        content = {"medians": {kind: medians(starts) for kind, starts in kinds.items()}, "starts": kinds, **details}
        settings.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
