"""The report of a sweep: figures, one HTML page that carries them, the same in Markdown, and lines to print."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from matplotlib import figure

from analysis import (
    axes,
    backtests,
    checks,
    definitions,
    doubts,
    errors,
    frontiers,
    noise,
    pages,
    plots,
    prediction,
    timings,
    uncertainty,
)

T = TypeVar("T")
FACTORS = (1.0, 10.0, prediction.FAR)  # of the largest budget, at which the report predicts


@dataclasses.dataclass(frozen=True)
class Summary:
    """What to print after a sweep: `lines`, and where the report and its figures are."""

    lines: tuple[str, ...]
    html: pathlib.Path
    markdown: pathlib.Path
    figures: tuple[pathlib.Path, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def write(
    frame: pd.DataFrame,
    folder: str | os.PathLike[str],
    title: str,
    curves: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    *,
    loss: str = "loss",
    params: str = "params",
    resamples: int = 1000,
) -> Summary:
    """Fit, draw and write report.html, report.md and PNG figures into `folder`.

    A part that the data cannot support is replaced by the reason; `curves` (run_id, flops, loss: a row an evaluation)
    are drawn behind the runs; `notes` are sentences about the runs, such as how learning rates were chosen. What to
    doubt comes first, then what larger runs will reach (`analysis.predictor`). Raises
    `Refused` where there is no finished run, or its parameters, tokens or loss are no positive numbers.
    """
    frame, statements = definitions.complete(frame, ("params", "tokens", "flops"), {"params": params})
    chosen = checks.runs(frame)
    if not len(chosen.frame):
        raise errors.Refused(f"0 of {chosen.total} rows are finished runs, nothing to report: {dict(chosen.dropped)}")
    for name in (params, "tokens", loss):
        checks.column(chosen.frame, name, "the report")
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    draft = _Draft(frame, chosen, place, loss, params, resamples)
    draft.warnings()
    draft.predictions()
    draft.runs(notes, statements)
    draft.exponents()
    draft.figures(curves)
    draft.law()
    draft.held_out()
    draft.times()
    draft.how()
    web, marked = place / "report.html", place / "report.md"
    web.write_text(draft.page.html(title), encoding="utf-8")
    marked.write_text(draft.page.markdown(title), encoding="utf-8")
    draft.lines.append(f"figures and report: {web}")
    return Summary(tuple(draft.lines), web, marked, tuple(draft.drawn))


class _Draft:
    """The report while it is written: the page, the lines to print, the figures drawn."""

    def __init__(
        self, frame: pd.DataFrame, chosen: checks.Selection, place: pathlib.Path, loss: str, params: str, resamples: int
    ) -> None:
        self.page, self.lines, self.drawn = pages.Page(), list[str](), list[pathlib.Path]()
        self.place, self.chosen, self.loss, self.params, self.resamples = place, chosen, loss, params, resamples
        self.frame = frame
        self.noise = noise.seed_noise(frame, loss)
        self.tried = {number: _try(functools.partial(self._frontier, number)) for number in (1, 2, 3)}
        self.frontiers = [result for result in self.tried.values() if isinstance(result, frontiers.Frontier)]
        self.backtest = _try(self._backtest)
        self.prediction = _try(self._prediction)

    def _backtest(self) -> backtests.Backtest:
        return backtests.backtest("hoffmann", self.frame, loss=self.loss, resamples=self.resamples, params=self.params)

    def _prediction(self) -> tuple[prediction.Predictor, list[prediction.Budget]]:
        """What several laws predict together, and what FACTORS times the largest run's FLOPs should buy by them."""
        predictor = prediction.predictor(self.frame, loss=self.loss, params=self.params)
        return predictor, [predictor.allocate(factor * predictor.largest) for factor in FACTORS]

    def _frontier(self, approach: int, params: str | None = None) -> frontiers.Frontier:
        counted = params or self.params
        return frontiers.frontier(self.frame, approach, loss=self.loss, params=counted, resamples=self.resamples)

    def by(self, approach: int) -> frontiers.Frontier | None:
        result = self.tried[approach]
        return result if isinstance(result, frontiers.Frontier) else None

    def say(self, line: str) -> None:
        self.page.text(line)
        self.lines.append(line)

    def draw(self, name: str, caption: str, figure: figure.Figure) -> None:
        self.drawn.append(plots.save(figure, self.place / f"{name}.png"))
        self.page.figure(self.drawn[-1], caption)

    def warnings(self) -> None:
        """What contradicts itself or is not determined, before any number."""
        warned = [*doubts.disagreement(self.frontiers)]
        if isinstance(self.backtest, backtests.Backtest):
            warned += doubts.uncovered(self.backtest)
        if not isinstance(self.prediction, errors.Refused):
            warned += [line for budget in self.prediction[1] for line in budget.loss.warnings]
        warned += [line for frontier in self.frontiers for line in frontier.warnings]
        if warned:
            self.page.heading("Warnings")
            for line in dict.fromkeys(warned):
                self.say(f"warning: {line}")

    def predictions(self) -> None:
        """Losses at and beyond the largest budget by several laws, each with an interval for a new run."""
        self.page.heading("What larger runs will reach")
        if isinstance(self.prediction, errors.Refused):
            self.say(f"prediction by several laws: refused: {self.prediction}")
            return
        predictor, budgets = self.prediction
        self.page.text(
            f"The best sizes for a budget and the loss of a new run there, by the mean of {len(predictor.fits)} laws. "
            "The intervals count that every one of them may be wrong; how that is done and where it was tested is in "
            "docs/predictions.md."
        )
        rows = []
        for factor, budget in zip(FACTORS, budgets, strict=True):
            loss, laws = budget.loss, budget.loss.members.iloc[0]
            n, d = (
                f"{axes.human(value)} ({axes.human(least)} to {axes.human(most)})"
                for value, (least, most) in (
                    (budget.params, budget.params_by_law),
                    (budget.tokens, budget.tokens_by_law),
                )
            )
            interval = f"{loss.value[0]:.4f} ({loss.low[0]:.4f} to {loss.high[0]:.4f})"
            rows.append((f"{budget.flops:.3g}", f"{factor:g}", n, d, interval, f"{laws.min():.4f} to {laws.max():.4f}"))
            self.lines.append(
                f"at {budget.flops:.3g} FLOPs, {factor:g} times the largest run: loss {interval}, 95% of new runs; "
                f"params {n}, tokens {d} by law"
            )
        header = ("FLOPs", "times the largest run", "N* (by law)", "D* (by law)", "loss (95% of new runs)", "by law")
        self.page.table(header, rows)
        figure = plots.prediction(self.frame, predictor, loss=self.loss)
        self.draw(
            "prediction", "Predicted losses of new runs at the best sizes, beyond the runs that there are.", figure
        )
        self.page.verbatim("\n".join(predictor.statements))

    def runs(self, notes: Sequence[str], statements: Sequence[str]) -> None:
        """How many runs there are and what they show; `statements` say which columns were made of others."""
        runs = self.chosen.frame
        dropped = ", ".join(f"{count} where {why}" for why, count in self.chosen.dropped) or "none"
        sizes_of, losses = (checks.column(runs, name, "the report") for name in (self.params, self.loss))
        best = pd.Series(losses).groupby(sizes_of).min().sort_index()
        gain = float(best.iloc[0] - best.iloc[-1])
        beside = f", {gain / self.noise.sd:.0f} seed deviations" if self.noise.sd > 0 else ""
        sizes = [axes.human(float(size)) for size in (best.index[-1], best.index[0])]
        self.page.heading("Runs")
        for note in notes:
            self.say(note)
        self.say(f"runs: {len(runs)} finished of {self.chosen.total}; dropped: {dropped}")
        self.say(self.noise.message)
        self.say(
            f"largest model ({sizes[0]} {self.params}) at its best beats the smallest ({sizes[1]}) by {gain:.4f} "
            f"nats/token{beside}"
        )
        for line in statements:
            self.say(line)

    def exponents(self) -> None:
        self.page.heading("Compute-optimal scaling")
        rows = []
        for number, name in ((1, "1 (envelope)"), (2, "2 (iso-FLOP)"), (3, "3 (fitted law)")):
            result = self.tried[number]
            if isinstance(result, frontiers.Frontier):
                rows.append((name, _short(result.exponent_params), _short(result.exponent_tokens)))
                self.lines.append(f"approach {name}: N* ∝ C^a with a = {rows[-1][1]}; D* ∝ C^b with b = {rows[-1][2]}")
            else:
                rows.append((name, f"refused: {result}", "—"))
                self.lines.append(f"approach {name}: refused: {result}")
        self.page.table(("approach", "a of N* ∝ C^a", "b of D* ∝ C^b"), rows)
        if len(self.frontiers) > 1:
            values = [frontier.exponent_params.value for frontier in self.frontiers]
            self.say(f"the approaches differ by at most {max(values) - min(values):.3f} in a")
        self.conventions()
        if self.frontiers:
            self.page.text(
                "What a budget should buy if an approach is right, and the loss with its interval under that."
            )
            largest = float(checks.column(checks.runs(self.frame).frame, "flops", "the largest budget").max())
            bought = [(one, one.allocate(largest * more)) for one in self.frontiers for more in FACTORS]
            self.page.table(
                ("approach", "FLOPs", "N*", "D*", "loss"),
                [
                    (str(one.approach), f"{at.flops:.3g}", _counted(at.params), _counted(at.tokens), _short(at.loss))
                    for one, at in bought
                ],
            )

    def conventions(self) -> None:
        """The exponents again under every other parameter count that the runs carry (Porian et al. 2406.19146)."""
        others = [name for name in ("params", "params_non_embedding", "params_with_head") if name != self.params]
        rows = []
        for name in (name for name in others if name in self.frame.columns and _counts(self.chosen.frame[name])):
            for frontier in self.frontiers:
                again = _try(functools.partial(self._frontier, frontier.approach, name))
                exponent = str(again) if isinstance(again, errors.Refused) else _short(again.exponent_params)
                rows.append((name, str(frontier.approach), exponent))
                self.lines.append(f"counting {name}, approach {frontier.approach}: a = {exponent}")
        if rows:
            self.page.text(f"The same with parameters counted otherwise (above: {self.params}):")
            self.page.table(("parameters counted", "approach", "a of N* ∝ C^a"), rows)

    def figures(self, curves: pd.DataFrame | None) -> None:
        two, three = self.by(2), self.by(3)
        best = three or two or self.by(1)
        named = {"loss": self.loss, "params": self.params}
        self.draw(
            "loss_compute",
            "Loss against training compute: runs coloured by size, and the efficient frontier.",
            plots.loss_compute(self.frame, best, curves, **named),
        )
        self.draw("loss_params", "Loss against parameters, by compute budget.", plots.loss_params(self.frame, **named))
        if two:
            self.draw(
                "isoflop",
                "Iso-FLOP curves with their minima (diamonds), and the compute-optimal parameters and tokens.",
                plots.isoflop(self.frame, two, **named),
            )
        if three:
            self.draw(
                "fitted_law",
                "The fitted law: loss contours with the frontier, slices by budget, measured on predicted loss.",
                plots.fitted(three, self.frame),
            )

    def law(self) -> None:
        three = self.by(3)
        if three is None or three.fit is None or three.bootstrap is None:
            return
        self.page.heading("Fitted law")
        self.say(f"law: {three.fit.law.equation}  [{three.fit.law.source}]")
        rows = []
        for name, value in three.fit.params.items():
            interval = three.bootstrap.interval_text(name, three.level)
            rows.append((name, f"{value:.5g}", interval))
            self.lines.append(f"  {name} = {value:.5g} ({interval})")
        self.page.table(("parameter", "value", "of resampled runs"), rows)

    def held_out(self) -> None:
        self.page.heading("Held-out largest budget")
        backtest = self.backtest
        if isinstance(backtest, errors.Refused):
            self.say(f"hold-out: refused: {backtest}")
            return
        table = backtest.latest
        rms = float(np.sqrt(np.mean(table["error"] ** 2)))
        beside = f"seed noise {self.noise.sd:.4f}" if self.noise.sd > 0 else "seed noise not measured"
        best = table.sort_values("measured").iloc[0]
        self.say(
            f"held-out largest budget ({len(table)} runs): best run measured {best['measured']:.4f}, predicted "
            f"{best['predicted']:.4f} ({best['low']:.4f} to {best['high']:.4f}); rms error {rms:.4f} nats/token beside "
            f"{beside}; {int(table['inside'].sum())} of {len(table)} inside the interval"
        )
        self.draw("held_out", "The largest budget, predicted from the smaller ones.", plots.backtest(backtest))
        shown = ("measured", "predicted", "low", "high", "error")
        rows = [
            (*(axes.human(float(row[k])) for k in ("params", "tokens")), *(f"{row[k]:.4f}" for k in shown))
            for _, row in table.iterrows()
        ]
        self.page.table(("params", "tokens", *shown), rows)
        if len(backtest.origins) > 1:
            self.page.text("Rolling origin: the law fitted up to each of the largest budgets, predicting those above.")
            for line in backtest.by_origin():
                self.say(line.strip())

    def times(self) -> None:
        """Predicted beside measured times, where times were predicted."""
        comparison = timings.compare(self.frame, self.params)
        if comparison is not None:
            self.page.heading("Time")
            self.say(comparison.line)
            self.page.table(comparison.header, comparison.rows)

    def how(self) -> None:
        self.page.heading("How it was made")
        three = self.by(3)
        said = [line for frontier in self.frontiers for line in (*frontier.statements, *frontier.excluded)]
        checklist = (
            three.fit.checklist("intervals above: of resampled runs").splitlines() if three and three.fit else []
        )
        self.page.verbatim("\n".join(dict.fromkeys(said)))
        if checklist:
            self.page.text("Checklist of the fitted law (Li et al. 2025, arXiv 2502.18969):")
            self.page.verbatim("\n".join(checklist))
        excluded = [line for frontier in self.frontiers for line in frontier.excluded]
        self.lines += dict.fromkeys(line for line in (*excluded, *checklist) if line not in self.lines)


def _counts(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column, errors="coerce").gt(0).all())


def _short(estimate: uncertainty.Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.level:.0%}: {estimate.interval[0]:.3f} to {estimate.interval[1]:.3f})"


def _counted(estimate: uncertainty.Estimate) -> str:
    value, low, high = (axes.human(v) for v in (estimate.value, *estimate.interval))
    return f"{value} ({low} to {high})"


def _try(make: Callable[[], T]) -> T | errors.Refused:
    """The result, or the reason why the data do not support it; any other error is ours and is raised."""
    try:
        return make()
    except errors.Refused as reason:
        return reason
