"""`scaling table`: the runs of a store or a CSV as a table, printed or written to a file."""

import sys
from pathlib import Path

import pandas as pd
import rich.console
import rich.table

from scaling import human, store
from scaling.commands import analysing
from scaling.commands.arguments import Rows
from scaling.store import columns, settings

SHOWN = ("run_id", "sweep", "family", "width", "depth", "params", "tokens", "flops", "learning_rate", "seed")
LATER = ("loss", "loss_se", "perplexity", "bits_per_byte", "status", "reason")
WRITERS = (".csv", ".parquet")


def show(rows: Rows, out: Path | None) -> None:
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


def _read(rows: Rows) -> pd.DataFrame:
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
    """What tells runs apart: the main columns, the config fields in which they differ, and measurements."""
    fields = settings.beside([str(name) for name in frame if name not in columns.COLUMNS], SHOWN)
    names = [name for name in (*SHOWN, *fields, *LATER) if name in frame and frame[name].notna().any()]
    shown = rich.table.Table(box=None, pad_edge=False)
    for name in names:
        number = pd.api.types.is_numeric_dtype(frame[name])
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in frame[names].to_dict("records"):
        shown.add_row(*(human.value(None if pd.isna(value) is True else value) for value in row.values()))
    return shown
