"""Which rows may enter a fit, which fits must not be made, and what to warn about.

Everything that is excluded is excluded by a rule stated here and is counted; everything that is refused raises
`Refused` with the value, the rule and the remedy.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis import errors, settings

ONE_EACH = ("tokenizer_id", "vocabulary_size", "context", "precision", "validation_id")
EPOCHS_WARN, EPOCHS_REFUSE = 1.0, 4.0  # Muennighoff et al. 2023, arXiv 2305.16264: little lost up to about 4 epochs
REPORTED = ("family", "parametrization", "optimizer", "schedule", "batch_tokens")  # what a law may hold of only one of
KINDS = ("family", "parametrization", "optimizer")  # mixed, these change the law itself
NUMERIC = (
    "params", "params_non_embedding", "params_with_head", "tokens", "unique_tokens", "flops", "flops_6nd",
    "flops_budget", "loss", "epochs", "batch_tokens", "learning_rate", "seed",
)  # fmt: skip
DAMAGED = "damaged"  # the status of a row whose run's files are missing or cannot be read; its `reason` says which
REASONS = 3  # of damaged rows that are listed
REPEATS = "every column repeats another row's (a run counts once; runs of their own need a column, such as a seed)"
RATIO_SPREAD = 0.05  # least standard deviation of log D given log N; 5% apart is one ratio
RISES, CHANCE = 0.75, 3.0  # share of ordered pairs, and its deviations from a half, beyond which values rise
ORDERED = 400  # runs that are compared with each other; of more, as many drawn at random
FOLLOWS = 0.1  # of the rise of the values: a law that rises by less does not follow them


@dataclasses.dataclass(frozen=True)
class Selection:
    """Rows that may enter a fit, and what was decided about the others."""

    frame: pd.DataFrame
    total: int
    dropped: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def finished(frame: pd.DataFrame) -> pd.Series:
    """Whether each row is a finished run that is no trunk, by `status` and `role` where the frame has them."""
    if not isinstance(frame, pd.DataFrame):
        raise errors.Refused(f"got a {type(frame).__name__}: the analysis takes a pandas DataFrame; build one of it")
    keep = pd.Series(True, index=frame.index)
    if "status" in frame.columns:
        keep &= frame["status"] == "finished"
    if "role" in frame.columns:
        keep &= frame["role"] != "trunk"
    return keep


def runs(frame: pd.DataFrame, cluster: str | None = None) -> Selection:
    """Finished runs that are not trunks: status "finished" where there is a status, role other than "trunk".

    A row that repeats another in every column is left out and counted; a run_id may repeat in other rows only where the
    rows of a run are a `cluster` of its checkpoints.
    A column of numbers that is text for the sake of other rows ("-" in a failed one) is numbers again in the selection.
    Rows of any other status are left out and counted, damaged ones with the reason; they may lack every measurement.
    """
    keep = finished(frame)
    other = frame[~keep]
    dropped, notes = dict[str, int](), list[str]()
    if "status" in frame:
        dropped = _statuses(other[other["status"] != "finished"])
        other = other[other["status"] == "finished"]
    else:
        notes.append("status: not checked (no column)")
    if len(other):
        dropped["role is trunk"] = len(other)
    chosen = frame[keep]
    if (again := _repeats(chosen)).any():
        dropped[REPEATS] = int(again.sum())
        chosen = chosen[~again]
    if cluster is None and "run_id" in chosen and chosen["run_id"].duplicated().any():
        repeated = chosen.loc[chosen["run_id"].duplicated(), "run_id"].iloc[0]
        raise errors.Refused(
            f"run_id {repeated!r} is in two rows: a run counts once; drop the repeats, or pass cluster='run_id' where "
            "they are checkpoints"
        )
    return Selection(_numeric(chosen), len(frame), tuple(dropped.items()), (), tuple(notes))


def _repeats(frame: pd.DataFrame) -> np.ndarray:
    """Whether each row repeats an earlier one in every column."""
    again = frame.select_dtypes("number").duplicated(keep=False)  # quick, and rules out nearly all rows
    if not again.any():
        return again.to_numpy()
    alike = frame[again].apply(lambda cells: settings.values(cells) if cells.dtype == object else cells)
    again[again] = alike.duplicated()
    return again.to_numpy()


def _statuses(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows are left out by each status, of damaged ones with what is wrong with them."""
    dropped: dict[str, int] = {}
    for status, count in frame["status"].value_counts(dropna=False).items():
        reason = f"status is {status}"
        if (
            status == DAMAGED
            and "reason" in frame
            and len(why := frame.loc[frame["status"] == status, "reason"].dropna())
        ):
            reasons = why.astype(str).drop_duplicates()
            more = f"; and {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
            reason += f" ({'; '.join(reasons.iloc[:REASONS])}{more})"
        dropped[reason] = int(count)
    return dropped


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns of numbers that are text for the sake of rows left out as numbers."""
    for name in NUMERIC:
        if name in frame.columns and not pd.api.types.is_numeric_dtype(frame[name]):
            values = pd.to_numeric(frame[name], errors="coerce")
            if not (values.isna() & frame[name].notna()).any():
                frame = frame.assign(**{name: values})
    return frame


def left_out(chosen: Selection) -> tuple[str, ...]:
    """What was left out of a selection and why, a line a reason."""
    return tuple(f"{count} rows where {why}" for why, count in chosen.dropped)


def there(frame: pd.DataFrame, name: str, purpose: str) -> None:
    """Refused, with the nearest names, where a frame has no column `name`."""
    if name not in frame.columns:
        near = difflib.get_close_matches(name, [str(c) for c in frame.columns], n=3, cutoff=0.5)
        hint = f"; nearest are {', '.join(near)}" if near else ""
        raise errors.Refused(
            f"no column {name!r} for {purpose}: the frame has {', '.join(map(str, frame.columns))}{hint}. "
            "Rename one, or say which column to use"
        )


def empty(frame: pd.DataFrame, name: str) -> bool:
    """Whether a frame has no column `name`, or no value in any row of it."""
    return name not in frame.columns or bool(len(frame) and frame[name].isna().all())


def column(frame: pd.DataFrame, name: str, purpose: str, positive: bool = True) -> np.ndarray:
    """One column as finite float64, positive unless it need not be, or `Refused` that names the first bad value."""
    there(frame, name, purpose)
    raw, array = frame[name], numbers(frame, name)
    if len(array) and empty(frame, name):
        raise errors.Refused(
            f"column {name!r} is NaN in all {len(array)} rows, and needed for {purpose}; fill it, or say which column "
            "to use"
        )
    for bad, what in ((np.isnan(array), "NaN"), (np.isinf(array), "infinite"), (array <= 0, "zero or negative")):
        if bad.any() and (positive or what != "zero or negative"):
            row = frame.index[bad][0]
            needs = "a law in logarithms needs positive finite numbers" if positive else "a law needs finite numbers"
            raise errors.Refused(
                f"column {name!r} is {what} in {int(bad.sum())} of {len(array)} rows (first at index {row!r}, value "
                f"{raw[bad].iloc[0]}): {needs}; drop these rows and say why"
            )
    return array


def numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """One column as float64, NaN where a row has none; `Refused` where it holds text."""
    raw = frame[name]
    values = pd.to_numeric(raw, errors="coerce")
    if (text := values.isna() & raw.notna()).any():
        raise errors.Refused(f"column {name!r} holds {raw[text].iloc[0]!r}, not a number; fix or drop that row")
    return values.to_numpy(dtype=np.float64)


def one_of_each(frame: pd.DataFrame, varies: Sequence[str] = ()) -> tuple[str, ...]:
    """One fit, one tokenizer, vocabulary, context, precision and validation set, but for what `varies` in the law.

    Returns a note for what is not recorded.
    """
    notes = []
    for name in (name for name in ONE_EACH if name not in varies):
        if name not in frame.columns or frame[name].isna().all():
            notes.append(f"one {name}: not checked (no column)")
            continue
        values = frame[name].drop_duplicates()
        if len(values) > 1:
            listed = ", ".join(map(repr, values.iloc[:4]))
            raise errors.Refused(
                f"{name} takes {len(values)} values ({listed}): losses under different ones are not comparable; "
                f"fit each on its own, e.g. frame[frame[{name!r}] == {values.iloc[0]!r}]"
            )
        notes.append(f"one {name}: {settings.values(values).iloc[0]}")
    return tuple(notes)


def mixture(frame: pd.DataFrame, inputs: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Warnings and notes on what kinds of runs, and with which settings, share a law of these inputs."""
    warnings, notes = [], []
    for name in REPORTED:
        if name not in frame.columns or frame[name].isna().all():
            notes.append(f"one {name}: not checked (no column)")
            continue
        counts = settings.values(frame[name], "not recorded").value_counts()
        if len(counts) == 1:
            notes.append(f"one {name}: {counts.index[0]}")
            continue
        listed = ", ".join(f"{value} ({count})" for value, count in counts.iloc[:6].items())
        listed += f", and {len(counts) - 6} more" if len(counts) > 6 else ""
        notes.append(f"{name}: {listed}")
        if name in KINDS:
            warnings.append(
                f"runs of {len(counts)} kinds of {name} in one law ({listed}): it is the law of none of them; fit each "
                "on its own"
            )
    return (*warnings, *settings.pooled(frame, inputs)), tuple(notes)


def epochs(frame: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Warnings and notes on repeated data; refuses laws of fresh tokens beyond EPOCHS_REFUSE epochs."""
    if "epochs" not in frame.columns or frame["epochs"].isna().all():
        return (), ("epochs: not checked (no column)",)
    seen = numbers(frame, "epochs")
    most = float(np.nanmax(seen))
    if most > EPOCHS_REFUSE:
        count = int((seen > EPOCHS_REFUSE).sum())
        raise errors.Refused(
            f"{count} runs saw their data up to {most:.3g} times: a law of fresh tokens holds to about "
            f"{EPOCHS_REFUSE:g} epochs (arXiv 2305.16264); drop runs with epochs > {EPOCHS_REFUSE:g} or use a "
            "data-constrained law"
        )
    if most > EPOCHS_WARN:
        count = int((seen > EPOCHS_WARN).sum())
        return (f"{count} runs repeat data (up to {most:.2g} epochs); the law counts repeated tokens as fresh",), ()
    return (), (f"epochs: at most {most:.2g}",)


def separable(params: np.ndarray, tokens: np.ndarray) -> None:
    """Refuse runs in which tokens follow from parameters: the two exponents cannot be told apart."""
    x, y = np.log(params), np.log(tokens)
    ratio = y - x
    if np.ptp(x) < RATIO_SPREAD or np.ptp(y) < RATIO_SPREAD:
        which = "parameters" if np.ptp(x) < RATIO_SPREAD else "tokens"
        raise errors.Refused(f"all runs have the same number of {which}: L(N, D) needs both to vary; add runs")
    slope, intercept = np.polyfit(x, y, 1)
    if np.std(ratio) < RATIO_SPREAD:
        raise errors.Refused(
            f"all {len(x)} runs have one ratio of tokens to parameters (D/N = {np.exp(ratio.mean()):.4g}, spread "
            f"{np.std(ratio):.1%}): the exponents of N and D cannot be told apart; add runs with other D/N, or fit "
            '"kaplan_n", "kaplan_d" or "power" instead'
        )
    if np.std(y - slope * x - intercept) < RATIO_SPREAD:
        raise errors.Refused(
            f"tokens follow parameters in all {len(x)} runs (D ∝ N^{slope:.3g}): the exponents of N and D cannot be "
            "told apart; add runs that leave this line"
        )


def learning_rates(frame: pd.DataFrame) -> tuple[str, ...]:
    """Warn where one size and length was trained at several learning rates: a law wants each at its best."""
    keys = [k for k in ("params", "tokens", "family", "batch_tokens") if k in frame.columns]
    if "learning_rate" not in frame.columns or not {"params", "tokens"} <= set(keys):
        return ()
    others = [
        settings.values(frame[name])
        for name in settings.fields(frame)
        if name not in ("optimizer.learning_rate", "seed")
    ]
    rates = frame.groupby([*(frame[key] for key in keys), *others], dropna=False)["learning_rate"].nunique()
    if not (several := int((rates > 1).sum())):
        return ()
    return (f"{several} (N, D) pairs were trained at several learning rates; keep the best of each before fitting",)


def independent(inputs: Mapping[str, np.ndarray], law: str) -> None:
    """Refuse runs in which one input is constant or follows from the others: their effects cannot be told apart."""
    logs = {name: np.log(values) for name, values in inputs.items() if (values > 0).all()}
    for name, values in logs.items():
        others = [np.ones_like(values), *(other for key, other in logs.items() if key != name)]
        design = np.stack(others, axis=1)
        rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        if np.std(rest) < RATIO_SPREAD:
            same = np.ptp(values) < RATIO_SPREAD
            raise errors.Refused(
                f"{name} is {'the same in all' if same else 'a function of the other inputs in all'} {len(values)} "
                f"runs: {law!r} cannot tell its effect from theirs; add runs that vary it on its own, or use a law "
                "without it"
            )


def falling(
    inputs: Mapping[str, np.ndarray], measured: np.ndarray, name: str, fitted: np.ndarray | None = None
) -> None:
    """Refuse values that rise with the inputs where a law, with the values `fitted`, does not: an accuracy as a loss.

    They rise where, of the pairs of runs in which one has as much of every input or more, it has the higher value in
    more than RISES, and Kendall's S over these pairs is more than CHANCE times its standard deviation over all orders
    of the values (Kendall & Gibbons 1990, Rank Correlation Methods, the general coefficient): seven runs in perfect
    order, or more. Without `fitted` the law is taken to fall.
    """
    count = min(len(measured), ORDERED)
    if count < 3:
        return
    drawn = np.random.default_rng(0).permutation(len(measured))[:count]
    y = measured[drawn]
    more = np.all([values[drawn, None] >= values[drawn] for values in inputs.values()], axis=0)
    above, higher = more.astype(np.float64) - more.T, np.sign(y[:, None] - y)
    agreeing, place = above * higher, above.sum(axis=1)
    (ra, qa), (rb, qb) = ((np.sum(m.sum(axis=1) ** 2), np.sum(m**2)) for m in (above, higher))
    deviation = np.sqrt(
        (ra - qa) * (rb - qb) / (count * (count - 1) * (count - 2)) + qa * qb / (2 * count * (count - 1))
    )
    pairs, rising = np.count_nonzero(agreeing) // 2, np.count_nonzero(agreeing > 0) // 2
    if rising <= RISES * pairs or agreeing.sum() / 2 <= CHANCE * deviation:
        return
    if fitted is not None and place @ fitted[drawn] >= FOLLOWS * (place @ y):
        return
    raise errors.Refused(
        f"column {name!r} ({measured.min():.4g} to {measured.max():.4g}) rises with {' and '.join(inputs)}: of {pairs} "
        f"pairs of runs in which one has as much of each or more, it is higher in {rising / pairs:.0%} (refused over "
        f"{RISES:.0%}), and a loss law can only fall; pass an error, such as 1 - accuracy, or predict the metric from "
        f"a loss: analysis.downstream(frame, at, metric={name!r}, via=...)"
    )


def budget(flops: float) -> None:
    """ValueError unless a budget is a positive number of FLOPs."""
    if not 0 < flops < np.inf:
        raise ValueError(f"flops = {flops}: must be positive and finite; pass a budget in FLOPs such as 1e21")


def level(level: float) -> None:
    """ValueError unless the level of an interval is a share."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must lie between 0 and 1; 0.95 is usual")


def conventions(frame: pd.DataFrame, names: Sequence[str]) -> tuple[str, ...]:
    """One line for each input: the column it is, and the convention that the frame states for it."""
    meaning = {
        "params": "total trainable parameters",
        "params_non_embedding": "parameters without token and position embeddings",
        "params_with_head": "non-embedding parameters and the output head",
        "tokens": "training tokens seen",
        "flops": "training FLOPs: exact matmuls, causal attention, head included, no recomputation",
        "flops_6nd": "6 · params_non_embedding · tokens",
    }
    lines = []
    for name in names:
        stated = f"{name.split('_')[0]}_convention"
        if stated in frame.columns and frame[stated].notna().any():
            text = ", ".join(sorted(map(str, frame[stated].dropna().unique())))
        elif "run_id" in frame.columns and name in meaning:
            text = meaning[name]
        else:
            text = "convention not stated by the table"
        lines.append(f"{name}: {text}")
    return tuple(lines)
