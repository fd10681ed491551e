"""Back-tests: fit below, predict above, and compare with what was measured there, from several origins."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from analysis import budgets, checklists, checkpoints, checks, definitions, errors, fitting, laws, noise

MANY = 12  # more distinct values than this are no grid: held-out groups are then quarters of a decade
QUARTER = np.log(10.0) / 4


@dataclasses.dataclass(frozen=True, eq=False)
class Backtest:
    """Runs above an origin, predicted by the law fitted to the runs below it, for each of several origins.

    `rows` has a row an origin and held-out run: `origin` (the largest fitted value of the `hold_out` column), `reach`
    (the run's value over it), the law's inputs, `measured`, `predicted`, `error` = predicted − measured, `log_error`
    (on the fit's scale: by default log predicted − log measured), `low` to `high` the interval of a new run, `inside`,
    and `flops`, `flops_budget`, `seed` where the table has them. `origins` has a row an origin, the largest first:
    fitted and held-out runs, rms errors, share inside, why its fit is `unidentified` ("" where the runs below it carry
    the law), or why it was `refused`. `excluded` says which rows of the table are no runs of it, `warnings` what pools
    runs that should be fitted apart, `notes` which columns follow from others.
    """

    law: laws.Law
    hold_out: str
    level: float
    scale: str
    rows: pd.DataFrame
    origins: pd.DataFrame
    noise: noise.SeedNoise
    excluded: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def latest(self) -> pd.DataFrame:
        """The rows of the largest origin: only the largest group of runs is held out there."""
        return self.rows[self.rows["origin"] == self.rows["origin"].max()]

    @property
    def usable(self) -> pd.DataFrame:
        """The origins that were not refused."""
        return self.origins[self.origins["refused"] == ""]

    def summary(self) -> str:
        """One line an origin, the error beside the noise between seeds; then what was left out, and warnings."""
        beside = f"seed noise {self.noise.sd:.4f}" if self.noise.sd > 0 else "seed noise not measured"
        head = f"{self.law.name}: {self.law.equation}; fitted below, predicted above, by {self.hold_out}; {beside}"
        left_out = [f"left out: {text}" for text in self.excluded]
        warned = (f"warning: {text}" for text in self.warnings)
        return "\n".join([head, *self.by_origin(), *self.notes, *left_out, *warned])

    def by_origin(self) -> list[str]:
        """One line an origin."""
        lines = []
        for row in self.origins.to_dict("records"):
            if row["refused"]:
                lines.append(f"  up to {row['origin']:.3g}: refused: {row['refused']}")
                continue
            relative = f" ({row['rms_log_error']:.2%})" if self.scale == "log" else ""
            lines.append(
                f"  up to {row['origin']:.3g} ({row['fitted']} runs) predicts {row['held_out']:.0f} runs up to "
                f"{row['reach']:.3g} times that: rms error {row['rms_error']:.4f}{relative}, mean "
                f"{row['mean_error']:+.4f}, {row['inside']:.0%} inside the {self.level:.0%} interval"
            )
        return lines


def backtest(
    law: str | laws.Law,
    frame: pd.DataFrame,
    hold_out: str = "flops",
    *,
    origins: int = 3,
    loss: str = "loss",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Backtest:
    """The runs above each of `origins` origins, predicted by the law fitted to the runs up to it.

    `hold_out` names the column that says what is large: the first origin leaves out its largest group of runs, the
    next the two largest, and so on. A group is a budget (`flops_budget` where runs have one), else runs within 5% of
    each other, or a quarter of a decade where there are more than 12 of those. `options` are those of `analysis.fit`.
    Raises `Refused` where no origin leaves enough to fit; origins further down that are refused are listed as such.
    """
    form = laws.get(law)
    if origins < 1:
        raise ValueError(f"origins = {origins}: must be at least 1; 3 is usual")
    held = options.get(hold_out, hold_out)
    frame, notes, options = definitions.prepared(frame, (*form.inputs, hold_out), options, form.inputs)
    cluster = options.get("cluster")
    chosen = checks.runs(frame, cluster)
    size = checks.column(chosen.frame, held, "the hold-out")
    group = groups(chosen.frame, hold_out, size)
    steps = np.unique(group)[::-1]
    if len(steps) < 2:
        raise errors.Refused(f"all {len(size)} runs share one {hold_out!r}: nothing is left to fit below; add budgets")
    checks.column(chosen.frame, loss, "the held-out loss", (options.get("scale") or form.scale) != "linear")
    checks.one_of_each(chosen.frame, form.varies)
    rows: list[dict[str, Any]] = []
    tables: list[pd.DataFrame] = []
    doubts: list[str] = []
    for smallest_held in steps[: min(origins, len(steps) - 1)]:
        below = group < smallest_held
        above = ~below
        if cluster is not None:  # a run whose last checkpoints are held out is held out whole
            below &= ~chosen.frame[cluster].isin(chosen.frame.loc[above, cluster]).to_numpy()
            if not below.any():
                raise errors.Refused(
                    f"every run reaches above {hold_out} = {size[above].min():.3g}: nothing is left to fit"
                )
        origin = float(size[below].max())
        try:
            fit = fitting.fit(form, chosen.frame[below], loss=loss, **options)
            fitting.refuse_unconverged(fit)
            table, warnings = _predicted(fit, chosen.frame[above], loss, level, resamples, seed)
        except errors.Refused as reason:
            if not tables:
                raise
            rows.append({"origin": origin, "fitted": int(below.sum()), "refused": str(reason)})
            continue
        table.insert(0, "origin", origin)
        table.insert(1, "reach", size[above] / origin)
        tables.append(table)
        doubts += [f"up to {origin:.3g}: {doubt}" for doubt in warnings]
        rows.append(
            {
                "origin": origin,
                "fitted": int(below.sum()),
                "held_out": len(table),
                "reach": float(table["reach"].max()),
                "rms_error": float(np.sqrt(np.mean(table["error"] ** 2))),
                "rms_log_error": float(np.sqrt(np.mean(table["log_error"] ** 2))),
                "mean_error": float(table["error"].mean()),
                "inside": float(table["inside"].mean()),
                "unidentified": "; ".join(checklists.unidentified(fit)),
                "refused": "",
            }
        )
    unmeasured = noise.SeedNoise(float("nan"), 0, 0, "seed noise not measured: rows are checkpoints")
    return Backtest(
        form,
        hold_out,
        level,
        options.get("scale") or form.scale,
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(rows),
        noise.seed_noise(frame, loss) if cluster is None else unmeasured,
        checks.left_out(chosen),
        (
            *checkpoints.warn(chosen.frame, cluster, *(options.get(name, name) for name in ("params", "tokens"))),
            *checks.mixture(chosen.frame, {*form.inputs, *(options.get(name, name) for name in form.inputs)})[0],
            *doubts,
        ),
        notes,
    )


def _predicted(
    fit: fitting.Fit, above: pd.DataFrame, loss: str, level: float, resamples: int, seed: int
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    measured = above[loss].to_numpy(dtype=np.float64)
    at = fitting.inputs(fit, above)
    predicted = fit.predict(at)
    boot = fit.bootstrap(resamples, seed)
    low, high = boot.predict_interval(at, level)
    others = [name for name in ("flops", "flops_budget", "seed") if name in above.columns and name not in at]
    transform = fit.criterion.transform
    table = pd.DataFrame(
        {
            **at,
            **{name: above[name].to_numpy() for name in others},
            "measured": measured,
            "predicted": predicted,
            "error": predicted - measured,
            "log_error": transform(predicted) - transform(measured),
            "low": low,
            "high": high,
            "inside": (measured >= low) & (measured <= high),
        }
    )
    return table, boot.warnings


def groups(frame: pd.DataFrame, column: str, values: np.ndarray) -> np.ndarray:
    """A number for each run that grows with its value of `column` and is the same within a group of equal ones."""
    if column == "flops" and budgets.labelled(frame):
        budget = checks.numbers(frame, "flops_budget")
        unlabelled = np.isnan(budget)  # in no grid: beside the largest budget that they reach
        known = np.unique(budget[~unlabelled])
        place = np.searchsorted(known, np.where(unlabelled, values, budget) * (1 + 1e-9), side="right") - 1
        return np.where(unlabelled & (values > known[-1] * (1 + budgets.SAME_BUDGET)), len(known), place)
    group = budgets.nearby(values)
    if 1 < len(np.unique(group)) <= MANY:
        return group
    return np.asarray(np.floor((np.log(values) - np.log(values.max())) / QUARTER - 1e-9), dtype=int)
