"""The three approaches side by side under every convention of counting parameters and FLOPs that the runs carry.

What is counted moves the exponents as much as how they are fitted (Pearce & Song 2024, arXiv 2406.12907; Porian et al.
2024, arXiv 2406.19146).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import budgets, checks, definitions, errors, frontiers

COUNTS = ("params", "params_non_embedding", "params_with_head")
RECORDED = ("flops", "flops_6nd")  # columns of FLOPs; beside them 6 · N · D is always counted
SAME = 1e-6  # two conventions whose FLOPs differ by less, relatively, in every run are one
COLUMNS = (
    "params", "flops", "approach", "exponent_params", "low", "high", "exponent_tokens", "tokens_low", "tokens_high",
    "difference", "difference_to", "between_conventions", "bias_exponent", "bias_params", "refused",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Convention:
    params: str
    flops: str  # what to say
    column: str
    frame: pd.DataFrame


def approaches(
    frame: pd.DataFrame,
    *,
    loss: str = "loss",
    params: Sequence[str] = COUNTS,
    tokens: str = "tokens",
    minimum: str = "parabola",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each approach under each convention: columns of `params` there are, times FLOPs recorded and 6ND.

    `exponent_params` and `exponent_tokens` with their intervals at `level`; `difference` of the first to that of
    `difference_to` (approach 3, or 2 where there is no 3) under the same convention; `between_conventions`, to the same
    approach under the first convention; `bias_exponent` and `bias_params`, approach 2's on this grid (as in
    `Frontier.methods`). Where an approach is refused, `refused` says why and the numbers are NaN. `Refused` where the
    frame has none of the columns `params`.
    """
    if not (there := [name for name in params if name in frame.columns]):
        checks.column(frame, params[0], "the frontier")
    rows: list[dict[str, object]] = []
    for convention in (each for name in there for each in _conventions(frame, name, tokens)):
        rows += _rows(convention, tokens, loss=loss, minimum=minimum, level=level, resamples=resamples, seed=seed)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    first = table.drop_duplicates("approach").set_index("approach")["exponent_params"]
    table["between_conventions"] = table["exponent_params"] - table["approach"].map(first)
    return table.fillna({"difference_to": "", "refused": ""})


def _rows(convention: _Convention, tokens: str, **options: Any) -> Iterator[dict[str, object]]:
    """A row for each approach under one convention; `options` are those of `frontiers.frontier`."""
    options |= {"params": convention.params, "tokens": tokens, "flops": convention.column}
    results: dict[int, frontiers.Frontier | errors.Refused] = {}
    for approach in (1, 2, 3):
        try:
            results[approach] = frontiers.frontier(convention.frame, approach, **options)
        except errors.Refused as reason:
            results[approach] = reason
    to, against = next(((a, result) for a in (3, 2) if isinstance(result := results[a], frontiers.Frontier)), (0, None))
    for approach, result in results.items():
        row: dict[str, object] = {"params": convention.params, "flops": convention.flops, "approach": approach}
        if isinstance(result, errors.Refused):
            yield {**row, "refused": str(result)}
            continue
        row |= _exponents(result) | {"refused": ""}
        if against is not None:
            row["difference"] = result.exponent_params.value - against.exponent_params.value
            row["difference_to"] = f"approach {to}"
        yield row


def _exponents(frontier: frontiers.Frontier) -> dict[str, object]:
    n, d = frontier.exponent_params, frontier.exponent_tokens
    row: dict[str, object] = {
        "exponent_params": n.value, "low": n.interval[0], "high": n.interval[1],
        "exponent_tokens": d.value, "tokens_low": d.interval[0], "tokens_high": d.interval[1],
    }  # fmt: skip
    if frontier.bias is not None:
        row |= {"bias_exponent": frontier.bias.exponent_params, "bias_params": frontier.bias.params}
    return row


def _conventions(frame: pd.DataFrame, params: str, tokens: str) -> Iterator[_Convention]:
    """The countings of FLOPs with this N: columns that are recorded, and 6 · N · D where it is none of them."""
    six_nd = "flops_of_6ND"
    counted = frame
    if tokens in frame.columns:
        n, d = (pd.to_numeric(frame[name], errors="coerce") for name in (params, tokens))
        counted = frame.assign(**{six_nd: definitions.SIX_ND.value(n, d)})  # text is refused where it counts
    seen: list[tuple[str, np.ndarray]] = []
    finished = frame[checks.finished(frame)]
    for column in (*(name for name in RECORDED if not checks.empty(finished, name)), six_nd):
        if column not in counted.columns:
            continue
        values = pd.to_numeric(counted[column], errors="coerce").to_numpy(dtype=np.float64)
        if any(np.allclose(values, other, rtol=SAME, atol=0.0, equal_nan=True) for _, other in seen):
            continue
        seen.append((column, values))
        label = f"6 · {params} · {tokens}" if column == six_nd else column
        yield _Convention(params, label, column, _relabelled(counted, values) if column != "flops" else counted)


def _relabelled(frame: pd.DataFrame, flops: np.ndarray) -> pd.DataFrame:
    """Without `flops_budget` where the runs of a budget are not of equal FLOPs as they are counted here."""
    known = ~np.isnan(flops)  # a run that failed may have none
    if not budgets.labelled(frame) or not (flops[known] > 0).all():  # the latter is refused, by name, where it counts
        return frame
    logs = pd.Series(np.log(flops[known]), index=frame.index[known])
    spread = logs.groupby(frame.loc[known, "flops_budget"]).agg(np.ptp)
    return frame if (spread <= budgets.UNEQUAL).all() else frame.drop(columns="flops_budget")
