"""Show how far a sweep is: a table, once or live, and plain lines where the output is no terminal."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rich.console
import rich.live
import rich.table
import rich.text

from scaling import human, store
from scaling.launch import rate_limiter
from scaling.store import record, settings

if TYPE_CHECKING:
    import pandas as pd

    from scaling.launch import launcher

ORDER = ("running", "failed", "damaged", "diverged", "finished", "planned")
STYLES = {
    "finished": "green", "diverged": "yellow", "failed": "red", "damaged": "red", "running": "cyan", "planned": "dim",
}  # fmt: skip
LEFT_ALIGNED = ("run", "model")  # columns of words; those of numbers end at the right
COLUMNS = (*LEFT_ALIGNED, "params", "tokens", "FLOPs", "lr", "seed")
SHOWN = ("family", "width", "depth", "tokens", "learning_rate", "seed")  # what they say
LATER = ("step", "loss", "seconds", "status", "owner")


def table(results: store.Store, sweep: str, rows: int | None = None) -> rich.table.Table:
    """A row a run, running ones first where only so many `rows` are wanted, and the counts of each status above.

    The config fields in which the runs differ are columns, but those that others say.
    """
    return _table(results, sweep, results.runs(sweep), rows)


def show(results: store.Store, sweep: str, rows: int | None, console: rich.console.Console) -> None:
    """Print the table, and what is wrong with damaged runs below it, with the remedies."""
    frame = results.runs(sweep)
    console.print(_table(results, sweep, frame, rows))
    for row in frame[frame["status"] == store.DAMAGED][:rows].to_dict("records"):
        line = f"{row['run_id']} is damaged: {row['reason']}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(results: store.Store, sweep: str, frame: "pd.DataFrame", rows: int | None) -> rich.table.Table:
    counts = Counter(frame["status"])
    shown = (
        frame.sort_values("status", key=lambda column: column.map(ORDER.index), kind="stable").head(rows)
        if rows
        else frame
    )
    left_out = len(frame) - len(shown)
    grid = rich.table.Table(
        title=f"{sweep}: {summary(counts)}",
        title_justify="left",
        caption=f"{left_out:,} more runs are not shown" if left_out else None,
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    runs, one_corpus = frame[["run_id", "role"]].to_dict("records"), frame["data_sha256"].nunique() < 2
    fields = settings.beside(_differing(results, runs, one_corpus), SHOWN)
    for name in (*COLUMNS, *fields, *LATER):
        grid.add_column(name, justify="left" if name in (*LEFT_ALIGNED, "status", "owner") else "right", no_wrap=True)
    for row in shown.to_dict("records"):
        grid.add_row(*_cells(results, {str(name): value for name, value in row.items()}, fields))
    return grid


def _cells(results: store.Store, row: Mapping[str, Any], fields: Sequence[str]) -> list[rich.text.Text | str]:
    step, owner = _progress(results, row)
    show_reason = isinstance(row["reason"], str) and row["status"] != store.DAMAGED  # theirs is below the table
    words = f"{row['status']}: {row['reason']}" if show_reason else row["status"]
    known = not math.isnan(row["params"])  # of a damaged run nothing may be known
    return [
        row["run_id"],
        f"{row['family']} {row['width']:.0f}×{row['depth']:.0f}" if known else "",
        human.count(row["params"]) if known else "",
        human.count(row["tokens"]) if known else "",
        f"{row['flops']:.3g}" if known else "",
        *(human.value(row[name]) for name in ("learning_rate", "seed", *fields)),
        step,
        human.measured(row["loss"], row["loss_se"]),
        "" if math.isnan(row["seconds"]) else f"{row['seconds']:.1f}",
        rich.text.Text(words, STYLES[row["status"]]),
        owner,
    ]


def _progress(results: store.Store, row: Mapping[str, Any]) -> tuple[str, str]:
    """How far a run is in steps, and who trains it."""
    if row["status"] not in (*store.OPEN, "finished"):
        return "", ""
    steps = row["tokens"] // row["batch_tokens"]
    if row["status"] == "finished":
        return f"{steps:,.0f}", ""
    status = results.status(row["run_id"])
    return (f"{status['step']:,}/{steps:,.0f}", status["owner"]) if status["attempt"] else (f"{steps:,.0f}", "")


def summary(counts: Mapping[str, int]) -> str:
    """`12 finished, 2 running, 32 planned`."""
    order = ("finished", "diverged", "failed", "damaged", "running", "planned")
    return ", ".join(f"{counts[name]} {name}" for name in order if name in counts) or "no runs"


def follow(
    results: store.Store,
    sweep: str,
    launched: "launcher.Workers | None" = None,
    *,
    console: rich.console.Console | None = None,
) -> None:
    """Show a sweep until its runs are over: live in a terminal, else a line a run that ends.

    With `launched`, until its workers are done; Ctrl-C then stops them, and returns when their runs are saved.
    """
    console = console or rich.console.Console(soft_wrap=True)
    if console.is_terminal:
        with rich.live.Live(console=console, auto_refresh=False, transient=True) as live:
            _wait(results, sweep, launched, _Live(results, sweep, console, live).tick)
        show(results, sweep, None, console)
    else:
        _wait(results, sweep, launched, _Lines(results, sweep, console).tick)
    _tell(launched, console)


def _wait(
    results: store.Store,
    sweep: str,
    launched: "launcher.Workers | None",
    show: Callable[["launcher.Workers | None"], None],
) -> None:
    limited = rate_limiter.RateLimited(lambda: show(launched))
    if launched is not None:
        launched.wait(limited.call_if_due)
        limited.call()
        return
    while any(status in store.OPEN for status in results.statuses(sweep).values()):
        limited.call_if_due()
        time.sleep(rate_limiter.SECONDS)
    limited.call()


class _Live:
    """The table in a terminal, as much of it as fits."""

    def __init__(self, results: store.Store, sweep: str, console: rich.console.Console, live: rich.live.Live):
        self.results, self.sweep, self.console, self.live = results, sweep, console, live

    def tick(self, launched: "launcher.Workers | None") -> None:
        _tell(launched, self.console)
        self.live.update(table(self.results, self.sweep, max(5, self.console.height - 5)), refresh=True)


class _Lines:
    """A line for each run that ends, with how many of all have."""

    def __init__(self, results: store.Store, sweep: str, console: rich.console.Console):
        self.results, self.sweep, self.console = results, sweep, console
        self.statuses = results.statuses(sweep)
        self.settings = _fields_shown(results, sweep)
        self._print(f"{sweep}: {summary(Counter(self.statuses.values()))}")

    def tick(self, launched: "launcher.Workers | None") -> None:
        _tell(launched, self.console)
        before, self.statuses = self.statuses, self.results.statuses(self.sweep)
        ended = sum(status not in store.OPEN for status in before.values())
        for run_id, status in self.statuses.items():
            if status not in store.OPEN and before.get(run_id) != status:
                ended += 1
                self._print(f"{ended}/{len(self.statuses)} ended · {run_id} {self._ending(run_id, status)}")

    def _ending(self, run_id: str, status: str) -> str:
        row = None if status == store.DAMAGED else self.results.result(run_id)
        if row is None:
            return f"{status}: {self.results.status(run_id)['reason']}"
        loss = human.measured(row["loss"], row["loss_se"])
        how = f"loss {loss}" if status == "finished" else f"{status}: {row['reason']}"
        return f"{record.describe(row)}{self.settings[run_id]} {how} ({row['seconds']:.0f} s)"

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)


def _differing(results: store.Store, rows: Sequence[Mapping[Any, Any]], one_corpus: bool) -> list[str]:
    """The config fields in which runs differ, trunks left out."""
    run_ids = [row["run_id"] for row in rows if row.get("role") != "trunk"]
    return results.settings.differing(run_ids, one_corpus=one_corpus)


def _fields_shown(results: store.Store, sweep: str) -> dict[str, str]:
    """What tells the runs of a sweep apart, besides family, size and tokens, in words that go after these."""
    members = results.sweep(sweep)["members"]
    run_ids = [member["run_id"] for member in members]
    results.settings.read(results.files, run_ids)
    differing = _differing(results, [{**member["labels"], "run_id": member["run_id"]} for member in members], False)
    fields = settings.beside(differing, ("family", "width", "depth", "tokens"))
    shown = {run_id: results.settings.of(run_id, fields).items() for run_id in run_ids}
    return {
        run_id: "".join(f", {name} {human.value(value)}" for name, value in of_run if value is not None)
        for run_id, of_run in shown.items()
    }


def _tell(launched: "launcher.Workers | None", console: rich.console.Console) -> None:
    for line in launched.take_messages() if launched is not None else ():
        console.print(line, markup=False, highlight=False)
