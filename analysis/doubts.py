"""Where what a sweep says contradicts itself: to be read before its numbers."""

from collections.abc import Iterator, Sequence

import numpy as np

from analysis import allocation, backtests, uncertainty

COVERED = 0.8  # least share of held-out runs inside 95% intervals


def disagreement(frontiers: Sequence[allocation.Frontier]) -> Iterator[str]:
    """A line if two approaches give exponents of N* whose intervals do not meet."""
    estimates = [(frontier.approach, frontier.exponent_params) for frontier in frontiers]
    apart = [
        (first, second)
        for i, first in enumerate(estimates)
        for second in estimates[i + 1 :]
        if first[1].interval[1] < second[1].interval[0] or second[1].interval[1] < first[1].interval[0]
    ]
    if apart:
        pairs = "; ".join(f"{_exponent(*first)} and {_exponent(*second)}" for first, second in apart)
        yield f"approaches differ by more than their intervals, so that none of these holds: {pairs}"


def _exponent(approach: int, estimate: uncertainty.Estimate) -> str:
    low, high = estimate.interval
    return f"approach {approach} has a = {estimate.value:.3f} ({low:.3f} to {high:.3f})"


def uncovered(backtest: backtests.Backtest) -> Iterator[str]:
    """A line if too few predictions by one law hold their run in the interval: a run is predicted from each origin."""
    rows = backtest.rows
    if (share := float(np.mean(rows["inside"]))) < COVERED:
        yield (
            f"{share:.0%} of {len(rows)} predictions of larger runs, in back-tests of {backtest.law.name} by itself, "
            f"hold the run in their interval, not {backtest.level:.0%}: intervals are too narrow beyond the runs; take "
            "the prediction by several laws"
        )
