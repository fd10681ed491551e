"""Train the sweeps of `sweeps/` and write down every number, or compare every number with those written down.

    python -m tests.goldens record FILE [--tree DIR] [--only NAME ...]
    python -m tests.goldens compare FILE [--tree DIR] [--only NAME ...]

`--tree` is the checkout whose code trains, by default this one. Only what stays the same when modules move is used:
configs in JSON, `scaling sweep`, and the files of a store. Each sweep has a store, a cache and a core of its own, so
that results depend neither on the number of cores nor on programs compiled before. `compare` ends with exit code 1
where any run id or number differs; columns that the file lacks are listed and allowed. Equality to the last bit
is expected only on the stack and the kind of CPU that the file names.
"""

import argparse
import concurrent.futures
import functools
import gzip
import json
import math
import queue
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.goldens import running

# What no two trainings share: times, rates of work, and the name of the device.
UNMEASURED = {"seconds", "device", "tokens_per_second", "flops_per_second", "mfu", "predicted_seconds"}


def main() -> int:
    """Record or compare; returns the exit code."""
    description, _, usage = str(__doc__).partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.goldens", description=description, epilog=usage, formatter_class=raw
    )
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="JSON, gzipped where the name ends in .gz")
    parser.add_argument("--tree", type=Path, default=running.TREE, help="the checkout whose code trains")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these files of sweeps/")
    given = parser.parse_args()
    names = sorted(path.stem for path in (running.HERE / "sweeps").glob("*.json"))
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"no sweep {', '.join(sorted(unknown))}; choose of {', '.join(names)}")
    names = [name for name in names if name in (given.only or names)]
    tree = given.tree.resolve()
    here = running.stack(tree)
    print("stack:", _listed(here), flush=True)
    if given.action == "compare":
        with _open(given.file, "rt") as file:
            known = json.load(file)
        if here != known["stack"]:
            print("recorded on another stack:", _listed(known["stack"]))
        return compare({name: known["sweeps"][name] for name in names}, train(names, tree))
    found = {"stack": here, "sweeps": train(names, tree)}
    with _open(given.file, "wt") as file:
        json.dump(found, file)
    print(f"written to {given.file}")
    return 0 if all(found["sweeps"].values()) else 1


def _open(path: Path, mode: Any) -> Any:
    return gzip.open(path, mode) if path.suffix == ".gz" else open(path, mode)


def _listed(stack: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in stack.items())


def train(names: Sequence[str], tree: Path) -> dict[str, Any]:
    """What came of each sweep, by name; as many at once as there are cores."""
    begun = time.monotonic()
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in running.cores():
        free.put(core)
    with concurrent.futures.ThreadPoolExecutor(free.qsize()) as pool:
        found = dict(zip(names, pool.map(functools.partial(_sweep, tree, free), names), strict=True))
    print(f"{count(found)} runs trained in {time.monotonic() - begun:.0f} s", flush=True)
    return found


def _sweep(tree: Path, free: "queue.SimpleQueue[int]", name: str) -> dict[str, list[dict[str, Any]]]:
    """Train one sweep on a free core: the runs of each of its stages; none, and a message, where the command fails."""
    core, begun = free.get(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
            store = Path(folder) / "store"
            arguments = ["sweep", f"sweeps/{name}.json", "--store", str(store), "--workers", "1"]
            ended = running.command(arguments, tree, Path(folder) / "cache", core)
            if ended.returncode:
                print(f"{name} FAILED with exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}", flush=True)
                return {}
            stages = {stage.parent.name: collect(store, stage) for stage in sorted(store.glob("sweeps/*/sweep.json"))}
            print(f"{name}: {count({name: stages})} runs in {time.monotonic() - begun:.0f} s", flush=True)
            return stages
    finally:
        free.put(core)


def count(sweeps: dict[str, Any]) -> int:
    """How many runs there are in all stages."""
    return sum(len(runs) for stages in sweeps.values() for runs in stages.values())


def collect(store: Path, stage: Path) -> list[dict[str, Any]]:
    """The runs of a stored sweep in its order: labels, config, result, and metrics by column."""
    runs = []
    for member in json.loads(stage.read_text())["members"]:
        folder = store / "runs" / member["run_id"]
        rows = [json.loads(line) for part in sorted(folder.glob("metrics/*")) for line in part.read_text().splitlines()]
        measured = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation")}
        runs.append(
            {
                "run_id": member["run_id"],
                "labels": _kept(member["labels"]),
                "config": json.loads((folder / "config.json").read_text()),
                "result": _kept(json.loads((folder / "result.json").read_text())),
                **{kind: _columns(rows) for kind, rows in measured.items()},
            }
        )
    return runs


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in UNMEASURED}


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in _kept(row))
    return {name: [row.get(name) for row in rows] for name in names}


def compare(known: dict[str, Any], found: dict[str, Any]) -> int:
    """Print a line a run; returns 1 where anything but new columns differs."""
    wrong, new = 0, dict[str, None]()
    for name, stages in known.items():
        for stage in dict.fromkeys((*stages, *found[name])):
            before, now = stages.get(stage, []), found[name].get(stage, [])
            if len(before) != len(now):
                wrong += 1
                print(f"{stage}: {len(before)} runs recorded, {len(now)} trained")
            for old, run in zip(before, now, strict=False):
                different, told = difference(old, run, new)
                wrong += different
                print(f"{stage} {old['run_id']} {told}")
    print("columns that were not recorded:", ", ".join(new) or "none")
    print(f"{wrong} differ" if wrong else f"all {count(known)} runs equal, names and numbers")
    return 1 if wrong else 0


def difference(old: dict[str, Any], run: dict[str, Any], new: dict[str, None]) -> tuple[bool, str]:
    """Whether two runs differ, and how in words; names that only `run` has are added to `new`."""
    pairs = list(_pairs(old, run, "", new))
    unequal = [(where, a, b) for where, a, b in pairs if repr(a) != repr(b)]
    name = "id equal" if old["run_id"] == run["run_id"] else f"id DIFFERS ({run['run_id']} now)"
    if not unequal:
        return False, f"{name}, {len(pairs)} values equal"
    numbers = [(_relative(a, b), where, a, b) for where, a, b in unequal if _number(a) and _number(b)]
    others = [
        f"{where}: {repr(a)[:100]} before, {repr(b)[:100]} now"
        for where, a, b in unequal
        if not (_number(a) and _number(b))
    ]
    told = [f"{name}, {len(unequal)} of {len(pairs)} values DIFFER"]
    if numbers:
        largest, where, a, b = max(numbers)
        told.append(f"largest relative difference {largest:.2g} in {where}: {a!r} before, {b!r} now")
    return True, "\n    ".join(told + others[:5] + ([f"and {len(others) - 5} more"] if len(others) > 5 else []))


def _pairs(old: Any, run: Any, where: str, new: dict[str, None]) -> Iterator[tuple[str, Any, Any]]:
    """Every value of `old` with the one in the same place of `run`, "missing" where there is none."""
    if isinstance(old, dict) and isinstance(run, dict):
        new.update(dict.fromkeys(f"{where}.{name}".lstrip(".") for name in run if name not in old))
        for name, value in old.items():
            yield from _pairs(value, run.get(name, "missing"), f"{where}.{name}".lstrip("."), new)
    elif isinstance(old, list) and isinstance(run, list) and len(old) == len(run):
        for index, (a, b) in enumerate(zip(old, run, strict=True)):
            yield from _pairs(a, b, f"{where}[{index}]", new)
    else:
        yield where, old, run


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), math.ulp(0.0))


if __name__ == "__main__":
    sys.exit(main())
