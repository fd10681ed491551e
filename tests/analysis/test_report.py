"""Back-tests, figures with something on them, and a report that carries the numbers or the reasons."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

import analysis


@pytest.fixture(scope="module")
def curves(sweep) -> pd.DataFrame:
    share = np.linspace(0.05, 1, 20)
    return pd.concat(
        [
            pd.DataFrame({"run_id": run.run_id, "flops": share * run.flops, "loss": run.loss * (1.3 - 0.3 * share)})
            for run in sweep.itertuples()
        ]
    )


def shown(figure, path) -> None:
    """The figure has labelled axes with marks on them, and its file is not blank."""
    for panel in figure.axes:
        assert panel.get_xlabel() or panel.get_ylabel()
    drawn = [panel for panel in figure.axes if panel.get_xlabel()]
    for panel in drawn:
        assert panel.get_ylabel()
        assert len(panel.collections) + len(panel.lines) >= 2
        assert 2 <= len([t for t in panel.get_xticks() if panel.get_xlim()[0] <= t <= panel.get_xlim()[1]]) <= 12
    pixels = image.imread(analysis.plots.save(figure, path))
    assert pixels.shape[0] > 500
    assert len(np.unique((pixels[:, :, :3] @ np.array([1, 256, 65536])).round(3))) > 100


def test_every_figure_shows_something(tmp_path, sweep, curves) -> None:
    two, three = (analysis.frontier(sweep, n, resamples=50) for n in (2, 3))
    plots = analysis.plots
    compute = plots.loss_compute(sweep, three, curves)
    assert len(compute.axes[0].lines) == len(sweep) + 1
    shown(compute, tmp_path / "compute.png")
    shown(plots.loss_params(sweep), tmp_path / "params.png")
    isoflop = plots.isoflop(sweep, two)
    assert len([line for line in isoflop.axes[0].lines if line.get_marker() == "D"]) == 5
    assert "0.5" in isoflop.axes[1].texts[0].get_text()
    shown(isoflop, tmp_path / "isoflop.png")
    shown(plots.fitted(three, sweep), tmp_path / "fitted.png")
    shown(plots.backtest(analysis.backtest("hoffmann", sweep, resamples=50)), tmp_path / "backtest.png")
    plots.save(plots.loss_params(sweep), tmp_path / "params.svg")
    with pytest.raises(ValueError, match="change the suffix"):
        plots.save(plots.loss_params(sweep), tmp_path / "params.gif")
    with pytest.raises(ValueError, match="frontier"):
        plots.isoflop(sweep, three)
    with pytest.raises(ValueError, match="frontier"):
        plots.fitted(two, sweep)


def test_the_report_carries_the_numbers(tmp_path, sweep, curves) -> None:
    summary = analysis.report.write(sweep, tmp_path, "A <planted> sweep", curves, ("Rates were tuned.",), resamples=100)
    told = str(summary)
    page, marked = summary.html.read_text(), summary.markdown.read_text()
    three = analysis.frontier(sweep, 3, resamples=100)
    for text in (told, page, marked):
        assert f"{three.exponent_params.value:.3f}" in text
        assert "Rates were tuned." in text
        assert "seed deviations" in text
        assert "held-out largest budget (6 runs)" in text
    assert all(f"approach {n}" in told for n in (1, 2, 3))
    assert "A &lt;planted&gt; sweep" in page
    assert page.count("data:image/png;base64,") == len(summary.figures) == 6
    for figure in summary.figures:
        assert figure.is_file()
        assert f"]({figure.name})" in marked
    first = [line.split(":")[0] for line in summary.lines]
    assert first.index("runs") > max(first.index("warning"), first.index("at 4e+13 FLOPs, 10 times the largest run"))


def test_the_report_gives_reasons_for_what_cannot_be_made(tmp_path, table) -> None:
    summary = analysis.report.write(table("narayan_jax_chinchilla_small.csv"), tmp_path, "One ratio", resamples=20)
    assert str(summary).count("one ratio of tokens to parameters") == 5
    assert "one ratio of tokens to parameters" in summary.html.read_text()
    with pytest.raises(analysis.Refused, match="nothing to report"):
        analysis.report.write(pd.DataFrame({"status": ["failed"], "loss": [np.nan]}), tmp_path, "None")


def test_an_error_of_ours_is_not_swallowed(tmp_path, sweep, monkeypatch) -> None:
    from analysis import frontiers

    def broken(*_args, **_kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(frontiers, "frontier", broken)
    with pytest.raises(ValueError, match="a bug"):
        analysis.report.write(sweep, tmp_path, "Broken")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("costed", [True, False])
def test_a_failed_row_without_numbers_does_not_stop_the_report(costed, tmp_path, sweep) -> None:
    failed = {"run_id": "failed", "status": "failed", "family": "transformer"}
    numbers = ["params", "tokens", "loss", "flops", "flops_budget", "epochs", "seed"]
    rows = pd.concat([sweep, pd.DataFrame([{**sweep.iloc[0], **failed, **dict.fromkeys(numbers, "-")}])])
    rows = rows if costed else rows.drop(columns=["flops", "flops_budget"])
    sweep = sweep if costed else sweep.drop(columns=["flops", "flops_budget"])
    rows.to_csv(tmp_path / "runs.csv", index=False)
    summary = analysis.report.write(analysis.read_csv(tmp_path / "runs.csv"), tmp_path / "a", "Failed", resamples=20)
    clean = analysis.report.write(sweep, tmp_path / "b", "Clean", resamples=20)
    assert "36 finished of 37; dropped: 1 where status is failed" in str(summary)
    said = [[line for line in one.lines if not line.startswith(("runs: ", "figures "))] for one in (summary, clean)]
    assert [line for line in said[0] if line not in said[1]] == ["1 rows where status is failed"]


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_how_predicted_times_came_out(tmp_path, sweep) -> None:
    """Trunks count there and in no law; runs without a prediction, or that did not finish, count nowhere."""
    timed = sweep.assign(seconds=10.0, predicted_seconds=8.0, status="finished", role="single")
    timed.loc[timed.index[0], ["seconds", "predicted_seconds"]] = [5.0, 10.0]
    timed.loc[timed.index[1], "predicted_seconds"] = np.nan
    extra = {"role": ["trunk", "single"], "status": ["finished", "diverged"], "seconds": [100.0, 1000.0]}
    more = pd.DataFrame([timed.iloc[5], timed.iloc[6]]).assign(**extra)
    whole = pd.concat([timed, more], ignore_index=True)
    summary = analysis.report.write(whole, tmp_path, "Timed", resamples=20)
    count = len(sweep) - 2  # of the single runs: without the first two
    told = (
        f"time of {count + 2} runs, without compiling: predicted {count * 8 + 18:.0f} s, measured "
        f"{count * 10 + 105:.0f} s in all; median ratio 1.25, from 0.50 to 12.50"
    )
    assert told in str(summary)
    assert f"<p>{told}</p>" in summary.html.read_text()
    table = summary.markdown.read_text().split(told)[1].split("##")[0].strip().splitlines()
    assert len(table) == 2 + sweep["params"].nunique()
    assert "time of" not in str(analysis.report.write(sweep, tmp_path / "b", "Untimed", resamples=20))
