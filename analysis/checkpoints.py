"""Rows that are checkpoints of runs, recognised by their columns: taken as runs, they make intervals too narrow."""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

RUNS = re.compile(r"(run|model|experiment|trial)(_?(id|name|hash))?|exp|name|checkpoint_of", re.IGNORECASE)
STEPS = re.compile(r"(global_?|train(ing)?_?)?(steps?|iter(ation)?s?)|tokens|(tokens_)?seen", re.IGNORECASE)
FEWEST = 3  # rows of a run on average: two may be a size at two lengths
FEWEST_UNNAMED = 8  # rows of a size where no column says the run: fewer may be a grid of sizes and lengths
SAME_FOR_ALL = ("seed", "learning_rate", "batch_tokens", "family", "optimizer", "schedule")  # of a run, in all its rows


def warn(frame: pd.DataFrame, cluster: str | None, params: str = "params", tokens: str = "tokens") -> tuple[str, ...]:
    """A warning where rows look like checkpoints of runs and no `cluster` says so, with what to pass."""
    if cluster is not None or not (columns := next(_run_columns(frame, params, tokens), None)):
        return ()
    name, grows = columns
    count = frame[name].nunique()
    return (
        f"rows look like checkpoints of runs: {len(frame)} rows have {count} values of {name!r}, and {grows!r} rises "
        f"within each; they are taken as {len(frame)} runs of their own, which makes intervals too narrow for "
        f"checkpoints. If they are, pass cluster={name!r} (--cluster {name}) to a fit, or keep the last row of each "
        "run; if each row was trained by itself, add a column run_id with a value of its own in each",
    )


def _run_columns(frame: pd.DataFrame, params: str, tokens: str) -> Iterator[tuple[str, str]]:
    """Columns that say the run, or else the size where each has many lengths, and the column that rises in them."""
    if "run_id" in frame.columns and frame["run_id"].nunique() == len(frame):
        return
    steps = [name for name in frame.columns if name == tokens or STEPS.fullmatch(str(name))]
    named = [name for name in frame.columns if RUNS.fullmatch(str(name)) and frame[name].notna().all()]
    unnamed = [params] if params in frame.columns and "flops_budget" not in frame.columns else []
    for names, fewest in ((named, FEWEST), (unnamed, FEWEST_UNNAMED)):
        for name in names:
            if 1 < frame[name].nunique() * fewest <= len(frame):
                yield from ((name, step) for step in steps if _rises(frame, name, step, params))


def _rises(frame: pd.DataFrame, name: str, step: str, params: str) -> bool:
    """Whether a column has another value in every row of a run, and the run one size and one of each setting."""
    values = pd.to_numeric(frame[step], errors="coerce")
    same = [other for other in (params, *SAME_FOR_ALL) if other in frame.columns and other not in (name, step)]
    groups = frame.assign(**{step: values}).groupby(name, dropna=False)
    return bool(np.isfinite(values).all() and groups[step].nunique().sum() == len(frame)) and all(
        groups[other].nunique(dropna=False).max() <= 1 for other in same
    )
