"""Public tables of measurements: fetched from their source, checked, cached and tidied to the project's columns.

`load(name)` gives one row a run (or a checkpoint, where `describe(name)` says so) with the columns of a run's record
(params, tokens, flops, loss, …), and `params_convention` and `flops_convention`, which say what the source counts.
It looks in the folder named by SCALING_DATASETS for the tidy file first, then in the cache (`datasets/` under
SCALING_CACHE, else under ~/.cache/scaling), then downloads; the table is the same whichever way it came. Some sources
cannot be downloaded: their tidy file has to be in the folder, and the refusal says which.

Imports pandas and the standard library only, and of `analysis` only `errors`. `sources` is the table of what there is
(from `runs`, `families` and `curves`), `tidying` reads the bytes of a source, `fetching` gets them.
"""

import difflib
import os
import pathlib

import pandas as pd

from analysis import errors
from analysis.datasets import tidying
from analysis.datasets.entry import Entry
from analysis.datasets.fetching import fetch
from analysis.datasets.sources import ENTRIES

__all__ = ["ENTRIES", "NAMES", "Entry", "describe", "fetch", "load"]

NAMES = tuple(ENTRIES)


def load(name: str) -> pd.DataFrame:
    """The public table of that name, in the project's columns; the index is 0, 1, ….

    Raises `Refused` for an unknown name, for a table that can neither be found nor downloaded (with what to get and
    where to put it), and for a file whose SHA-256, columns or number of rows are not what they must be.
    """
    entry = _entry(name)
    if path := _placed(entry):
        frame, origin = tidying.read(path), str(path)
    elif entry.tidy is not None:
        frame, origin = entry.tidy(fetch(entry)), entry.url
    else:
        raise errors.Refused(
            f"{name} cannot be downloaded from here: it was made from {entry.source} (commit {entry.commit}) by hand. "
            f"Put it, tidied, as {entry.file} in the folder named by SCALING_DATASETS{_now()}: {entry.rows} rows with "
            f"columns {', '.join(entry.columns)}"
        )
    return _annotated(entry, _checked(entry, frame, origin))


def describe(name: str) -> str:
    """What the table is: paper, source, licence, rows, what is counted, and the meaning of each column."""
    entry = _entry(name)
    download = f"downloaded from {entry.url}, SHA-256 {entry.sha256}" if entry.sha256 else "not downloadable"
    lines = [
        f"{name}: {entry.rows} rows",
        f"paper: {entry.paper}",
        f"source: {entry.source} (commit {entry.commit}); {download}",
        f"tidy file in SCALING_DATASETS: {entry.file}",
        f"licence: {entry.licence}",
        f"parameters: {'; '.join(_conventions(entry.params_convention))}",
        f"FLOPs: {'; '.join(_conventions(entry.flops_convention))}",
    ]
    meanings = {entry.renames.get(column, column): meaning for column, meaning in entry.columns.items()}
    shown = {column: meaning for column, meaning in {**meanings, **entry.added}.items() if column not in entry.dropped}
    width = max(map(len, shown))
    return "\n".join([*lines, "columns:", *(f"  {column:{width}}  {meaning}" for column, meaning in shown.items())])


def _entry(name: str) -> Entry:
    if name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.5) or list(ENTRIES)
    raise errors.Refused(f"dataset {name!r} is unknown; name one of {', '.join(near)}")


def _placed(entry: Entry) -> pathlib.Path | None:
    """The tidy file in the folder named by SCALING_DATASETS, where both are there."""
    named = os.environ.get("SCALING_DATASETS")
    if not named:
        return None
    folder = pathlib.Path(named).expanduser()
    if not folder.is_dir():
        raise errors.Refused(f"SCALING_DATASETS is {named}, which is no folder; set it to the one with the tidy tables")
    return folder / entry.file if (folder / entry.file).is_file() else None


def _now() -> str:
    return f" (now {os.environ['SCALING_DATASETS']})" if os.environ.get("SCALING_DATASETS") else " (now unset)"


def _checked(entry: Entry, frame: pd.DataFrame, origin: str) -> pd.DataFrame:
    """The frame without the columns that are dropped; `Refused` where columns or rows are not those of the table."""
    frame = frame.drop(columns=[column for column in entry.dropped if column in frame.columns])
    expected = [column for column in entry.columns if column not in entry.dropped]
    missing = [column for column in expected if column not in frame.columns]
    more = [str(column) for column in frame.columns if column not in expected]
    if missing or more:
        raise errors.Refused(
            f"{origin} is not {entry.name}: it lacks the columns {', '.join(missing) or 'none'} and has "
            f"{', '.join(more) or 'none'} besides; the table has {', '.join(entry.columns)}. Put the right file there"
        )
    if len(frame) != entry.rows:
        raise errors.Refused(
            f"{origin} is not {entry.name}: it has {len(frame)} rows, the table has {entry.rows}. Put the whole file "
            "there; choose rows from what load returns"
        )
    return frame[expected]


def _annotated(entry: Entry, frame: pd.DataFrame) -> pd.DataFrame:
    """The project's names, the columns that the table implies, and what the source counts."""
    frame = frame.rename(columns=entry.renames)
    if entry.finish is not None:
        frame = entry.finish(frame)
    counts = {"params_convention": entry.params_convention, "flops_convention": entry.flops_convention}
    return frame.assign(
        **{
            column: frame[convention.column].map(convention.texts) if isinstance(convention, tidying.By) else convention
            for column, convention in counts.items()
        }
    )


def _conventions(convention: str | tidying.By) -> list[str]:
    if isinstance(convention, str):
        return [convention]
    return [f"{convention.column} = {value}: {text}" for value, text in convention.texts.items()]
