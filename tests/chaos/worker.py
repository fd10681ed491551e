"""A worker as `scaling worker` is one, but on one core and with a short lease.

    python -m tests.chaos.worker CORE LEASE_SECONDS STORE SWEEP

One core and so one thread: the order of sums is the same in every attempt at a run. A lease that is short: a worker
need not be paused for a minute to lose its run. Nobody else needs to set it, so it is no option of the command.
"""

import os
import sys

from scaling import cli, store

BEATS = 4  # heartbeats in the seconds of a lease


def main() -> None:
    """Be a worker; ends with its exit code."""
    core, seconds, *rest = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})

    class Store(store.Store):
        def __init__(self, path: str):
            super().__init__(path, heartbeat_seconds=float(seconds) / BEATS, lease_seconds=float(seconds))

    store.Store = Store  # type: ignore[misc]
    sys.argv[1:] = ["worker", *rest]
    cli.main()


if __name__ == "__main__":
    main()
