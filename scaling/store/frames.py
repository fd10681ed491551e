"""A store's runs and curves as DataFrames: what the analysis reads."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from scaling import store
from scaling.store import record


def runs(results: store.Store, sweep: str | None) -> pd.DataFrame:
    """See `Store.runs`."""
    members = list(_members(results, sweep))
    ended = results.results(member["run_id"] for _, member in members)
    rows = [_row(results, member["run_id"], name, member["labels"], ended) for name, member in members]
    labels = dict.fromkeys(name for row in rows for name in row if name not in store.COLUMNS)
    frame = pd.DataFrame(rows, columns=[*store.COLUMNS, *labels])
    return frame.astype(dict.fromkeys(store.MEASURED, "float64"))


def curves(results: store.Store, sweep: str | None) -> pd.DataFrame:
    """See `Store.curves`."""
    rows = []
    members = list(_members(results, sweep))
    ended = results.results(member["run_id"] for _, member in members)
    for name, member in members:
        run_id = member["run_id"]
        points = results.metrics(run_id, "validation")
        if points:
            row = _row(results, run_id, name, member["labels"], ended)
            rows += [{"run_id": run_id, **point, **{key: row[key] for key in store.OF_RUN}} for point in points]
    first = ("run_id", "step", "tokens", "flops", "loss", "loss_se", "bits_per_byte", "seconds", *store.OF_RUN)
    rest = dict.fromkeys(name for row in rows for name in row if name not in first)
    frame = pd.DataFrame(rows, columns=[*first, *rest])
    return frame.astype(dict.fromkeys(store.MEASURED, "float64"))


def history(results: store.Store, run_id: str) -> pd.DataFrame:
    """See `Store.history`."""
    return pd.DataFrame(results.metrics(run_id, "train"))


def _members(results: store.Store, sweep: str | None) -> Iterator[tuple[str | None, store.Member]]:
    """Runs with the sweep that their row names: the one asked for, or the first that lists one without result."""
    if sweep is not None:
        for member in results.sweep(sweep)["members"]:
            yield sweep, member
        return
    listed: dict[str, tuple[str | None, store.Member]] = {}
    for name in results.sweeps():
        for member in results.sweep(name)["members"]:
            labels = {key: value for key, value in member["labels"].items() if key in store.COLUMNS}
            listed.setdefault(member["run_id"], (name, store.Member(run_id=member["run_id"], labels=labels)))
    run_ids = results.run_ids()
    ended = results.ended(run_ids)
    for run_id in run_ids:
        bare = (None, store.Member(run_id=run_id, labels={}))
        yield bare if run_id in ended else listed.get(run_id, bare)


def _row(
    results: store.Store,
    run_id: str,
    sweep: str | None,
    labels: Mapping[str, Any],
    ended: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    row = ended.get(run_id) or results.result(run_id)
    if row is None:
        status = results.status(run_id)
        row = {**_counted(results, run_id), **dict.fromkeys(store.MEASURED), "device": status["device"]}
        row |= {"sweep": None, "status": status["status"], "reason": status["reason"] or None}
    return {**row, **labels, **({} if sweep is None else {"sweep": sweep})}


def _counted(results: store.Store, run_id: str) -> dict[str, Any]:
    """The counted columns of a run that has no result, from its config, which never changes."""
    if run_id not in results.counted:
        results.counted[run_id] = {"run_id": run_id, **record.columns(*record.read(results.config(run_id)))}
    return results.counted[run_id]
