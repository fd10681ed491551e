"""Train an experiment, read its results, and write its page: the table on the terminal, in Markdown and in HTML."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import rich.box
import rich.console
import rich.table

from analysis import pages, plots
from experiments import papers
from scaling import config, store
from scaling.launch import stages

HEADER = ("quantity", "paper", "where", "ours", "verdict", "what differs and why")


def reproduce(
    name: str, paper: papers.Paper, scale: str, store_path: str, workers: int | None, file: Path | None = None
) -> int:
    """Train, compare, write; 0, or 1 where runs are left without a result.

    `file` defines the paper, and workers read it too: what it trains may be defined there.
    """
    if scale not in paper.scales:
        raise ValueError(f"{name} has no scale {scale!r}; its scales: {', '.join(paper.scales)}")
    sweeps = paper.sweeps(scale)
    for sweep in sweeps:
        if not stages.run(sweep, store_path, workers=workers, config_path=file):
            print(f"not all runs of {sweep.name} have a result yet; start the same command again to go on")
            return 1
    results = store.Store(store_path)
    findings = paper.analyse(read(results, [sweep.name for sweep in sweeps]))
    folder = results.sweep_folder(sweeps[0].name) / "report"
    page = write(paper, sweeps, findings, results, folder)
    show(paper, findings)
    print(f"figures and report: {page}")
    return 0


def read(results: store.Store, sweeps: Sequence[str]) -> papers.Frames:
    """The results of some sweeps of a store, together; a run that two of them list is one run."""
    runs = pd.concat([results.runs(name) for name in sweeps], ignore_index=True)
    curves = pd.concat([results.curves(name) for name in sweeps], ignore_index=True)
    return papers.Frames(
        runs.drop_duplicates("run_id", ignore_index=True),
        curves.drop_duplicates(["run_id", "step"], ignore_index=True),
        results.history,
    )


def write(
    paper: papers.Paper,
    sweeps: Sequence[config.Sweep],
    findings: papers.Findings,
    results: store.Store,
    folder: Path,
) -> Path:
    """report.html and report.md with the table and the figures, in `folder`; gives the HTML file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = pages.Page()
    page.text(f"Paper: {paper.source}.")
    page.heading("The paper's numbers beside ours")
    page.table(HEADER, [_cells(row) for row in findings.rows])
    page.text(
        f"Intervals are at {papers.LEVEL:.0%}. A verdict compares our interval with the paper's number and nothing "
        "more: an exponent at another scale, on other text, need not be the same one."
    )
    page.heading("What differs in every row")
    for sentence in paper.differs:
        page.text(sentence)
    page.heading("Figures")
    for drawing in findings.drawings:
        page.figure(plots.save(drawing.figure, folder / f"{drawing.name}.png"), drawing.caption)
    page.heading("How it was made")
    refused = dict.fromkeys(f"Not measured: {row.refused}" for row in findings.rows if row.refused)
    for note in (*refused, *findings.notes, *(_described(sweep, results.runs(sweep.name)) for sweep in sweeps)):
        page.text(note)
    web = folder / "report.html"
    web.write_text(page.html(paper.title), encoding="utf-8")
    (folder / "report.md").write_text(page.markdown(paper.title), encoding="utf-8")
    return web


def show(paper: papers.Paper, findings: papers.Findings, console: rich.console.Console | None = None) -> None:
    """Print the table, and below it what differs and why."""
    out = console or rich.console.Console(width=None if rich.get_console().is_terminal else 140)
    table = rich.table.Table(title=paper.title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in HEADER[:-1]:
        table.add_column(name, overflow="fold")
    for number, row in enumerate(findings.rows, 1):
        table.add_row(str(number), *(rich.markup.escape(cell) for cell in _cells(row)[:-1]))
    out.print(table)
    for number, row in enumerate(findings.rows, 1):
        out.print(f"{number}. {row.quantity}: {row.why}", markup=False, highlight=False)
    for sentence in (*paper.differs, *findings.notes):
        out.print(f"· {sentence}", markup=False, highlight=False)


def _cells(row: papers.PaperComparison) -> pages.Row:
    return row.quantity, row.claim.text, row.claim.source, row.shown, row.verdict_in_words, row.why


def _described(sweep: config.Sweep, runs: pd.DataFrame) -> str:
    rates = sorted(set(runs["learning_rate"]))
    span = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
    states = ", ".join(f"{count} {state}" for state, count in runs["status"].value_counts().items())
    return (
        f"Sweep {sweep.name}: {states}, {runs['flops'].sum():.3g} training FLOPs (tuning not counted). Learning rates: "
        f"{sweep.learning_rate.describe()} In this sweep: {span}."
    )
