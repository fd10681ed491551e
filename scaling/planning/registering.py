"""Writes a planned sweep and its runs to the store. No JAX here."""

from collections.abc import Mapping, Sequence
from typing import Any

from scaling import config, schema, store
from scaling.planning import plan, timing
from scaling.store import record


def register(
    name: str,
    sweep: config.Sweep,
    planned: Sequence[plan.Planned],
    results: store.Store,
    predicted: timing.Rates | None = None,
) -> str:
    """Write a sweep and its runs to the store; what is there already stays as it is. Returns what a person should know.

    With rates, each run that is not trained yet gets a label `predicted_seconds`; one that it has stays as it was
    first written. Where the data has changed since the sweep was planned, its runs on the old data make room for those
    on the new. Raises ValueError, before anything is written, where the store has a sweep of this name with runs that
    this lacks for another reason.
    """
    before = {m["run_id"]: m["labels"] for m in results.sweep(name)["members"]} if name in results.sweeps() else {}
    lost = [run_id for run_id in before if run_id not in {p.run_id for p in planned}]
    message = ""
    if any(before[run_id].get("role") != "trunk" for run_id in lost):  # trunks come and go with their branches
        message = _set_aside(name, sweep, planned, results, lost)
    members = []
    for p in planned:
        assert p.run_id is not None
        assert p.corpus is not None
        results.add_run(p.run_id, record.config_record(p.run, p.corpus))
        labels = dict(p.labels)
        if "predicted_seconds" in before.get(p.run_id, {}):
            labels["predicted_seconds"] = before[p.run_id]["predicted_seconds"]
        elif predicted is not None and plan.result(p, results) is None:
            rate = predicted.of(p.run, sweep.execution)
            labels["predicted_seconds"] = timing.work(p.run, sweep.execution, plan.flops_spent(p)) / rate
        members.append({"run_id": p.run_id, "labels": labels})
    results.add_sweep(name, sweep.model_dump(mode="json"), members)
    return message


NOT_OF_RUNS = ("execution", "trackers", "tracking")  # fields of a sweep; stores of before have `tracking`


def _grid(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the runs of a stored sweep, but for the content of its data."""
    fields_of = schema.dotted(config.Sweep, stored)
    return {name: value for name, value in fields_of.items() if name.split(".")[0] not in NOT_OF_RUNS}


def _set_aside(
    name: str, sweep: config.Sweep, planned: Sequence[plan.Planned], results: store.Store, lost: Sequence[str]
) -> str:
    """Keep the runs of a sweep on data that has changed as a sweep of another name, where any of them has a result.

    Raises ValueError where the runs were lost for another reason: another grid under an old name.
    """
    old = results.sweep(name)
    results.settings.read(results.files, lost)
    now = {p.corpus.data_sha256 for p in planned if p.corpus is not None}
    then = {results.config(run_id)["data"]["data_sha256"] for run_id in lost if run_id not in results.settings.damaged}
    if not then or then & now or _grid(old["config"]) != _grid(sweep.model_dump(mode="json")):
        raise ValueError(
            f"{results.path} has a sweep {name!r} of {len(old['members'])} runs, {len(lost)} of which are not in this "
            "one; give this sweep another name (--set name=…) or another store"
        )
    message = f"the data has changed since {name} was planned: {len(lost)} runs on the old data are not part of it now"
    if not results.ended(lost):
        return message
    stem, tune = (name.removesuffix(".tune"), ".tune") if name.endswith(".tune") else (name, "")
    aside = f"{stem}.{min(then)[:8]}{tune}"
    results.add_sweep(aside, old["config"], [member for member in old["members"] if member["run_id"] in set(lost)])
    return f"{message}; they are the sweep {aside}"
