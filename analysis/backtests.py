"""Back-tests: fit below, predict above, and compare with what was measured there."""

from typing import Any

import numpy as np
import pandas as pd

from analysis import budgets, checks, errors, fitting, laws, noise


def backtest(
    law: str | laws.Law,
    frame: pd.DataFrame,
    hold_out: str = "flops",
    *,
    loss: str = "loss",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """The runs of the largest budget, predicted by the law fitted to all the others.

    `hold_out` names the column whose largest value is held out; for "flops" that is the largest `flops_budget` where
    runs have one, else the runs within 5% of the largest FLOPs (6ND in a
    table without FLOPs). A row a held-out run: the law's inputs, `flops`,
    `flops_budget` where there is one, `measured`, `predicted`, `error` = predicted − measured and
    `relative_error` = error / measured, the interval `low` to `high` at `level` for a new run's loss (the fit's
    uncertainty from resampled runs, times a residual of the fit drawn at random), `inside`, and `seed_noise`, the
    deviation between seeds (NaN where no configuration has two). Raises `Refused` where either side is too small.
    """
    form = laws.get(law)
    if hold_out == "flops":
        frame, _ = budgets.costed(frame, columns.get("params", "params"), columns.get("tokens", "tokens"), "flops")
    chosen = checks.runs(frame)
    above = held_out(chosen.frame, hold_out)
    if above.all() or not above.any():
        raise errors.Refused(f"all {len(above)} runs share one {hold_out!r}: nothing is left to fit below; add budgets")
    fit = fitting.fit(form, chosen.frame[~above], loss=loss, **columns)
    fitting.refuse_unconverged(fit)
    boot = fit.bootstrap(resamples, seed)
    held = chosen.frame[above]
    checks.one_of_each(chosen.frame)
    measured = checks.column(held, loss, "the held-out loss")
    at = {name: checks.column(held, fit.columns[name], "the held-out runs") for name in form.inputs}
    predicted = fit.predict(at)
    low, high = boot.predict_interval(at, level)
    others = [name for name in ("flops", "flops_budget", "seed") if name in held.columns and name not in at]
    return pd.DataFrame(
        {
            **at,
            **{name: held[name].to_numpy() for name in others},
            "measured": measured,
            "predicted": predicted,
            "error": predicted - measured,
            "relative_error": predicted / measured - 1,
            "low": low,
            "high": high,
            "inside": (measured >= low) & (measured <= high),
            "seed_noise": noise.seed_noise(frame, loss).sd,
        }
    )


def held_out(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Which runs are at the largest value of `column`."""
    values = checks.column(frame, column, "the hold-out")
    if column != "flops":
        return values == values.max()
    budget = budgets.label(frame, values)
    largest = np.nanmax(budget)
    return (budget == largest) | (np.isnan(budget) & (values > largest))
