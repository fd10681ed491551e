"""Tables of runs that other people made: a CSV with a row a run."""

import os
import pathlib
from collections.abc import Sequence

import pandas as pd

from analysis import checks, errors

REQUIRED = ("params", "tokens", "loss")


def read_csv(path: str | os.PathLike[str], required: Sequence[str] = REQUIRED) -> pd.DataFrame:
    """The table in `path`, with the columns `required` present, numeric, positive and finite in finished rows.

    Raises `Refused` (a ValueError) that says what is wrong with the file and what to do.
    """
    source = pathlib.Path(path)
    if not source.is_file():
        what = "a folder" if source.is_dir() else "not there"
        raise errors.Refused(f"{source} is {what}: pass a CSV file with columns {', '.join(required)}")
    try:
        frame = pd.read_csv(source, encoding="utf-8")
        header = pd.read_csv(source, encoding="utf-8", header=None, nrows=1, dtype=str).iloc[0].dropna().str.strip()
    except pd.errors.EmptyDataError as error:
        raise errors.Refused(f"{source} is empty; it needs a header with {', '.join(required)}") from error
    except pd.errors.ParserError as error:
        raise errors.Refused(f"{source} cannot be read as CSV ({str(error).strip()}); fix that line") from error
    except UnicodeDecodeError as error:
        raise errors.Refused(
            f"{source} is not UTF-8 text ({error.reason} at byte {error.start}); export it as CSV"
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise errors.Refused(
            f"{source}: its rows have more fields than its header has names ({len(header)}), so which value belongs to "
            "which column cannot be told; name every column, or drop the separators at the ends of rows"
        )
    if header.duplicated().any():
        raise errors.Refused(
            f"{source} has several columns {header[header.duplicated()].iloc[0]!r}: which one counts cannot be told; "
            "rename or drop the others"
        )
    frame.columns = frame.columns.str.strip()
    if len(frame.columns) == 1 and (split := [mark for mark in (";", "\t", "|") if mark in str(header.iloc[0])]):
        raise errors.Refused(f"{source} separates its columns by {split[0]!r}, not by commas; export it with commas")
    if not len(frame):
        raise errors.Refused(f"{source} has a header and no rows; it needs a row a run")
    check(frame, required, str(source))
    return frame


def check(frame: pd.DataFrame, required: Sequence[str], what: str) -> None:
    """Refused unless the columns `required` are there, numeric, positive and finite in the finished rows of `frame`."""
    for name in required:
        checks.column(checks.runs(frame, cluster="").frame, name, what)


def present(frame: pd.DataFrame, required: Sequence[str], what: str) -> None:
    """Refused unless the columns `required` are there; whether a law can use their values is for its fit to say."""
    for name in required:
        checks.there(frame, name, what)
