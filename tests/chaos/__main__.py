"""Disturb a sweep of real workers and real runs, and compare it with one that was left alone.

    python -m tests.chaos                 # 60 runs, 4 workers, faults for ten minutes
    python -m tests.chaos --short         # 12 runs, faults for 20 seconds

First the sweep is trained without faults. Then again, in a store on a small file system of its own, while workers are
killed, asked to stop, paused for longer than their lease, and the disk is filled. Ends with 0 if every run has one
result that never changed, each bit as in the undisturbed sweep, and no file is left that a store does not document.

A full disk is a tmpfs that a file takes up, mounted in a mount namespace of this program's own: as root, or as root of
a user namespace. Where neither may be had this fault is left out, and the program says so.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from scaling import store
from tests.chaos import checks, disk, supervisor, sweeps

SIZES = {
    "full": {"widths": (16, 32, 48), "seeds": 8, "trunks": 3, "steps": 5000},
    "short": {"widths": (16, 32), "seeds": 2, "trunks": 1, "steps": 800},
}
DISK_BYTES = 192 * 2**20
LEASE_SECONDS = 4.0
LONGEST_PAUSE = 120.0  # without a run that ends or a fault: then one has failed, or something hangs
TICK_SECONDS = 0.05
TOLD_SECONDS = 15.0


def main() -> int:
    """Run it; returns 0, or 1 where something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few runs and few faults")
    parser.add_argument("--seconds", type=float, help="how long faults are dealt (600, or 20)")
    parser.add_argument("--every", type=float, help="seconds between two faults, on average (3, or 1.5)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, help="of the faults; one of the clock's by default")
    given = parser.parse_args()
    seconds = given.seconds if given.seconds is not None else 20.0 if given.short else 600.0
    every = given.every if given.every is not None else 1.5 if given.short else 3.0
    seed = given.seed if given.seed is not None else time.time_ns() % 2**32

    lacking = disk.in_own_namespace(["-m", "tests.chaos", *sys.argv[1:]])
    settings = sweeps.sweep(**SIZES["short" if given.short else "full"])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # equality bit for bit is promised there
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, contextlib.ExitStack() as mounted:
        place = Path(name)
        os.environ["SCALING_CACHE"] = str(place / "cache")
        undisturbed = sweeps.plant(place / "undisturbed", settings)
        watch = checks.Watch(undisturbed)
        print(f"{len(watch.files)} runs, {given.workers} workers, seed {seed}", flush=True)
        took = train(
            supervisor.Supervisor(undisturbed, given.workers, LEASE_SECONDS, place / "errors-undisturbed"), watch
        )
        print(f"undisturbed: every run finished in {took:.0f} s", flush=True)

        space = None if lacking else mounted.enter_context(disk.Disk(place / "disk", DISK_BYTES))
        disturbed = sweeps.plant(place / "disk" / "store", settings)
        watch = checks.Watch(disturbed)
        workers = supervisor.Supervisor(disturbed, given.workers, LEASE_SECONDS, place / "errors")
        faults = supervisor.Faults(workers, space, seed, every, seconds)
        took = train(workers, watch, faults)
        report(disturbed, faults, took)
        found = watch.violations + checks.violations(disturbed, undisturbed)
        told = checks.faults(disturbed)
        if told["preempted"] > faults.counts["SIGTERM"]:
            found.append(f"{told['preempted']} attempts were preempted by {faults.counts['SIGTERM']} SIGTERMs")
        if not told:
            found.append("no attempt ended by a fault: nothing was disturbed")
        if lacking:
            print(f"the disk was never full: no file system can be mounted here ({lacking})")
        for violation in found:
            print(f"VIOLATED {violation}")
        if found:
            kept = tempfile.mkdtemp(prefix="chaos-violated-")
            shutil.copytree(disturbed.path, f"{kept}/disturbed")
            shutil.copytree(undisturbed.path, f"{kept}/undisturbed")
            shutil.copytree(place / "errors", f"{kept}/errors")
            print(f"copies of both stores are in {kept}, with what workers wrote on standard error")
    print("violated" if found else "every run finished once, with the undisturbed losses bit for bit; no stray files")
    return 1 if found else 0


def train(workers: supervisor.Supervisor, watch: checks.Watch, faults: supervisor.Faults | None = None) -> float:
    """Keep workers running until every run has ended and they have, and deal faults meanwhile.

    Returns the seconds that it took. Gives up where nothing happens for long: then runs are left.
    """
    start = told = moved = time.monotonic()
    happened = 0
    try:
        while True:
            now = time.monotonic()
            ended = watch.look()
            over, dealing = ended == len(watch.files), faults is not None and not faults.over
            if faults is not None:
                if dealing and not over:
                    faults.tick()
                else:
                    faults.stop()
            if not workers.tick(restart=not over) and over:
                return now - start
            before, happened = happened, ended + (0 if faults is None else faults.counts.total())
            if happened > before:
                moved = now
            if now - moved > LONGEST_PAUSE:
                return now - start
            if now - told > TOLD_SECONDS:
                told = now
                dealt = "" if faults is None else ", " + shown(faults.counts)
                print(f"  {now - start:.0f} s: {ended} of {len(watch.files)} runs have ended{dealt}", flush=True)
            time.sleep(TICK_SECONDS)
    finally:
        workers.end()


def report(results: store.Store, faults: supervisor.Faults, took: float) -> None:
    """Print the counts of each fault, and what came of them."""
    attempts = Counter(checks.attempts(results).values())
    print(f"disturbed: every run ended in {took:.0f} s, {faults.workers.starts} workers were started")
    print("fault            times   seconds")
    for kind in supervisor.KINDS:
        print(f"  {kind:12} {faults.counts[kind]:7}   {faults.seconds[kind]:7.0f}")
    print(f"workers ended by: {shown(faults.workers.ends)}")
    print(f"attempts ended by, as the store counted: {shown(checks.faults(results))}")
    print("attempts a run:   " + ", ".join(f"{runs} runs took {number}" for number, runs in sorted(attempts.items())))


def shown(counts: Counter[str]) -> str:
    """Counts in a line."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
