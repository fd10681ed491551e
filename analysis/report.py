"""The report of a sweep: figures, one HTML page that carries them, the same in Markdown, and lines to print."""

import base64
import dataclasses
import html
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis import backtests, checks, errors, frontiers, noise, plots

T = TypeVar("T")
Row = tuple[str, ...]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1080px; margin: 2.5em auto; padding: 0 1.2em }
h1 { font-size: 1.7em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d8dee4 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .9em .3em 0; text-align: left }
th { border-bottom: 1px solid #8c959f; font-weight: 600 } td { border-bottom: 1px solid #eaeef2 }
figure { margin: 1.2em 0 } img { max-width: 100% } figcaption { color: #57606a; font-size: .92em }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; font-size: .82em } .refused { color: #9a6700 }
"""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What to print after a sweep: `lines`, and where the report and its figures are."""

    lines: tuple[str, ...]
    html: pathlib.Path
    markdown: pathlib.Path
    figures: tuple[pathlib.Path, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclasses.dataclass
class _Page:
    """Blocks in order; each is written as HTML and as Markdown."""

    blocks: list[tuple[str, Any]] = dataclasses.field(default_factory=list)

    def heading(self, text: str) -> None:
        self.blocks.append(("heading", text))

    def text(self, text: str) -> None:
        self.blocks.append(("text", text))

    def table(self, header: Row, rows: Sequence[Row]) -> None:
        self.blocks.append(("table", (header, tuple(rows))))

    def figure(self, path: pathlib.Path, caption: str) -> None:
        self.blocks.append(("figure", (path, caption)))

    def verbatim(self, text: str) -> None:
        self.blocks.append(("verbatim", text))

    def html(self, title: str) -> str:
        parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"]
        parts.append(f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>")
        for kind, value in self.blocks:
            if kind == "heading":
                parts.append(f"<h2>{html.escape(value)}</h2>")
            elif kind == "text":
                parts.append(f"<p>{html.escape(value)}</p>")
            elif kind == "verbatim":
                parts.append(f"<pre>{html.escape(value)}</pre>")
            elif kind == "figure":
                path, caption = value
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                words = html.escape(caption)
                parts.append(f"<figure><img alt='{words}' src='data:image/png;base64,{data}'>")
                parts.append(f"<figcaption>{words}</figcaption></figure>")
            else:
                header, rows = value
                cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
                cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
                parts.append("<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>")
        return "\n".join(parts) + "</html>\n"

    def markdown(self, title: str) -> str:
        parts = [f"# {title}"]
        for kind, value in self.blocks:
            if kind == "heading":
                parts.append(f"## {value}")
            elif kind == "text":
                parts.append(value)
            elif kind == "verbatim":
                parts.append(f"```\n{value}\n```")
            elif kind == "figure":
                path, caption = value
                parts.append(f"![{caption}]({path.name})\n\n{caption}")
            else:
                header, rows = value
                lines = [header, tuple("---" for _ in header), *rows]
                parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join(parts) + "\n"


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
    are drawn behind the runs; `notes` are sentences to put on top, such as how learning rates were chosen. Raises
    `Refused` where the runs cannot even be read.
    """
    place = pathlib.Path(folder)
    chosen = checks.runs(frame)
    if not len(chosen.frame):
        raise errors.Refused(f"0 of {chosen.total} rows are finished runs, nothing to report: {dict(chosen.dropped)}")
    for name in (params, "tokens", loss):
        checks.column(chosen.frame, name, "the report")
    place.mkdir(parents=True, exist_ok=True)
    page, lines, drawn = _Page(), [], []
    named = {"loss": loss, "params": params}

    def draw(name: str, caption: str, make: Callable[[], Any]) -> None:
        path = plots.save(make(), place / f"{name}.png")
        drawn.append(path)
        page.figure(path, caption)

    fitted = {n: _try(lambda n=n: frontiers.frontier(frame, n, resamples=resamples, **named)) for n in (1, 2, 3)}
    one, two, three = fitted[1], fitted[2], fitted[3]
    spread = noise.seed_noise(frame, loss)

    for note in notes:
        page.text(note)
    page.heading("Runs")
    for line in _runs_lines(chosen, params, loss, spread):
        page.text(line)
        lines.append(line)

    page.heading("Compute-optimal scaling")
    rows = [_exponents(n, result) for n, result in fitted.items()]
    page.table(("approach", "N* ∝ C^a", "D* ∝ C^b"), rows)
    lines += [f"approach {row[0]}: a = {row[1]}, b = {row[2]}" for row in rows]
    made = [f for f in (one, two, three) if isinstance(f, frontiers.Frontier)]
    if len(made) > 1:
        values = [f.exponent_params.value for f in made]
        line = f"the approaches differ by {max(values) - min(values):.3f} in a"
        page.text(line)
        lines.append(line)
    if "flops" in chosen.frame.columns and chosen.frame["flops"].notna().all():
        best = three if isinstance(three, frontiers.Frontier) else made[-1] if made else None
        draw("loss_compute", "Loss against training compute, with the efficient frontier.",
             lambda: plots.loss_compute(frame, best, curves, **named))  # fmt: skip
        draw("loss_params", "Loss against parameters, by compute budget.", lambda: plots.loss_params(frame, **named))
    else:
        page.text("No figure against compute: the table has no column flops.")
    if isinstance(two, frontiers.Frontier):
        draw("isoflop", "Iso-FLOP curves with their minima (diamonds), and the compute-optimal parameters and tokens.",
             lambda: plots.isoflop(frame, two, **named))  # fmt: skip
    if isinstance(three, frontiers.Frontier):
        draw("fitted_law", "The fitted law: loss contours with the frontier, slices by budget, measured on predicted.",
             lambda: plots.fitted(three, frame))  # fmt: skip
        assert three.fit is not None
        assert three.bootstrap is not None
        page.heading("Fitted law")
        parameters = []
        for name, value in three.fit.params.items():
            low, high = three.bootstrap.interval(name, three.level)
            parameters.append((name, f"{value:.5g}", f"{low:.4g} to {high:.4g}"))
        page.text(f"{three.fit.law.equation}   [{three.fit.law.source}]")
        page.table(("parameter", "value", f"{three.level:.0%} interval"), parameters)
        lines.append("law: " + three.fit.law.equation)
        lines += [f"  {name} = {value} ({interval})" for name, value, interval in parameters]

    page.heading("Held-out largest budget")
    table = _try(lambda: backtests.backtest("hoffmann", frame, resamples=resamples, **named))
    if isinstance(table, errors.Refused):
        page.text(f"Not made: {table}")
        lines.append(f"hold-out: not made: {table}")
    else:
        told = _held_out(table)
        lines.append(told)
        page.text(told)
        draw("held_out", "The largest budget, predicted from the smaller ones.", lambda: plots.backtest(table))
        shown = ("measured", "predicted", "low", "high", "error")
        page.table(("params", "tokens", *shown), [
            (f"{row['params']:.4g}", f"{row['tokens']:.4g}", *(f"{row[k]:.4f}" for k in shown))
            for _, row in table.iterrows()
        ])  # fmt: skip

    page.heading("What to buy next")
    rows = [row for result in made for row in _allocations(result, chosen.frame)]
    page.table(("approach", "FLOPs", "N*", "D*", "loss"), rows)
    page.heading("How it was made")
    said = [
        s
        for result in made
        for s in (*result.statements, *result.excluded, *(f"warning: {w}" for w in result.warnings))
    ]
    checklist = three.fit.checklist() if isinstance(three, frontiers.Frontier) and three.fit else ""
    page.verbatim("\n".join(dict.fromkeys(said)))
    page.verbatim(checklist)
    lines += [f"warning: {w}" for w in dict.fromkeys(w for result in made for w in result.warnings)]

    web, marked = place / "report.html", place / "report.md"
    web.write_text(page.html(title), encoding="utf-8")
    marked.write_text(page.markdown(title), encoding="utf-8")
    lines.append(f"figures and report: {web}")
    return Summary(tuple(lines), web, marked, tuple(drawn))


def _try(make: Callable[[], T]) -> T | errors.Refused:
    """The result, or the reason why the data do not support it; any other error is ours and is raised."""
    try:
        return make()
    except errors.Refused as reason:
        return reason


def _runs_lines(chosen: checks.Selection, params: str, loss: str, spread: noise.SeedNoise) -> list[str]:
    dropped = ", ".join(f"{count} where {why}" for why, count in chosen.dropped) or "none"
    runs = chosen.frame
    best = runs.groupby(params)[loss].min()
    drop = best.iloc[0] - best.iloc[-1]
    measured = (
        f"{drop:.4f} nats/token, {drop / spread.sd:.0f} seed deviations" if spread.sd > 0 else f"{drop:.4f} nats/token"
    )
    return [
        f"runs: {len(runs)} finished of {chosen.total}; dropped: {dropped}",
        spread.message,
        f"largest model ({best.index[-1]:.4g} {params}) at its best beats the smallest ({best.index[0]:.4g}) by {measured}",
    ]


def _exponents(number: int, result: "frontiers.Frontier | errors.Refused") -> Row:
    name = {1: "1 (envelope)", 2: "2 (iso-FLOP)", 3: "3 (fitted law)"}[number]
    if isinstance(result, errors.Refused):
        return name, f"refused: {result}", ""
    return name, str(result.exponent_params), str(result.exponent_tokens)


def _held_out(table: pd.DataFrame) -> str:
    rms = float(np.sqrt(np.mean(table["error"] ** 2)))
    spread = float(table["seed_noise"].iloc[0])
    beside = f"seed noise {spread:.4f}" if np.isfinite(spread) else "seed noise not measured"
    best = table.loc[table["measured"].idxmin()]
    return (
        f"held-out largest budget ({len(table)} runs): best run measured {best['measured']:.4f}, predicted "
        f"{best['predicted']:.4f} ({best['low']:.4f} to {best['high']:.4f}); rms error {rms:.4f} nats/token beside "
        f"{beside}; {int(table['inside'].sum())} of {len(table)} inside the interval"
    )


def _allocations(result: frontiers.Frontier, runs: pd.DataFrame) -> list[Row]:
    largest = (
        float(runs["flops"].max()) if "flops" in runs.columns else 6.0 * float((runs["params"] * runs["tokens"]).max())
    )
    rows = []
    for factor in (1.0, 10.0, 100.0):
        bought = result.allocate(largest * factor)
        cells = (f"{e.value:.3g} ({e.interval[0]:.3g} to {e.interval[1]:.3g})" for e in (bought.params, bought.tokens))
        at = f"{bought.loss.value:.4f} ({bought.loss.interval[0]:.4f} to {bought.loss.interval[1]:.4f})"
        rows.append((str(result.approach), f"{bought.flops:.3g}", *cells, at))
    return rows
