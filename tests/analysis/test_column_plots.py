"""One column of runs against another: every run is a point, every hue a line, and what a reader needs is said."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors

import analysis
from analysis import axes, plots

DECAYS, WIDTHS = [0.0, 0.01, 0.1, 1.0], [32, 64, 128]


@pytest.fixture
def runs() -> pd.DataFrame:
    rows = [
        {
            "run_id": f"{width}-{decay}-{seed}",
            "role": "single",
            "status": "finished",
            "model.width": width,
            "optimizer.weight_decay": decay,
            "model.norm": "rmsnorm" if seed else "layernorm",
            "flops": 1e12 * width**3,
            "loss": 2 + 3 / width**0.4 + (decay - 0.1) ** 2 + 0.01 * seed,
            "loss_se": 0.01,
            "metric/accuracy": width / 200,
            "learning_rate": 0.001 * 1.1**i,
        }
        for i, (width, decay, seed) in enumerate(itertools.product(WIDTHS, DECAYS, [0, 1]))
    ]
    return pd.DataFrame(rows)


def drawn(panel) -> list:
    """The lines of a panel without the caps of its error bars."""
    return [line for line in panel.lines if line.get_linestyle() == "-"]


def test_points_lines_and_error_bars_are_the_runs(runs) -> None:
    panel = plots.metric(runs.sample(frac=1, random_state=0), "optimizer.weight_decay", "loss", "model.width").axes[0]
    lines = drawn(panel)
    assert len(lines) == len(WIDTHS)
    for width, line in zip(WIDTHS, lines, strict=True):
        means = runs[runs["model.width"] == width].groupby("optimizer.weight_decay")["loss"].mean()
        np.testing.assert_allclose(line.get_xdata(), means.index)
        np.testing.assert_allclose(line.get_ydata(), means)
    points = [made for made in panel.collections if len(made.get_offsets()) == 8]
    assert len(points) == len(WIDTHS)
    bars = [made for made in panel.collections if hasattr(made, "get_segments")]
    heights = [np.ptp(segment[:, 1]) for made in bars for segment in made.get_segments()]
    np.testing.assert_allclose(heights, 0.02)
    assert len(heights) == len(runs)
    without = plots.metric(runs.drop(columns="loss_se"), "optimizer.weight_decay", "loss", "model.width").axes[0]
    assert not [made for made in without.collections if hasattr(made, "get_segments")]


@pytest.mark.parametrize(
    ("x", "y", "scales", "labels", "ticks"),
    [
        ("flops", "loss", ("log", "linear"), ("training compute (FLOPs)", "loss (nats per token)"), None),
        ("loss", "flops", ("linear", "log"), ("loss (nats per token)", "training compute (FLOPs)"), None),
        ("model.width", "metric/accuracy", ("linear", "linear"), ("model.width", "accuracy"), ["32", "64", "128"]),
        ("optimizer.weight_decay", "loss", ("symlog", "linear"), None, ["0", "0.01", "0.1", "1"]),
        ("model.norm", "loss", ("linear", "linear"), None, ["layernorm", "rmsnorm"]),
        ("learning_rate", "loss", ("linear", "linear"), ("learning rate", "loss (nats per token)"), None),
    ],
)
def test_axes_suit_their_columns(x, y, scales, labels, ticks, runs) -> None:
    made = plots.metric(runs, x, y)
    made.draw_without_rendering()
    (panel,) = made.axes
    assert (panel.get_xscale(), panel.get_yscale()) == scales
    assert labels is None or (panel.get_xlabel(), panel.get_ylabel()) == labels
    assert ticks is None or [tick.get_text() for tick in panel.get_xticklabels()] == ticks
    assert panel.get_legend() is None


@pytest.mark.parametrize(
    ("hue", "named"),
    [
        ("model.width", ["32", "64", "128"]),
        ("model.norm", ["layernorm", "rmsnorm"]),
        ("optimizer.weight_decay", ["0", "0.01", "0.1", "1"]),
    ],
)
def test_a_legend_names_few_hues_in_order(hue, named, runs) -> None:
    (panel,) = plots.metric(runs, "flops", "loss", hue).axes
    assert panel.get_legend().get_title().get_text() == hue
    assert [text.get_text() for text in panel.get_legend().get_texts()] == named
    tints = [np.mean(colors.to_rgb(line.get_color())) for line in drawn(panel)]
    assert tints == sorted(tints)  # lighter in their order
    assert len(set(tints)) == len(named)


def test_many_hues_are_read_off_a_bar_and_a_missing_one_is_grey(runs) -> None:
    panel, bar = plots.metric(runs, "flops", "loss", "learning_rate").axes
    assert bar.get_ylabel() == "learning rate"
    assert panel.get_legend() is None
    unknown = runs.assign(**{"model.norm": runs["model.norm"].where(runs.index != 5)})
    (panel,) = plots.metric(unknown, "flops", "loss", "model.norm").axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["layernorm", "rmsnorm", "missing"]
    assert [line.get_color() for line in drawn(panel)].index(axes.FAINT) == 2


def test_what_cannot_be_drawn_is_left_out_and_counted(runs) -> None:
    others = [
        {"run_id": "lost", "status": "damaged"},
        {"run_id": "planned", "status": "planned", "role": "single", "optimizer.weight_decay": 0.1},
        {"run_id": "trunk", "status": "finished", "role": "trunk", "optimizer.weight_decay": 0.1, "loss": 9.0},
        {"run_id": "lstm", "status": "finished", "role": "single", "loss": 2.0},
    ]
    frame = pd.concat([runs, pd.DataFrame(others)], ignore_index=True)
    (panel,) = plots.metric(frame, "optimizer.weight_decay", "loss").axes
    told = "left out: 2 of 28 runs without loss and 1 of 28 runs without optimizer.weight_decay and 1 trunks"
    assert panel.get_title(loc="left") == told
    assert sum(len(made.get_offsets()) for made in panel.collections if not hasattr(made, "get_segments")) == len(runs)
    assert plots.metric(runs, "flops", "loss").axes[0].get_title(loc="left") == ""


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("weight_decay", "loss"), "no column 'weight_decay' for the x axis.*nearest are optimizer.weight_decay"),
        (("flops", "lost"), "no column 'lost' for the y axis: the frame has run_id, .*nearest are loss"),
        (("flops", "loss", "width"), "no column 'width' for the hue.*nearest are model.width"),
        (("flops", "model.norm"), "'model.norm' holds 'layernorm', not a number"),
        (("flops", "unmeasured"), r"no run has 'flops' and 'unmeasured' \(left out: 24 of 24 runs without unmeasured"),
    ],
)
def test_what_no_figure_can_be_made_of_is_refused(names, message, runs) -> None:
    with pytest.raises(analysis.Refused, match=message):
        plots.metric(runs.assign(unmeasured=np.nan), *names)
