"""`scaling fit`, `predict` and `report`: laws and figures of a store's sweep, or of any CSV."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis import laws
from scaling.launch import local
from scaling.sweep import rates, store


def read(
    data: Path, sweep: str | None, required: Sequence[str] = ("params", "tokens", "loss")
) -> tuple[pd.DataFrame, str]:
    """The runs in a CSV, or of a sweep of a store, and the name they go by.

    `required` are the columns that a CSV must have. Compiled fits are kept between processes.
    Raises ValueError where the store has several sweeps and none is named.
    """
    for setting, value in local.compiled_programs().items():
        os.environ.setdefault(setting, value)
    if not data.is_dir():
        if sweep is not None:
            raise ValueError(f"{data} is no store, so it has no sweep {sweep!r}; leave --sweep out for a CSV")
        return analysis.read_csv(data, required), data.stem
    results = store.Store(data)
    return results.runs(_one_sweep(results, sweep)), _one_sweep(results, sweep)


def _one_sweep(results: store.Store, sweep: str | None) -> str:
    if sweep is not None:
        return sweep
    names = [name for name in results.sweeps() if not name.endswith(".tune")]
    if len(names) != 1:
        raise ValueError(
            f"{results.path} holds {len(names)} sweeps ({', '.join(names) or 'none'}); name one with --sweep"
        )
    return names[0]


def fit(data: Path, law: str, sweep: str | None, loss: str, columns: Sequence[str], save: Path | None) -> None:
    """Fit a law, print its parameters with intervals and its checklist."""
    if save is not None and (save.is_dir() or not save.parent.is_dir()):
        wrong = f"{save} is a folder" if save.is_dir() else f"{save.parent} is no folder"
        raise ValueError(
            f"{wrong}: the fit cannot be saved there; make the folder, or name a file in one that is there"
        )
    mapped: dict[str, Any] = dict(_column(text) for text in columns)
    frame, name = read(data, sweep, [*(mapped.get(given, given) for given in laws.get(law).inputs), loss])
    fitted = analysis.fit(law, frame, loss=loss, **mapped)
    boot = fitted.bootstrap()
    print(f"{name}: {fitted.law.equation}")
    for parameter, value in fitted.params.items():
        low, high = boot.interval(parameter)
        print(f"  {parameter} = {value:.5g}   95% interval {low:.5g} to {high:.5g}")
    print(fitted.checklist())
    if save is not None:
        fitted.save(save)
        print(f"saved to {save}")


def _column(text: str) -> tuple[str, str]:
    given, equals, column = text.partition("=")
    if not (given and equals and column):
        raise ValueError(f"--column {text!r} names no input and column; write INPUT=COLUMN, for example x=flops")
    return given, column


def predict(
    path: Path, params: float | None, tokens: float | None, flops: float | None, x: float | None = None
) -> None:
    """Print what a saved fit predicts, with the 95% interval of resampled runs."""
    fitted = analysis.load(path)
    given = {"params": params, "tokens": tokens, "flops": flops, "x": x}
    if fitted.law.name == "hoffmann" and flops is not None and params is None and tokens is None:
        numbered = fitted.runs.assign(run=range(len(fitted.runs)))  # two runs may agree in all that a fit keeps
        found = analysis.frontier(numbered, 3)
        spent = found.allocate(flops)
        print(f"at {flops:.3g} FLOPs: params {spent.params}, tokens {spent.tokens}, loss {spent.loss}")
        print(f"made by {found.statements[0]}")
        if "flops" not in fitted.runs:
            print(found.statements[-1])
        return
    missing = [name for name in fitted.law.inputs if given.get(name) is None]
    if missing:
        raise ValueError(f"the law {fitted.law.name} needs {', '.join('--' + name for name in missing)}; give them")
    unused = [name for name, value in given.items() if value is not None and name not in fitted.law.inputs]
    if unused:
        raise ValueError(
            f"the law {fitted.law.name} takes {', '.join(fitted.law.inputs)}, not {', '.join(unused)}; leave those out"
        )
    at = {name: given[name] for name in fitted.law.inputs}
    low, high = fitted.bootstrap().predict_interval(at, 0.95)
    where = ", ".join(f"{name} {value:.4g}" for name, value in at.items())
    print(
        f"at {where}: loss {float(fitted.predict(at).item()):.4f}, 95% interval {low.item():.4f} to {high.item():.4f}"
    )


def report(data: Path, sweep: str | None, out: Path | None, title: str | None, notes: tuple[str, ...] = ()) -> None:
    """Write figures and report, and print the summary."""
    frame, name = read(data, sweep)
    curves = None
    if data.is_dir():
        results = store.Store(data)
        curves = results.curves(name)
        out = out or results.sweep_folder(name) / "report"
        notes = (*notes, *learning_rate_notes(results, name))
    summary = analysis.report.write(frame, out or data.with_suffix(""), title or f"Scaling law: {name}", curves, notes)
    print("\n".join(summary.lines))


def learning_rate_notes(results: store.Store, name: str) -> tuple[str, ...]:
    """How the learning rates of a sweep were chosen, in sentences for its report."""
    rule = rates.Rule.model_validate(results.sweep(name)["config"]["learning_rate"])
    used = sorted(set(results.runs(name)["learning_rate"]))
    span = f"{used[0]:.3g}" if len(used) == 1 else f"{used[0]:.3g} to {used[-1]:.3g}"
    return (f"Learning rates: {rule.describe()} In this sweep: {span}.",)
