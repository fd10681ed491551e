"""`scaling table`: the runs of a store or a CSV as a table, printed or written to a file."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console
import rich.table

from scaling import human, store
from scaling.commands import analysing
from scaling.commands.arguments import RunTable
from scaling.store import columns, settings

MAIN = ("sweep", "family", "role", "width", "depth", "params", "tokens", "flops", "learning_rate", "seed")
LATER = ("loss", "loss_se", "perplexity", "status", "reason")
WRITERS = (".csv", ".parquet")


def show(rows: RunTable, out: Path | None) -> None:
    """Write the rows to `out`; without it print them: what tells runs apart in a terminal, else all as CSV."""
    if out is not None and out.suffix not in WRITERS:
        raise ValueError(f"--out {out} is neither .csv nor .parquet; end its name with one of these")
    analysing.saved(out, "table")
    frame = _typed(_read(rows))
    if out is not None:
        if out.suffix == ".csv":
            frame.to_csv(out, index=False)
        else:
            _flat(frame).to_parquet(out, index=False)
        print(f"{len(frame):,} rows of {len(frame.columns)} columns in {out}")
    elif sys.stdout.isatty():
        rich.console.Console().print(table(frame))
    else:
        frame.to_csv(sys.stdout, index=False)


def _read(rows: RunTable) -> pd.DataFrame:
    """All runs, of every sweep where none is named."""
    if not rows.is_store or rows.sweep is not None:
        return analysing.read(rows, ())[0]
    results = store.Store(rows.data)
    return analysing.filtered(analysing.of_store(results, None, analysing.named(rows.where)), rows.where)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers whole, also where a damaged run lacks them."""
    whole = {column.name: "Int64" for column in columns.TABLE if column.dtype == "int" and column.name in frame}
    return frame.astype({name: kind for name, kind in whole.items() if frame[name].map(_is_whole).all()})


def _is_whole(value: object) -> bool:
    return value is None or value != value or (isinstance(value, int | float) and float(value).is_integer())


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """With text in the columns of lists, or of values of several types, which parquet cannot hold."""

    def several(series: pd.Series) -> bool:
        kinds = {type(value) for value in series.dropna()}
        return len(kinds) > 1 or not kinds.isdisjoint((list, dict))

    changed = {str(name): frame[name].map(str, na_action="ignore") for name in frame if several(frame[name])}
    return frame.assign(**changed)


def table(frame: pd.DataFrame) -> rich.table.Table:
    """What tells runs apart: the columns and config fields in which they differ, and what was measured."""
    shown = rich.table.Table(box=None, pad_edge=False)
    names = _apart(frame)
    for name in names:
        number = pd.api.types.is_numeric_dtype(frame[name])
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in frame[names].to_dict("records"):
        shown.add_row(*(_cell(str(name), value) for name, value in row.items()))
    return shown


def _apart(frame: pd.DataFrame) -> list[str]:
    """The columns of a table for a terminal."""
    varying = [str(name) for name in frame if name not in LATER and len(frame[name].map(str).unique()) > 1]
    fixed = {*MAIN, *(column.name for column in columns.TABLE if column.fields)}
    said = [name for name in varying if name in fixed]
    fields = settings.beside([name for name in varying if name not in columns.COLUMNS], said)
    later = [name for name in LATER if name in frame and frame[name].notna().any()]
    return [name for name in dict.fromkeys(("run_id", *said, *fields, *later)) if name in frame]


def _cell(name: str, value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    return f"{value:.4f}" if name in LATER and isinstance(value, float) else human.value(value)
