"""`scaling plan`: the runs of a sweep and their cost, as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from scaling import config, devices, human, memory, store
from scaling.config import loading
from scaling.data import corpus as corpora
from scaling.launch.launchers import local
from scaling.planning import plan, timing

COLUMNS = (
    "run", "model", "params", "non-emb.", "tokens", "epochs", "FLOPs", "6ND", "steps", "lr", "seed", "memory", "time",
)  # fmt: skip
SHOWN = ("family", "width", "depth", "tokens", "learning_rate", "seed")  # what they say


def show(path: Path, overrides: Sequence[str], store_path: str, device: str) -> None:
    """Print the plan of a sweep. Writes nothing and starts no backend."""
    sweep = loading.load(path, overrides)
    results = store.Store(store_path)
    resolved = plan.resolve(sweep, corpora.find, results)
    limit = _limit(sweep, resolved, device)
    plan.check_memory(resolved.all, sweep.execution, limit, device, results)
    rates = timing.rates(device, results)
    console = rich.console.Console(width=None if rich.get_console().is_terminal else 200)

    total = {"flops": 0.0, "tokens": 0, "seconds": 0.0, "todo": 0.0}
    ladder = []
    for stage, runs in (("tune stage", resolved.tune), ("trunks", resolved.trunks), ("sweep", resolved.runs)):
        if not runs:
            continue
        rows = [plan.row(p, rates.of(p.run, sweep.execution), sweep.execution, limit, device == "cpu") for p in runs]
        states = [_state(row["run_id"], results) for row in rows]
        title, differing = f"{sweep.name}: {stage}, {len(rows)} runs", plan.settings(runs, SHOWN)
        console.print(_table(title, rows, differing, states, bool(resolved.pending)))
        for row, state in zip(rows, states, strict=True):
            total["flops"] += row["flops_spent"]
            total["tokens"] += row["tokens"] * row["flops_spent"] / row["flops"]
            total["seconds"] += row["seconds"]
            total["todo"] += 0.0 if state in ("finished", "diverged") else row["seconds"]
        ladder = rows
    console.print(
        f"total {total['flops']:.3g} FLOPs, {total['tokens']:,.0f} tokens, {human.duration(total['seconds'])} of one "
        f"worker on {device} ({human.duration(total['todo'])} to do); rates of training by size: {rates.source}"
    )
    if resolved.trunks:
        console.print(saving(resolved))
    packs = plan.packs(resolved, sweep.execution, device, limit)
    if packs < len(resolved.all):
        console.print(f"{len(resolved.all)} runs train as {packs} programs on {device}, packed where that pays")
    if any(p.corpus is None for p in resolved.all):
        console.print(f"the text is not prepared: run names and epochs are known after `scaling prepare {path}`")
    if resolved.pending:
        console.print(f"learning rates of the sweep are those of the base run until it is tuned: {resolved.pending}")
    for warning in plan.warnings(resolved, ladder):
        console.print(f"warning: {warning}", markup=False)


def _limit(sweep: config.Sweep, resolved: plan.Plan, device: str) -> float | None:
    """Bytes that a device has for arrays, of a CPU the share of each worker; None where that is not known."""
    if device != "cpu":
        return devices.memory_bytes(device)
    mesh = sweep.execution.mesh
    workers = local.default_workers(plan.largest_need(resolved.all, sweep.execution), mesh)
    return memory.share(min(workers or len(devices.cores()), len(resolved.all))) / mesh.least


def saving(resolved: plan.Plan) -> str:
    """What trunks save, in a line."""
    branches = [p for p in resolved.runs if p.labels.get("role") == "branch"]
    if not branches:
        return f"{len(resolved.trunks)} trunks have no run left to start"
    spent = sum(plan.flops_spent(p) for p in (*branches, *resolved.trunks))
    whole = sum(plan.row(p, 1.0, config.Execution())["flops"] for p in branches)
    return (
        f"{len(resolved.trunks)} trunks are the start of {len(branches)} runs: {spent:.3g} FLOPs instead of "
        f"{whole:.3g}, {1 - spent / whole:.0%} saved"
    )


def _state(run_id: str | None, results: store.Store) -> str:
    return "" if run_id is None else results.status(run_id)["status"]


def _table(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    differing: Sequence[Mapping[str, Any]],
    states: Sequence[str],
    pending: bool,
) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in (*COLUMNS, *differing[0], "status"):
        table.add_column(name, justify="left" if name in ("run", "model", "status") else "right", no_wrap=True)
    for row, more, state in zip(rows, differing, states, strict=True):
        table.add_row(
            row["run_id"] or "–",
            f"{row['family']} {row['width']}×{row['depth']}",
            f"{row['params']:,}",
            f"{row['params_non_embedding']:,}",
            f"{row['tokens']:,}",
            "?" if row["epochs"] is None else f"{row['epochs']:.2f}",
            f"{row['flops']:.3g}",
            f"{row['flops_6nd']:.3g}",
            f"{row['steps']:,}",
            f"{row['learning_rate']:.3g}" + ("?" if pending else ""),
            str(row["seed"]),
            human.size(row["memory_bytes"]) + _parts(row),
            human.duration(row["seconds"]),
            *map(human.value, more.values()),
            state,
        )
    return table


def _parts(row: Mapping[str, Any]) -> str:
    """The microbatch, where it is not the whole batch."""
    return "" if row["microbatch"] == row["batch_size"] else f" ({row['microbatch']} of {row['batch_size']})"
