"""What a fit of a law may use of a table: the runs, the law's inputs and the losses, or why there is nothing to fit."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis import checkpoints, checks, definitions, errors, forms, shapes


def measurements(
    law: forms.Law,
    frame: pd.DataFrame,
    loss: str,
    columns: Mapping[str, str],
    scale: str,
    fixed: Mapping[str, float],
    cluster: str | None,
) -> tuple[checks.Selection, dict[str, np.ndarray], np.ndarray]:
    """What a fit of `law` may use: the selection, its inputs by name, and the losses.

    Inputs that the frame lacks and that follow from others are made of them (see `definitions`), and a note says so.
    A fit with exponents held (or another nonlinear parameter) is not refused for inputs that do not vary on their own.
    """
    steps = definitions.plan(frame, law.inputs, columns)
    if unknown := set(columns) - {*law.inputs, *definitions.taken(steps)}:
        raise errors.Refused(f"{sorted(unknown)} are no inputs of {law.name!r}; it takes {', '.join(law.inputs)}")
    frame, statements = definitions.derive(frame, steps, columns)
    chosen = checks.runs(frame, cluster)
    _clustered(chosen.frame, cluster)
    if not len(chosen.frame):
        raise errors.Refused(f"0 of {chosen.total} rows are finished runs; there is nothing to fit: {chosen.dropped}")
    names = {name: columns.get(name, name) for name in law.inputs}
    purpose = {name: f"input {name!r} of {law.name}{definitions.ways(name)}" for name in names}
    inputs = {
        name: checks.column(chosen.frame, held, purpose[name], name not in law.real) for name, held in names.items()
    }
    measured = checks.column(chosen.frame, loss, "the loss", scale != "linear")
    _enough(law, inputs, names, len(measured), len(law.names) - len(fixed))
    warnings = [
        *checkpoints.warn(chosen.frame, cluster, names.get("params", "params"), names.get("tokens", "tokens")),
        *_turning(law, inputs, names, measured, loss, scale),
    ]
    if "learning_rate" not in law.inputs:
        warnings += checks.learning_rates(chosen.frame)
    notes = [*statements, *chosen.notes, *checks.one_of_each(chosen.frame, law.varies)]
    reported = [checks.mixture(chosen.frame, {*law.inputs, *names.values()})]
    if "tokens" in law.inputs and "unique_tokens" not in law.inputs:
        reported.append(checks.epochs(chosen.frame))
    for more, other in reported:
        warnings += more
        notes += other
    if not set(fixed) & set(law.nonlinear):
        _identified(law, inputs)
    return dataclasses.replace(chosen, warnings=tuple(warnings), notes=tuple(notes)), inputs, measured


def _clustered(frame: pd.DataFrame, cluster: str | None) -> None:
    """Refuse a cluster column that does not say of every row which of several runs it is of."""
    if cluster is None:
        return
    if cluster not in frame.columns or frame[cluster].isna().any():
        raise errors.Refused(f"cluster {cluster!r} is no column with a value in every row; name one that says the run")
    if frame[cluster].nunique() < 2:
        raise errors.Refused(
            f"cluster {cluster!r} has one value in all {len(frame)} rows: intervals come from the differences "
            "between runs; add runs, or leave cluster out if rows are runs of their own"
        )


def _enough(law: forms.Law, inputs: Mapping[str, np.ndarray], names: Mapping[str, str], got: int, needed: int) -> None:
    """Refuse fewer runs than free parameters, and a single input that does not vary."""
    if got <= needed:
        raise errors.Refused(f"{got} runs for {needed} parameters of {law.name!r}: need more than {needed}; add runs")
    if len(law.inputs) != 1:
        return
    first = law.inputs[0]
    size = inputs[first] if first in law.real else np.log(inputs[first])
    if np.ptp(size) < (1e-9 * np.abs(size).max() if first in law.real else checks.RATIO_SPREAD):
        raise errors.Refused(f"{names[first]!r} is the same in all {got} runs: {law.name!r} needs it to vary; add runs")


def _identified(law: forms.Law, inputs: Mapping[str, np.ndarray]) -> None:
    """Refuse inputs whose effects cannot be told apart."""
    if {"params", "tokens"} <= set(law.inputs):
        checks.separable(inputs["params"], inputs["tokens"])
    if len(law.inputs) > 1:
        checks.independent({name: inputs[name] for name in law.inputs if name not in law.real}, law.name)


def _turning(
    law: forms.Law, inputs: Mapping[str, np.ndarray], names: Mapping[str, str], measured: np.ndarray, loss: str,
    scale: str,
) -> Iterator[str]:  # fmt: skip
    """Warnings where a curve of one positive input turns beyond its noise, as no power law does."""
    if len(law.inputs) != 1 or law.real or scale == "linear":
        return
    (name,) = law.inputs
    x = inputs[name]
    if len(np.unique(x)) >= shapes.FEWEST:
        order = np.argsort(x, kind="stable")
        x, y = x[order], measured[order]
        yield from shapes.turning(x, y, shapes.noise(x, np.log(y)), names[name], loss)
