"""`scaling report` and `plot`: figures of a table of runs, of a store's sweep, or of a saved fit."""

from pathlib import Path

import pandas as pd
from matplotlib import figure

import analysis
from analysis import definitions, frontiers, plots
from scaling import store
from scaling.commands import analysing
from scaling.commands.arguments import Table
from scaling.config import rates


def report(
    table: Table, out: Path | None, title: str | None, notes: tuple[str, ...] = (), resamples: int = 1000
) -> None:
    """Write figures and report, and print the summary."""
    frame, name = analysing.read(table, (table.loss,))
    curves = None
    if table.is_store:
        results = store.Store(table.data)
        curves = results.curves(name)
        out = out or results.sweep_folder(name) / "report"
        notes = (*notes, *learning_rate_notes(results, name))
    columns = analysing.renamed(table)
    if unknown := set(columns) - {"params"}:
        raise ValueError(f"--column {sorted(unknown)[0]}: a report takes another column for params only; rename it")
    summary = analysis.report.write(
        frame,
        out or table.file.with_suffix(""),
        title or f"Scaling law: {name}",
        curves,
        notes,
        loss=table.loss,
        params=columns.get("params", "params"),
        resamples=resamples,
    )
    print("\n".join(summary.lines))


def learning_rate_notes(results: store.Store, name: str) -> tuple[str, ...]:
    """How the learning rates of a sweep were chosen, in sentences for its report."""
    rule = rates.Rule.model_validate(results.sweep(name)["config"]["learning_rate"])
    used = sorted(set(results.runs(name, settings="none")["learning_rate"].dropna()))
    if not used:
        return ()
    span = f"{used[0]:.3g}" if len(used) == 1 else f"{used[0]:.3g} to {used[-1]:.3g}"
    return (f"Learning rates: {rule.describe()} In this sweep: {span}.",)


def plot(
    table: Table, x: str | None, y: str | None, hue: str | None, out: Path, suffix: str, law: str | None = None
) -> None:
    """Draw a saved fit, or the runs of a CSV or a store: one column against another where `x` is given."""
    if x is None and (y, hue) != (None, None):
        raise ValueError("--y and --hue belong to --x, the column across; give it too")
    if table.file.suffix == ".json":
        if x is not None:
            raise ValueError(f"{table.file} is a saved fit, and --x draws runs; give the store or CSV of the runs")
        drawn = of_fit(analysing.saved_fit(table.file, law))
        stem = table.file.stem
    elif law is not None:
        raise ValueError(f"--law belongs to a saved fit, and {table.data} holds runs; leave it out")
    elif x is not None:
        up = y or table.loss
        frame, stem = analysing.read(table, (), tuple(filter(None, (x, up, hue))))
        name = "_".join(filter(None, (up, x, hue))).replace("/", "-")
        drawn = {name: plots.metric(frame, x, up, hue)}
    else:
        frame, stem = analysing.read(table, (table.loss,))
        drawn = of_runs(frame, table)
    out.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawn.items():
        print(plots.save(drawing, out / f"{stem}_{name}.{suffix}"))


def of_fit(fitted: analysis.Fit) -> dict[str, figure.Figure]:
    """Residuals, the profile of every free parameter, and the curve or the frontier."""
    free = [name for name in fitted.params if name not in fitted.fixed]
    drawn = {
        "residuals": plots.residuals(fitted),
        "profiles": plots.profiles([fitted.profile(name) for name in free]),
    }
    if len(fitted.law.inputs) == 1:
        drawn["curve"] = plots.curve(fitted, fitted.bootstrap())
    elif fitted.law.allocates:
        try:
            drawn["fitted_law"] = plots.fitted(frontiers.of_fit(fitted), fitted.runs)
        except analysis.Refused as reason:
            print(f"no frontier: {reason}")
    return drawn


def of_runs(frame: pd.DataFrame, table: Table) -> dict[str, figure.Figure]:
    """Loss against compute and parameters, and the iso-FLOP curves where the runs have them (else the reason)."""
    costed, statements = definitions.complete(frame, ("params", "tokens", "flops"))
    for line in statements:
        print(line)
    drawn = {
        "loss_compute": plots.loss_compute(costed, loss=table.loss),
        "loss_params": plots.loss_params(costed, loss=table.loss),
    }
    try:
        drawn["isoflop"] = plots.isoflop(costed, analysis.frontier(costed, 2, loss=table.loss), loss=table.loss)
    except analysis.Refused as reason:
        print(f"no iso-FLOP curves: {reason}")
    return drawn
