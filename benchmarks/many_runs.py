"""How long a store of many finished runs takes to read: its status, its DataFrame, and a worker's claim of a new run.

    python -m benchmarks.many_runs --runs 100000

The store is made first, of real records: a sweep of that many finished runs and one that is open. Then each of these is
measured in a fresh process, as its user would start it: `scaling status NAME`; `Store(path).runs(NAME)`; and what a
worker does from reading the sweep to holding the lease of the open run. Limits: 10 s, 10 s, 1 s. The files are in the
page cache, as they are for whoever trains or has just looked.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling import config, parametrization, store
from scaling.config import families, optimizers, schedules, sources, tokenizers
from scaling.store import lease, record

LIMITS = {"scaling status": 10.0, "DataFrame": 10.0, "claim": 1.0}

PROGRAMS = {
    "DataFrame": """
from scaling import store
import pandas, sys, time
start = time.perf_counter()
frame = store.Store(sys.argv[1]).runs("many")
print(time.perf_counter() - start, (frame.status == "finished").sum())
""",
    "claim": """
from scaling.worker import queue; from scaling.store import record; from scaling import store
import sys, time
start = time.perf_counter()
results = store.Store(sys.argv[1])
claims = next(queue.Queue(results, "many").claims("benchmark", {}, lambda item: 1, lambda: False))
print(time.perf_counter() - start, len(claims))
claims[0].lease.release("measured")
""",
}


class Identity:
    """A corpus as far as a record needs it."""

    data_sha256 = "a" * 64
    unique_tokens = 10_000_000
    validation_id = "b" * 16
    tokenizer_id = "bytes"


def base() -> config.Run:
    """A small run of which the others differ in seed and learning rate."""
    return config.Run(
        model=families.Transformer.modern(width=64, depth=2, heads=4),
        parametrization=parametrization.Standard(),
        data=config.Text(
            source=sources.Synthetic(alphabet=8, exponent=1.0, seed=0, train_symbols=8192, validation_symbols=512),
            tokenizer=tokenizers.Bytes(),
            validation_tokens=64,
        ),
        context=16,
        batch_size=2,
        tokens=640,
        optimizer=optimizers.AdamW(learning_rate=0.01),
        schedule=schedules.Constant(warmup=schedules.WarmupFraction(fraction=0.1)),
        precision=config.Precision(compute="float32"),
    )


def fill(place: Path, count: int) -> None:
    """Write a sweep of `count` finished runs and an open one, file by file as workers leave them."""
    results, first = store.Store(place), base()
    counted = record.columns(first, Identity())
    template = record.config_record(first, Identity())
    members = []
    for number in range(count + 1):
        kept = template if number < count else record.config_record(first.edit({"seed": count}), Identity())
        run_id = f"{number:016x}" if number < count else kept["run_id"]
        folder = place / "runs" / run_id
        (folder / "leases").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(kept, indent=2))
        members.append({"run_id": run_id, "labels": {"family": "transformer", "role": "single", "flops_budget": 1e15}})
        if number == count:
            break
        row = {
            **counted, "run_id": run_id, "sweep": "many", "seed": number, "loss": 2.0 + number / count, "loss_se": 0.01,
            "bits_per_byte": 2.9, "seconds": 1.5, "device": "cpu", "status": "finished", "reason": None,
        }  # fmt: skip
        row = {name: row.get(name) for name in store.COLUMNS}
        (folder / "result.json").write_text(json.dumps(row, indent=2))
        for attempt, ended in ((1, None), (2, "published")):
            seal = lease.Attempt(attempt, "host:1", ended=ended, row=row if ended else None)  # type: ignore[arg-type]
            (folder / lease.key_of(attempt)).write_text(json.dumps(vars(seal)))
    sweep = config.Sweep(name="many", base=first)
    results.add_sweep("many", sweep.model_dump(mode="json"), members)


def measured(name: str, place: Path) -> float:
    """Seconds of one of the three, in a process of its own."""
    if name == "scaling status":
        start = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-m", "scaling.cli", "status", "many", "--store", str(place)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "finished" in shown.stdout
        return time.perf_counter() - start
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAMS[name], str(place)], capture_output=True, text=True, check=True
    )
    seconds, count = shown.stdout.split()
    assert int(count) > 0
    return float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="keep the store here, and use it again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.store or Path(folder) / "store"
        if not place.exists():
            start = time.perf_counter()
            fill(place, given.runs)
            print(f"{given.runs:,} finished runs written in {time.perf_counter() - start:.0f} s")
        for name, limit in LIMITS.items():
            times = [measured(name, place) for _ in range(given.repeats)]
            median, span = statistics.median(times), f"({min(times):.2f}–{max(times):.2f})"
            print(f"{name:>15}: {median:6.2f} s {span}, {median / limit:.2f} of its limit")


if __name__ == "__main__":
    main()
