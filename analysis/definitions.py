"""Quantities of a run that follow from others by a definition: FLOPs, tokens, parameters, tokens per parameter.

Here alone a column that a table lacks is made from those it has, and every column that is made is said with the reason.
"""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import checks

KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
MISSPELT = 0.74  # similarity (difflib) from which a name is another written wrongly: "parameters" for "params"
NONE: Mapping[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Definition:
    """`quantity` as a function of others, `of`; `text` is its right side with their columns filled in."""

    quantity: str
    of: tuple[str, ...]
    text: str
    value: Callable[..., np.ndarray]
    source: str = ""

    def said(self, columns: Mapping[str, str]) -> str:
        """The right side in the names of these columns, and its source."""
        text = self.text.format(**{name: columns.get(name, name) for name in self.of})
        return f"{text} ({self.source})" if self.source else text


SIX_ND = Definition("flops", ("params", "tokens"), "6 · {params} · {tokens}", lambda n, d: 6.0 * n * d, KAPLAN)
# The first that can be made counts: what is recorded or exact comes before C = 6ND.
DEFINITIONS = (
    Definition("tokens_per_parameter", ("tokens", "params"), "{tokens} / {params}", lambda d, n: d / n),
    Definition(
        "tokens", ("tokens_per_parameter", "params"), "{tokens_per_parameter} · {params}", lambda ratio, n: ratio * n
    ),
    Definition("flops", ("flops_budget",), "{flops_budget}", lambda budget: budget, "the budget that is given"),
    SIX_ND,
    Definition("tokens", ("flops", "params"), "{flops} / (6 · {params})", lambda c, n: c / (6.0 * n), KAPLAN),
    Definition("params", ("flops", "tokens"), "{flops} / (6 · {tokens})", lambda c, d: c / (6.0 * d), KAPLAN),
)
QUANTITIES = {name for each in DEFINITIONS for name in (each.quantity, *each.of)}


def complete(
    frame: pd.DataFrame, wanted: Collection[str], columns: Mapping[str, str] = NONE
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The frame with the quantities `wanted` that it lacks and that follow from others, and a statement for each.

    `columns` says where a quantity is under another name: that column is never made, nor one that the frame has under
    nearly this name. A column that is empty in all finished runs counts as not there. `Refused` where a column that is
    made from holds what is no positive number.
    """
    return derive(frame, plan(frame, wanted, columns), columns)


def plan(frame: pd.DataFrame, wanted: Collection[str], columns: Mapping[str, str]) -> list[Definition]:
    """The definitions by which a frame gets the quantities it lacks, in the order of their use."""
    used = checks.finished(frame)
    there = {name for name in (*QUANTITIES, *wanted) if not checks.empty(frame[used], columns.get(name, name))}
    never = {name for name in QUANTITIES if columns.get(name, name) != name or _misspelt(frame, name)}
    steps: list[Definition] = []
    for name in wanted:
        needed = _steps(name, there | {each.quantity for each in steps}, never, ())
        steps += [each for each in needed or () if each.quantity not in {one.quantity for one in steps}]
    return steps


def derive(
    frame: pd.DataFrame, steps: Sequence[Definition], columns: Mapping[str, str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """What `complete` gives, by the definitions that `plan` chose for the frame."""
    used = checks.finished(frame)
    statements = []
    for each in steps:
        values, fallback = _values(frame, used, each, columns), _fallback(frame, used, each, columns)
        why = f"the table has no column {each.quantity!r}"
        if each.quantity in frame.columns:
            why = f"column {each.quantity!r} is empty in all {int(used.sum())} finished rows"
        statement = f"{each.quantity} = {each.said(columns)}"
        if fallback is not None and (lacks := used & values.isna()).any():
            values = values.where(~lacks, _values(frame, used, fallback, columns))
            statement += f", in {int(lacks.sum())} of {int(used.sum())} rows without it {fallback.said(columns)}"
        frame = frame.assign(**{each.quantity: values})
        statements.append(f"{statement}: {why}")
    return frame, tuple(statements)


def taken(steps: Sequence[Definition]) -> set[str]:
    """The quantities that definitions make others from."""
    return {name for each in steps for name in each.of}


def prepared(
    frame: pd.DataFrame, wanted: Collection[str], options: Mapping[str, Any], inputs: Collection[str]
) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, Any]]:
    """`complete` before fits of a law with these inputs, and the options of `analysis.fit` that are left for it.

    Columns of quantities that are no inputs and were used here are left out: a fit would not know them.
    """
    columns = {name: value for name, value in options.items() if name in QUANTITIES}
    steps = plan(frame, wanted, columns)
    used = {*wanted, *taken(steps)} - set(inputs)
    completed, statements = derive(frame, steps, columns)
    return completed, statements, {name: value for name, value in options.items() if name not in used}


def ways(name: str) -> str:
    """From what a quantity follows, to be said where it is not there."""
    origins = [" and ".join(each.of) for each in DEFINITIONS if each.quantity == name]
    return f" (it also follows from {', or from '.join(origins)})" if origins else ""


def exactly(at: Mapping[str, Any] | pd.DataFrame, name: str) -> Any:
    """A quantity from others by a definition that is no estimate, or None: C = 6ND is one."""
    for each in DEFINITIONS:
        if each.quantity == name and not each.source and all(of in at for of in each.of):
            return each.value(*(np.asarray(at[of], dtype=np.float64) for of in each.of))
    return None


def _steps(
    name: str, there: Collection[str], never: Collection[str], pending: tuple[str, ...]
) -> Sequence[Definition] | None:
    """How a quantity is made from those that are there, [] where it is there itself, None where it cannot be made."""
    if name in there:
        return ()
    if name in never:
        return None
    for each in (one for one in DEFINITIONS if one.quantity == name and not {*one.of} & {*pending, name}):
        parts = [_steps(of, there, never, (*pending, name)) for of in each.of]
        if None not in parts:
            return [*(step for part in parts for step in part or ()), each]
    return None


def _misspelt(frame: pd.DataFrame, name: str) -> bool:
    """Whether a frame has not this column but one of nearly the same name, which is likely to be meant."""
    names = [str(column).lower() for column in frame.columns]
    return name not in frame.columns and bool(difflib.get_close_matches(name, names, n=1, cutoff=MISSPELT))


def _fallback(frame: pd.DataFrame, used: pd.Series, first: Definition, columns: Mapping[str, str]) -> Definition | None:
    """Another definition of the same quantity, from columns that are there, for rows in which the first has none."""
    for each in DEFINITIONS:
        there = not any(checks.empty(frame[used], columns.get(of, of)) for of in each.of)
        if each.quantity == first.quantity and each != first and there:
            return each
    return None


def _values(frame: pd.DataFrame, used: pd.Series, each: Definition, columns: Mapping[str, str]) -> pd.Series:
    """What a definition gives in every row; NaN where a row that is not used has no numbers."""
    held = [columns.get(of, of) for of in each.of]
    for name in held:
        if name == "flops_budget":
            checks.numbers(frame[used], name)
        else:
            checks.column(frame[used], name, f"{each.quantity} = {each.said(columns)}")
    parts = (pd.to_numeric(frame[name], errors="coerce").astype(np.float64) for name in held)
    return pd.Series(each.value(*parts), index=frame.index, dtype=np.float64)
