"""Predicted beside measured times of the runs of a sweep."""

import dataclasses

import numpy as np
import pandas as pd

from analysis import axes


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds predicted before training beside those measured, in all and by size of the model."""

    line: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def compare(frame: pd.DataFrame, params: str = "params") -> Timings | None:
    """Of the finished runs with a `predicted_seconds`, trunks too, which no law counts; None where there is none."""
    if not {"predicted_seconds", "seconds", params} <= set(frame.columns):
        return None
    status = frame["status"] if "status" in frame.columns else pd.Series("finished", frame.index)
    names = ["predicted_seconds", "seconds", params]
    numbers = frame.loc[status == "finished", names].apply(pd.to_numeric, errors="coerce")
    timed = numbers[(numbers > 0).all(axis=1) & np.isfinite(numbers).all(axis=1)]
    if not len(timed):
        return None
    ratio = timed["seconds"] / timed["predicted_seconds"]
    total = timed[["predicted_seconds", "seconds"]].sum()
    line = (
        f"time of {len(timed)} runs, without compiling: predicted {_seconds(total['predicted_seconds'])}, measured "
        f"{_seconds(total['seconds'])} in all; median ratio {ratio.median():.2f}, from {ratio.min():.2f} to "
        f"{ratio.max():.2f}"
    )
    rows = []
    for size, group in timed.groupby(params):
        spread = ratio[group.index]
        rows.append(
            (
                axes.human(float(size)),
                str(len(group)),
                _seconds(group["predicted_seconds"].sum()),
                _seconds(group["seconds"].sum()),
                f"{spread.median():.2f}" + (f" ({spread.min():.2f} to {spread.max():.2f})" if len(group) > 1 else ""),
            )
        )
    header = (params, "runs", "predicted", "measured", "measured / predicted, median (range)")
    return Timings(line, header, tuple(rows))


def _seconds(value: float) -> str:
    """A time to three digits, in seconds, or in hours from ten of them on."""
    return f"{value / 3600:,.3g} h" if value >= 36_000 else f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"
