"""`scaling sweep`, `worker` and `status`: train what a store lacks, and show how far it is."""

import collections
import contextlib
from collections.abc import Sequence
from pathlib import Path

from scaling import store
from scaling.commands.arguments import Table
from scaling.config import loading
from scaling.launch import launcher as launchers
from scaling.launch import stages
from scaling.storage import errors


def run(
    config: Path,
    overrides: Sequence[str],
    store_path: str,
    workers: int | None,
    retry_failed: bool,
    kind: str,
    cluster: Sequence[str],
    dry_run: bool,
) -> int:
    """Train a sweep, then report on it. Returns 0, or 1 where runs are left without a result."""
    sweep = loading.load(config, overrides)
    launcher = launchers.load(kind, cluster)  # which the config may define
    own = config if config.suffix == ".py" else None
    if dry_run:
        print(stages.describe(sweep, store_path, launcher, workers, own))
        return 0
    reported = _import_report if len(sweep.points()) > 1 else None
    done = stages.run(
        sweep,
        store_path,
        workers=workers,
        launcher=launcher,
        retry_failed=retry_failed,
        config_path=own,
        meanwhile=reported,
    )
    if not done:
        what = "start the workers as above, and" if launcher.manual else "start"
        print(f"not all runs have a result yet; {what} the same command again to go on (store {store_path})")
        return 1
    if reported:
        from scaling.commands import drawing  # SciPy and matplotlib: seconds, which no worker waits for

        drawing.report(Table(store_path, sweep.name), None, None)
    return 0


def _import_report() -> None:
    """What the report imports takes some seconds, which a core has while the last runs train on the others.

    A failure is ignored here, so that the runs go on; the report raises it again.
    """
    with contextlib.suppress(ImportError):
        from scaling.commands import drawing  # noqa: F401


def work(store_path: str, name: str, config: Path | None, retry_failed: bool) -> int:
    """Be a worker. Returns the documented exit code."""
    from scaling.worker import main

    if config is not None:
        loading.module(config)  # the kinds of families, trackers and the like that it defines
    return main.main(store.Store(store_path), name, retry_failed=retry_failed)


def status(store_path: str, name: str | None, follow: bool, rows: int) -> None:
    """Print the table of a sweep, or the list of sweeps."""
    import rich.console

    from scaling.launch import watch

    results = store.Store(store_path)
    if not results.exists():
        raise ValueError(f"there is no store at {store_path}; give its folder with --store")
    if name is None:
        for each in results.sweeps():
            print(f"{each}: {_counts(results, each)}")
        return
    if follow:
        watch.follow(results, name)
    else:
        width = None if rich.get_console().is_terminal else 10_000  # a pipe or a file takes every column whole
        watch.show(results, name, rows, rich.console.Console(width=width))


def _counts(results: store.Store, sweep: str) -> str:
    """How many runs of a sweep have each status, or why that cannot be said."""
    try:
        counts = collections.Counter(results.statuses(sweep).values())
    except errors.UnreadableError as error:
        return f"damaged: {error}"
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())
