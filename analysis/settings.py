"""Settings of runs: the columns that are fields of their configs, and in which of them the runs of one law may differ.

A column with a dot in its name is a field under its dotted name (`optimizer.weight_decay`, `data.train_tokens`), which
a table of runs has where runs differ in it. Fields at the top of a config have no dot; `TOP` are those without a
column of their own among the fixed ones. The rules are those of `pooled` in `scaling.store.columns`.
"""

import re
import shlex
from collections.abc import Collection, Hashable
from typing import Any

import numpy as np
import pandas as pd

DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
TOP = ("schedule", "clip", "z_loss")
MISSING = "missing"
VALUES = 6  # of a field that a warning lists

MAY_DIFFER = (  # no law's input by name, and yet no reason to fit runs apart
    "model.width", "model.depth", "model.heads", "model.kv_heads", "model.head_size", "model.mlp_width",  # the size
    "tokens", "examples", "batch_size",  # the tokens
    "optimizer.learning_rate",  # chosen by the rule of the learning rate; `checks.learning_rates` looks at it
    "seed",
)  # fmt: skip
SETS = {"data.train_tokens": ("unique_tokens", "epochs")}  # the inputs that a field sets under another name
COVERED = {  # fields that a fixed column stands for, on which a rule of its own refuses or warns
    "model.kind": "family",
    "optimizer.kind": "optimizer",
    "parametrization.kind": "parametrization",
    "schedule.kind": "schedule",
    "precision.compute": "precision",
    "precision.parameters": "precision",
    "data.tokenizer.kind": "tokenizer_id",
    "data.tokenizer.vocabulary_size": "vocabulary_size",
    "data.validation_tokens": "validation_id",
}


def may_differ(field: str, inputs: Collection[str]) -> bool:
    """Whether runs that differ in a field may share a law of these inputs.

    They may where the field is an input, by its dotted name or its last part, sets one, sets the size or the tokens,
    was chosen by the rule of the learning rate, or is the seed.
    """
    named = {field, field.rpartition(".")[2], *SETS.get(field, ())}
    return field in MAY_DIFFER or not named.isdisjoint(inputs)


def fields(frame: pd.DataFrame) -> list[str]:
    """The columns that are settings, those that a fixed column of the frame stands for left out."""
    names = [name for name in frame.columns if isinstance(name, str) and (DOTTED.fullmatch(name) or name in TOP)]
    return [name for name in names if not (COVERED.get(name) in frame.columns and frame[COVERED[name]].notna().any())]


def values(column: pd.Series, missing: str = MISSING) -> pd.Series:
    """The column with `missing` as a value of its own, and as text what cannot be counted, such as lists.

    Whole numbers that are floats for the sake of a missing value are whole again.
    """

    def value(cell: Any) -> Hashable:
        if isinstance(cell, list | dict | set | np.ndarray):
            return str(cell)
        if pd.api.types.is_scalar(cell) and pd.isna(cell):
            return missing
        return int(cell) if isinstance(cell, float) and cell.is_integer() else cell

    return pd.Series([value(cell) for cell in column.astype(object)], index=column.index, dtype=object)


def pooled(frame: pd.DataFrame, inputs: Collection[str]) -> tuple[str, ...]:
    """A warning where runs of one law differ in settings that they may not differ in, with the way out."""
    frame = frame.reset_index(drop=True)
    differing = {name: values(frame[name]) for name in fields(frame) if not may_differ(name, inputs)}
    differing = {name: column for name, column in differing.items() if column.nunique() > 1}
    if not differing:
        return ()
    listed = " and ".join(f"{name} ({_listed(column)})" for name, column in differing.items())
    remedy = "make it an input of the law" if len(differing) == 1 else "make them inputs of the law"
    return (
        f"runs of different {listed} in one law that has no such input: fit each on its own, e.g. "
        f"{_filter(frame, pd.DataFrame(differing))}, or {remedy}",
    )


def _listed(column: pd.Series) -> str:
    counts = column.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    listed = ", ".join(f"{value} ({count})" for value, count in counts.iloc[:VALUES].items())
    return listed + (f", and {len(counts) - VALUES} more" if len(counts) > VALUES else "")


def _filter(frame: pd.DataFrame, differing: pd.DataFrame) -> str:
    """The `--where` that keeps the most frequent combination; one that lacks a field has nothing to ask of it."""
    whole = differing[(differing != MISSING).any(axis=1)]
    often = whole.groupby(list(differing.columns), sort=False)[differing.columns[0]].transform("size")
    at = int(often.to_numpy().argmax())
    asked = []
    for name in differing.columns:
        if (value := whole[name].iloc[at]) != MISSING:
            exact = value if pd.api.types.is_numeric_dtype(frame[name]) else frame[name].loc[whole.index].iloc[at]
            asked.append(f"--where {shlex.quote(f'{name}={exact}')}")
    return " ".join(asked)
