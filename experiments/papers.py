"""What a reproduction is: sweeps by scale, an analysis of their results, and rows of the paper's number beside ours."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import figure

from analysis import checks, errors, uncertainty
from scaling import config

Verdict = Literal["agrees", "agrees within our interval", "undecided", "differs", "not comparable", "refused"]
LEVEL = 0.95
RESAMPLES = 1000
WIDE = 0.5  # an interval wider than this share of its value decides nothing


@dataclasses.dataclass(frozen=True)
class Frames:
    """Results of an experiment: `runs` has a row a run, `curves` a row a validation, of all its sweeps together.

    `history` gives the training losses of a run id, a row a step: `tokens`, `flops`, `loss` before that step's update.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    history: Callable[[str], pd.DataFrame]

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that may enter a fit."""
        return checks.runs(self.runs).frame


@dataclasses.dataclass(frozen=True)
class PaperClaim:
    """A number that a paper states: the words, where it stands, and the values that agree with it.

    `low` to `high` is one value, an interval, or one side of zero; both None where our number is in another unit.
    """

    text: str
    source: str
    low: float | None = None
    high: float | None = None


def value(number: float, source: str, text: str = "") -> PaperClaim:
    """A claim of one number."""
    return PaperClaim(text or f"{number:g}", source, number, number)


@dataclasses.dataclass(frozen=True)
class PaperComparison:
    """One row of the table: a quantity, the paper's claim, our estimate or why there is none, what differs and why."""

    quantity: str
    claim: PaperClaim
    ours: uncertainty.Estimate | None
    refused: str
    why: str

    @property
    def shown(self) -> str:
        """Our value with its interval, or in short the reason why there is none."""
        if self.ours is None:
            return f"not measured: {self.refused.partition('. ')[0].partition(';')[0]}"
        low, high = self.ours.interval
        return f"{self.ours.value:.3g} ({self.ours.level:.0%}: {low:.3g} to {high:.3g})"

    @property
    def verdict(self) -> Verdict:
        """What our interval says of the claim; an interval too wide to say anything is "undecided"."""
        if self.ours is None:
            return "refused"
        if self.claim.low is None or self.claim.high is None:
            return "not comparable"
        low, high = self.ours.interval
        if high < self.claim.low or low > self.claim.high:
            return "differs"
        if self.claim.low <= low and high <= self.claim.high:
            return "agrees"
        if math.isinf(self.claim.high) or high - low > WIDE * abs(self.ours.value):
            return "undecided"
        return "agrees within our interval"

    @property
    def verdict_in_words(self) -> str:
        """The verdict in words for the table."""
        if self.verdict == "differs" and self.ours is not None and self.claim.high is not None:
            return f"differs: ours is {'higher' if self.ours.value > self.claim.high else 'lower'}"
        return {
            "undecided": "undecided: our interval is too wide",
            "refused": "no verdict: our runs do not support it",
        }.get(self.verdict, self.verdict)


def compare(
    quantity: str, claim: PaperClaim, estimate: Callable[[], uncertainty.Estimate], why: str
) -> PaperComparison:
    """A row; where the runs do not support the estimate (`analysis.Refused`) it says so instead."""
    try:
        return PaperComparison(quantity, claim, estimate(), "", why)
    except errors.Refused as reason:
        return PaperComparison(quantity, claim, None, str(reason), why)


def jackknife(frame: pd.DataFrame, group: str, statistic: Callable[[pd.DataFrame], float]) -> uncertainty.Estimate:
    """A statistic with the normal interval of its jackknife over groups of rows (Efron and Stein 1981).

    For statistics of whole training curves, whose points are no independent runs. Raises `Refused` where the statistic
    cannot be had from all rows, or without one group in fewer than three cases.
    """
    estimate = statistic(frame)
    left = []
    for member in frame[group].unique():
        try:
            left.append(statistic(frame[frame[group] != member]))
        except errors.Refused:
            continue
    if len(left) < 3:
        raise errors.Refused(f"only {len(left)} groups of {group!r} can be left out: no interval; add sizes")
    spread = np.sqrt((len(left) - 1) / len(left) * np.sum((np.array(left) - np.mean(left)) ** 2))
    half = 1.96 * float(spread)
    return uncertainty.Estimate(float(estimate), (float(estimate) - half, float(estimate) + half), LEVEL)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the page: the name of its file, its caption, the figure."""

    name: str
    caption: str
    figure: figure.Figure


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an analysis gives back: rows of the table, figures, and sentences on how the numbers were made."""

    rows: tuple[PaperComparison, ...]
    drawings: tuple[Drawing, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Paper:
    """A reproduction. `sweeps(scale)` are trained in order, then `analyse` reads all their results.

    `differs` says what differs from the paper in every row: scale, text, recipe.
    """

    title: str
    source: str
    scales: tuple[str, ...]
    sweeps: Callable[[str], list[config.Sweep]]
    analyse: Callable[[Frames], Findings]
    differs: tuple[str, ...]
