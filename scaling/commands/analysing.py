"""`scaling fit`, `predict`, `compare`, `backtest`, `next`: what a table of runs says, printed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis import frontiers, laws, members, prediction, tables
from scaling import schema, store
from scaling.commands.arguments import Objective, RunTable, Table
from scaling.config import loading
from scaling.launch import environments


def read(table: RunTable, required: Sequence[str], also: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """The runs of a table and the name they go by.

    `required` are the columns that a CSV must have; `also` are config fields that runs of a store have as columns
    though they do not differ in them, as those of --where. Compiled fits are kept between processes.
    Raises ValueError where the store has several sweeps and none is named, or a filter leaves no rows.
    """
    for setting, value in environments.compiled_programs().items():
        os.environ.setdefault(setting, value)
    if table.is_store:
        results = store.Store(table.data)
        name = one_sweep(results, table.sweep)
        return filtered(of_store(results, name, (*also, *named(table.where))), table.where), name
    if table.sweep is not None:
        raise ValueError(f"{table.data} is no store, so it has no sweep {table.sweep!r}; leave --sweep out for a CSV")
    frame = filtered(analysis.read_csv(table.file, ()), table.where)
    tables.present(frame, required, str(table.data))
    return frame, table.file.stem


def of_store(results: store.Store, sweep: str | None, columns: Sequence[str]) -> pd.DataFrame:
    """The runs of a store, of one sweep or all, with the config fields that differ and those among `columns`."""
    frame = results.runs(sweep)
    if all(name in frame for name in columns):
        return frame
    whole = results.runs(sweep, settings="all")
    return whole[[name for name in whole if name in frame or name in columns]]


def named(where: Sequence[str]) -> list[str]:
    """The columns that filters name."""
    return [pair(text, "--where", "COLUMN=VALUE, for example split=fit")[0] for text in where]


def filtered(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """The rows that have every VALUE in its COLUMN: a number, `null` where it is missing, JSON or text."""
    for text, column in zip(where, named(where), strict=True):
        if column not in frame:
            raise ValueError(f"--where {text}: no column {column!r}; the table has {', '.join(map(str, frame))}")
        series, value = frame[column], text.partition("=")[2]
        kept = frame[_holds(series, value, text)]
        if not len(kept):
            there = ", ".join(map(str, series.drop_duplicates().iloc[:6]))
            raise ValueError(f"--where {text} leaves none of {len(frame)} rows; the column holds {there}")
        frame = kept
    return frame


def _holds(series: pd.Series, value: str, text: str) -> pd.Series:
    """Where a column holds a value that was given as text."""
    if value == "null":
        return series.isna()
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return series == next(iter(numbers([text], "--where").values()))
    wanted = schema.parse_value(value)
    return series.map(lambda cell: str(cell) == value or (type(cell) is type(wanted) and cell == wanted)).astype(bool)


def one_sweep(results: store.Store, sweep: str | None) -> str:
    if sweep is not None:
        return sweep
    names = [name for name in results.sweeps() if not name.endswith(".tune")]
    if len(names) != 1:
        raise ValueError(
            f"{results.path} holds {len(names)} sweeps ({', '.join(names) or 'none'}); name one with --sweep"
        )
    return names[0]


def pair(text: str, option: str, form: str) -> tuple[str, str]:
    """NAME=VALUE in two; ValueError says how to write it."""
    given, equals, value = text.partition("=")
    if not (given and equals and value):
        raise ValueError(f"{option} {text!r} names no two things; write {form}")
    return given, value


def numbers(texts: Sequence[str], option: str) -> dict[str, float]:
    """NAME=NUMBER as a dictionary."""
    values = {}
    for text in texts:
        name, value = pair(text, option, "NAME=NUMBER")
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"{option} {text}: {value!r} is no number; write NAME=NUMBER") from None
    return values


def renamed(table: Table) -> dict[str, Any]:
    """The columns that inputs are read from, where they have other names."""
    return dict(pair(text, "--column", "INPUT=COLUMN, for example x=flops") for text in table.columns)


def options(table: Table, objective: Objective) -> dict[str, Any]:
    """The arguments of `analysis.fit` that the command line gave."""
    arguments: dict[str, Any] = {"objective": objective.objective, "delta": objective.delta, **renamed(table)}
    if objective.weights is not None:
        arguments["weights"] = objective.weights
    if objective.cluster is not None:
        arguments["cluster"] = objective.cluster
    if objective.fix:
        arguments["fixed"] = numbers(objective.fix, "--fix")
    return arguments


def law_named(text: str) -> analysis.Law:
    """The law of a name, or of FILE.py or FILE.py:NAME.

    Raises ValueError where the file defines none, none of this name, several and none is named, or one that bears the
    name of a law that ships.
    """
    file, _, name = text.partition(":")
    if not file.endswith(".py"):
        return laws.get(text)
    defined = [value for value in vars(loading.module(Path(file))).values() if isinstance(value, analysis.Law)]
    own = {law.name: law for law in defined if laws.LAWS.get(law.name) is not law}
    if taken := [known for known in own if known in laws.LAWS]:
        raise ValueError(f"{file} calls a law {taken[0]!r}, as one that ships is called; rename it")
    if not own:
        raise ValueError(f"{file} defines no law; define one at its top level with analysis.law(...)")
    if name not in own and (name or len(own) > 1):
        wrong = f"no law {name!r}" if name else f"{len(own)} laws"
        raise ValueError(f"{file} defines {wrong}; name one of {', '.join(f'{file}:{known}' for known in own)}")
    return own[name] if name else next(iter(own.values()))


def saved_fit(path: Path, law: str | None) -> analysis.Fit:
    """A saved fit; `law` says where its law is defined, if that does not ship."""
    return analysis.load(path, None if law is None else law_named(law))


def predicted(table: Table, at: dict[str, float]) -> dict[str, Any]:
    """The columns that a prediction by several laws reads its inputs from, where they have other names.

    Raises ValueError where a column or a value is given for what is no input of it.
    """
    columns = renamed(table)
    for option, given in (("--column", columns), ("--at", at)):
        if unknown := [name for name in given if name not in members.NAMES]:
            raise ValueError(
                f"{option} {unknown[0]}={given[unknown[0]]}: a prediction from runs takes {', '.join(members.NAMES)}, "
                f"and no {unknown[0]!r}; leave it out, or fit a law that takes it: scaling fit … --law … "
                "--save fit.json"
            )
    return columns


def saved(path: Path | None, what: str) -> None:
    """ValueError where `path` is no place for a file."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        wrong = f"{path} is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise ValueError(
            f"{wrong}: the {what} cannot be saved there; make the folder, or name a file in one that is there"
        )


def fit(table: Table, law: str, objective: Objective, resamples: int, save: Path | None) -> None:
    """Fit a law, print its parameters with intervals and its checklist."""
    saved(save, "fit")
    if save is not None and save.suffix != ".json":
        raise ValueError(f"--save {save}: a saved fit is told from a CSV by its suffix; name it {save.stem}.json")
    given, form = options(table, objective), law_named(law)
    frame, name = read(table, [table.loss])
    fitted = analysis.fit(form, frame, loss=table.loss, **given)
    boot = fitted.bootstrap(resamples)
    if save is not None:
        fitted.save(save)  # before anything is printed: the reader of a pipe may have enough early
    print(f"{name}: {fitted.law.equation}")
    vague = {one for group in fitted.diagnostics.undetermined for one in group}
    for parameter, value in fitted.params.items():
        if parameter in fitted.fixed:
            print(f"  {parameter} = {value:.5g}   fixed")
            continue
        doubt = "   (not determined by these runs)" if parameter in vague else ""
        print(f"  {parameter} = {value:.5g}   {boot.interval_text(parameter)}{doubt}")
    for warning in boot.warnings:
        print(f"  warning: {warning}")
    print(fitted.checklist("intervals above: of resampled runs"))
    if save is not None:
        print(f"saved to {save}")


def predict(path: Path, at: dict[str, float], inference_tokens: float | None, law: str | None = None) -> None:
    """Print what several laws fitted to the runs of a saved fit predict together, then what its own law says alone."""
    fitted = saved_fit(path, law)
    if fitted.law.allocates and set(at) == {"flops"}:
        if not inference_tokens:
            calibrated(fitted, at)
        allocate(fitted, at["flops"], inference_tokens)
        return
    if inference_tokens is not None:
        raise ValueError("--inference-tokens belongs to --flops alone: it is what a budget is shared with")
    if missing := [name for name in fitted.law.inputs if name not in at]:
        options = ", ".join(f"--{name}" if name in members.NAMES else f"--at {name}=VALUE" for name in missing)
        raise ValueError(f"the law {fitted.law.name} needs {options}; give them")
    if unused := [name for name in at if name not in fitted.law.inputs]:
        raise ValueError(
            f"the law {fitted.law.name} takes {', '.join(fitted.law.inputs)}, not {', '.join(unused)}; leave those out"
        )
    if fitted.law.allocates:
        calibrated(fitted, at)
    boot = fitted.bootstrap()
    mean, run = (boot.predict_interval(at, 0.95, noise=noise) for noise in (False, True))
    where = ", ".join(f"{name} {value:.4g}" for name, value in at.items())
    print(
        f"if {fitted.law.name} is right, at {where}: loss {float(fitted.predict(at).item()):.4f}, 95% interval "
        f"{mean[0].item():.4f} to {mean[1].item():.4f}; of a single run {run[0].item():.4f} to {run[1].item():.4f}"
    )
    for warning in boot.warnings:
        print(f"warning: {warning}")


def downstream(table: Table, at: dict[str, float], metric: str, cluster: str | None = None) -> None:
    """Print the accuracy or error of a new run, predicted from its size by way of the loss."""
    columns = predicted(table, at)
    if cluster is not None:
        raise ValueError(
            f"--cluster {cluster}: --metric takes runs alone; keep the last row of each run, and leave it out"
        )
    frame, _ = read(table, [table.loss, metric])
    print(analysis.downstream(frame, at, metric, table.loss, **columns).summary())


def calibrated(fitted: "analysis.Fit", at: dict[str, float]) -> None:
    """Print the prediction whose interval counts that the law may be wrong, or why the runs do not carry one."""
    runs = fitted.runs.assign(row=range(len(fitted.runs)))  # two seeds of one loss repeat each other in all else
    try:
        printed = together(analysis.predictor(runs, cluster="cluster" if fitted.clusters else None), at)
    except analysis.Refused as reason:
        printed = f"no prediction by several laws: {reason}"
    print(printed)


def of_runs(table: Table, at: dict[str, float], cluster: str | None = None) -> None:
    """Print what several laws fitted to the runs of a table predict together."""
    columns = predicted(table, at)
    frame, _ = read(table, [table.loss])
    print(together(analysis.predictor(frame, loss=table.loss, cluster=cluster, **columns), at))


def together(predictor: prediction.Predictor, at: dict[str, float]) -> str:
    """What laws say together: of FLOPs alone, what they should buy; else the loss at a size."""
    if set(at) == {"flops"}:
        return predictor.allocate(at["flops"]).summary()
    return predictor.predict(at).summary()


def allocate(fitted: "analysis.Fit", flops: float, inference_tokens: float | None) -> None:
    """Print the best way to spend a budget."""
    frontier = frontiers.of_fit(fitted)
    spent = frontier.allocate(flops, inference_tokens or 0.0)
    print(
        f"if {fitted.law.name} is right, at {flops:.3g} FLOPs: params {spent.params}, tokens {spent.tokens}, "
        f"loss {spent.loss}"
    )
    for line in frontier.statements:
        print(f"made by {line}" if line == frontier.statements[0] else line)
    for line in (*frontier.warnings, *spent.warnings):
        print(f"warning: {line}")


def compare(table: Table, candidates: Sequence[str], objective: Objective, hold_out: str, origins: int) -> None:
    """Print laws side by side, the least held-out error first."""
    given, forms = options(table, objective), [law_named(each) for each in candidates]
    frame, name = read(table, [table.loss])
    comparison = analysis.compare(forms, frame, hold_out=hold_out, origins=origins, loss=table.loss, **given)
    print(f"{name}: {len(frame)} rows, held out by {hold_out}")
    print(comparison.summary())
    print(f"best: {comparison.best}: {comparison.fits[comparison.best].law.equation}")


def backtest(table: Table, law: str, objective: Objective, hold_out: str, origins: int) -> None:
    """Print how well the law fitted below predicts the runs above."""
    given, form = options(table, objective), law_named(law)
    frame, _ = read(table, [table.loss])
    result = analysis.backtest(form, frame, hold_out, origins=origins, loss=table.loss, **given)
    print(result.summary())


def next_runs(table: Table, candidates: Path, law: str, at: dict[str, float], budget: float, cost: str) -> None:
    """Print which of the candidates to pay for next."""
    columns, form = renamed(table), law_named(law)
    frame, _ = read(table, [table.loss])
    pool = analysis.read_csv(candidates, [columns.get(name, name) for name in form.inputs])
    chosen = analysis.next_runs(form, frame, pool, pd.DataFrame([at]), budget, cost, loss=table.loss, **columns)
    print(chosen.summary())


def laws_known() -> None:
    """Print every law."""
    for law in laws.LAWS.values():
        print(f"{law.name} ({', '.join(law.inputs)}): {law.equation}\n    {law.source}; {law.validated}")
