"""A store's runs and curves as DataFrames: what the analysis reads."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from scaling import store
from scaling.storage import errors
from scaling.store import columns, record

Row = dict[str, Any]


def runs(results: store.Store, sweep: str | None, settings: Literal["differing", "all", "none"]) -> pd.DataFrame:
    """See `Store.runs`."""
    members = list(_members(results, sweep))
    ended = results.results(member["run_id"] for _, member in members)
    rows = [_row(results, name, member, ended) for name, member in members]
    more = dict.fromkeys(name for row in rows for name in row if name not in columns.COLUMNS)
    names = [*columns.COLUMNS, *sorted(more, key=lambda name: not columns.measured(name))]
    if settings != "none":
        names += [field for field in _add_settings(results, rows, settings) if field not in names]
    return _typed(pd.DataFrame(rows, columns=names))


def curves(results: store.Store, sweep: str | None) -> pd.DataFrame:
    """See `Store.curves`."""
    rows: list[Row] = []
    members = list(_members(results, sweep))
    ended = results.results(member["run_id"] for _, member in members)
    for name, member in members:
        run_id = member["run_id"]
        try:
            points = results.metrics(run_id, "validation")
        except errors.UnreadableError as error:
            warnings.warn(f"run {run_id} is left out of the curves: {error}", stacklevel=2)
            continue
        if points:
            row = _row(results, name, member, ended)
            of_run = {key: row.get(key) for key in columns.OF_RUN}
            rows += [{"run_id": run_id, **columns.derived(point), **of_run} for point in points]
    first = ("run_id", "step", "tokens", "flops", *columns.MEASURED, *columns.OF_RUN)
    rest = dict.fromkeys(name for row in rows for name in row if name not in first)
    return _typed(pd.DataFrame(rows, columns=[*first, *rest]))


def history(results: store.Store, run_id: str) -> pd.DataFrame:
    """See `Store.history`."""
    return pd.DataFrame(results.metrics(run_id, "train"))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Measurements as floats, also where all are missing."""
    return frame.astype({name: "float64" for name in frame if columns.measured(str(name))})


def _members(results: store.Store, sweep: str | None) -> Iterator[tuple[str | None, store.SweepMember]]:
    """Runs with the sweep that their row names: the one asked for, or the first that lists one without result."""
    if sweep is not None:
        for member in results.sweep(sweep)["members"]:
            yield sweep, member
        return
    listed: dict[str, tuple[str | None, store.SweepMember]] = {}
    for name in results.sweeps():
        for member in results.sweep(name)["members"]:
            labels = {key: value for key, value in member["labels"].items() if key in columns.COLUMNS}
            listed.setdefault(member["run_id"], (name, store.SweepMember(run_id=member["run_id"], labels=labels)))
    run_ids = results.run_ids()
    ended = results.ended(run_ids)
    for run_id in dict.fromkeys((*run_ids, *listed)):  # of a listed run the folder may be missing
        bare = (None, store.SweepMember(run_id=run_id, labels={}))
        yield bare if run_id in ended else listed.get(run_id, bare)


def _row(results: store.Store, sweep: str | None, member: store.SweepMember, ended: Mapping[str, Row]) -> Row:
    run_id = member["run_id"]
    try:
        row = ended.get(run_id) or results.result(run_id) or _open(results, run_id)
    except errors.UnreadableError as error:
        row = {"run_id": run_id, "sweep": None, **_damaged(error)}
    return {**columns.derived(row), **member["labels"], **({} if sweep is None else {"sweep": sweep})}


def _open(results: store.Store, run_id: str) -> Row:
    """The row of a run without a result. Raises UnreadableError where it is damaged."""
    counted = record.counted(results, run_id)
    status = results.status(run_id)
    ended = {"status": status["status"], "reason": status["reason"] or None}
    return {**counted, **dict.fromkeys(columns.MEASURED), "device": status["device"], "sweep": None, **ended}


def _damaged(reason: object) -> Row:
    return {"status": store.DAMAGED, "reason": str(reason)}


def _add_settings(results: store.Store, rows: Sequence[Row], which: Literal["differing", "all"]) -> list[str]:
    """Give rows the config fields in which they differ, or all, under their dotted names; returns the names.

    What a row has already under a name stays. A run whose config cannot be read is damaged: it keeps what was measured.
    """
    known = results.settings
    known.read(results.files, [row["run_id"] for row in rows])
    fields = known.all(_ids(rows)) if which == "all" else differing(results, rows)
    for row in rows:
        row |= {**known.of(row["run_id"], fields), **row}
        if row["run_id"] in known.damaged and row["status"] != store.DAMAGED:
            row |= _damaged(known.damaged[row["run_id"]])
    return fields


def differing(results: store.Store, rows: Sequence[Row]) -> list[str]:
    """The config fields in which the runs of rows differ; of trunks the role says that they are others."""
    runs = [row for row in rows if row.get("role") != "trunk"]
    corpora = {row["data_sha256"] for row in runs if row.get("data_sha256")}
    return results.settings.differing(_ids(runs), one_corpus=len(corpora) < 2)


def _ids(rows: Iterable[Row]) -> list[str]:
    return [row["run_id"] for row in rows]
