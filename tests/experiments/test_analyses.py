"""The analyses on planted results: planted exponents come back, every row carries its source, figures have content."""

import functools
import io
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import rich.console

import experiments
from analysis import errors, uncertainty
from experiments import hoffmann2022, kaplan2020, papers, running
from tests.experiments import planted

Plant = Callable[..., papers.Frames]
CASES: dict[str, Plant] = {
    "kaplan2020": functools.partial(planted.kaplan, converged=True),
    "hoffmann2022": planted.hoffmann,
}


@functools.cache
def analysed(name: str, noise: float) -> papers.Findings:
    paper = experiments.find(name)
    return paper.analyse(CASES[name](paper.sweeps("cpu"), noise=noise))


@pytest.fixture(params=sorted(CASES))
def noisy(request: pytest.FixtureRequest) -> papers.Findings:
    return analysed(request.param, noise=0.003)


def row(findings: papers.Findings, start: str) -> papers.PaperComparison:
    return next(row for row in findings.rows if row.quantity.startswith(start))


def test_every_row_has_a_citation_and_says_what_differs(noisy: papers.Findings) -> None:
    for found in noisy.rows:
        assert "arXiv" in found.claim.source or "et al." in found.claim.source
        assert any(word in found.claim.source for word in ("eq.", "table", "figure", "section"))
        assert len(found.why) > 20
        assert found.ours is not None, f"{found.quantity}: {found.refused}"
        low, high = found.ours.interval
        assert low <= found.ours.value <= high
        assert found.verdict_in_words


def test_figures_are_drawn_with_labels(noisy: papers.Findings) -> None:
    assert len(noisy.drawings) == 3
    for drawing in noisy.drawings:
        panels = [panel for panel in drawing.figure.axes if panel.get_xlabel()]
        assert len(panels) >= 2
        assert all(panel.get_ylabel() for panel in panels)
        assert all(panel.lines or panel.collections for panel in panels)


def test_seed_noise_is_told(noisy: papers.Findings) -> None:
    assert any(note.startswith("seed noise 0.0") for note in noisy.notes)


def test_hoffmann_recovers_the_planted_law() -> None:
    found = analysed("hoffmann2022", noise=0.0)
    for name in planted.HOFFMANN:
        ours = row(found, f"{name} of").ours
        assert ours is not None
        assert ours.value == pytest.approx(planted.HOFFMANN[name], rel=1e-3)
    law = planted.HOFFMANN
    exponent = row(found, "N* ∝ C^a, approach 3").ours
    assert exponent is not None
    assert exponent.value == pytest.approx(law["beta"] / (law["alpha"] + law["beta"]), abs=0.03)  # work is not 6ND here


def test_hoffmann_measures_a_cosine_that_is_too_long() -> None:
    frames = planted.hoffmann(hoffmann2022.sweeps("cpu"))
    pairs = hoffmann2022.overshoots(frames)
    assert len(pairs) >= 10
    expected = planted.OVERSHOOT * (1 - 1 / pairs["factor"]) * (1 - hoffmann2022.LAST / 2)
    assert pairs["excess"].to_numpy() == pytest.approx(expected.to_numpy(), rel=0.05)
    assert row(analysed("hoffmann2022", noise=0.0), "loss lost").verdict == "agrees"


def test_kaplan_recovers_the_planted_exponents() -> None:
    found = analysed("kaplan2020", noise=0.003)
    law = planted.KAPLAN
    ratio = law["alpha_N"] / law["alpha_D"]
    expected = {
        "α_N": law["alpha_N"],
        "α_D": planted.LIMITED["alpha_D"],
        "α_C": law["alpha_N"] / (1 + ratio),
        "N* ∝": 1 / (1 + ratio),
    }
    for start, value in expected.items():
        ours = row(found, start).ours
        assert ours is not None
        assert ours.value == pytest.approx(value, rel=0.05), start
    assert row(found, "loss of LSTM").verdict == "agrees"


def test_kaplan_takes_the_best_loss_of_a_run_that_overfits() -> None:
    frames = planted.kaplan(kaplan2020.sweeps("cpu"))
    limited = kaplan2020.parts(frames).limited
    final = frames.runs.set_index("run_id").loc[limited["run_id"], "loss"].to_numpy()
    assert len(limited) == 8
    assert (limited["loss"].to_numpy() < final).all()
    assert set(kaplan2020.parts(frames).ladder["run_id"]).isdisjoint(limited["run_id"])


def test_without_learning_curves_or_lstms_the_rows_say_so() -> None:
    frames = planted.kaplan(kaplan2020.sweeps("cpu"))
    runs = frames.runs[frames.runs["family"] == "transformer"]
    found = kaplan2020.analyse(papers.Frames(runs, frames.curves.iloc[:0], frames.history))
    assert row(found, "N* ∝").verdict == "refused"
    assert "learning curves" in row(found, "N* ∝").shown
    assert row(found, "loss of LSTM").verdict == "refused"
    assert row(found, "α_N").ours is not None
    assert found.drawings


def test_diverged_runs_enter_nothing() -> None:
    frames = planted.hoffmann(hoffmann2022.sweeps("cpu"))
    runs = frames.runs.copy()
    runs.loc[0, ["status", "loss"]] = ["diverged", np.nan]
    found = hoffmann2022.analyse(papers.Frames(runs, frames.curves, frames.history))
    ours = row(found, "alpha of").ours
    assert ours is not None
    assert ours.value == pytest.approx(planted.HOFFMANN["alpha"], rel=1e-3)


def _estimate(value: float, low: float, high: float) -> uncertainty.Estimate:
    return uncertainty.Estimate(value, (low, high), 0.95)


@pytest.mark.parametrize(
    ("claim", "ours", "verdict"),
    [
        ((0.5, 0.5), (0.5, 0.45, 0.55), "agrees within our interval"),
        ((0.5, 0.5), (0.5, 0.2, 0.8), "undecided"),
        ((0.5, 0.5), (0.7, 0.6, 0.8), "differs"),
        ((0.4, 0.6), (0.5, 0.45, 0.55), "agrees"),
        ((0.0, math.inf), (0.1, 0.05, 0.2), "agrees"),
        ((0.0, math.inf), (0.1, -0.05, 0.2), "undecided"),
        ((0.0, math.inf), (-0.1, -0.2, -0.05), "differs"),
        ((None, None), (0.5, 0.4, 0.6), "not comparable"),
    ],
)
def test_verdicts(claim: tuple, ours: tuple, verdict: str) -> None:
    made = papers.compare("x", papers.PaperClaim("x", "here", *claim), lambda: _estimate(*ours), "why")
    assert made.verdict == verdict
    if verdict == "differs":
        assert made.verdict_in_words.endswith("higher" if ours[0] > 0.5 else "lower")


def test_what_is_refused_is_shown_with_its_reason() -> None:
    def refuse() -> uncertainty.Estimate:
        raise errors.Refused("too few runs; add some")

    made = papers.compare("x", papers.value(1.0, "here"), refuse, "why")
    assert made.verdict == "refused"
    assert "too few runs" in made.shown


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=40)
    frame = pd.DataFrame({"x": values, "group": range(40)})
    found = papers.jackknife(frame, "group", lambda f: float(f["x"].mean()))
    assert found.value == pytest.approx(values.mean())
    half = (found.interval[1] - found.interval[0]) / 2
    assert half == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(40))


def test_the_table_prints_numbers_and_reasons(noisy: papers.Findings) -> None:
    console = rich.console.Console(width=140, record=True, file=io.StringIO())
    running.show(experiments.find("kaplan2020"), noisy, console)
    text = console.export_text()
    assert "arXiv 2" in text
    assert noisy.rows[0].why[:40] in text
