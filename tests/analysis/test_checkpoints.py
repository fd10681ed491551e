"""Rows that look like checkpoints of runs are warned about, and never resampled by run without being told to."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import checkpoints


def curves(rows: int = 12) -> pd.DataFrame:
    """8 runs with `rows` checkpoints each; a run is above or below its law as a whole."""
    rng = np.random.default_rng(0)
    size = np.repeat(np.geomspace(1e6, 1e9, 8), rows)
    step = np.tile(np.arange(1, rows + 1), 8)
    frame = pd.DataFrame({"run": [f"r{i // rows}" for i in range(8 * rows)], "step": step, "params": size})
    frame["tokens"] = 4.0 * size * step
    off = np.repeat(0.02 * rng.normal(size=8), rows)
    return frame.assign(loss=(1.7 + 400 / size**0.34 + 900 / frame["tokens"] ** 0.3) * np.exp(off))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f, "cluster='run' (--cluster run)"),
        (lambda f: f.drop(columns="step"), "cluster='run'"),
        (lambda f: f.sample(frac=1, random_state=0), "cluster='run'"),
        (lambda f: f.rename(columns={"run": "Model_Name"}), "cluster='Model_Name'"),
        (lambda f: f[["params", "tokens", "loss"]], "cluster='params'"),
        (lambda f: f[f["step"] <= 4][["params", "tokens", "loss"]], None),
        (lambda f: f[f["step"] <= 2], None),
        (lambda f: f.assign(run_id=[str(i) for i in range(len(f))]), None),
        (lambda f: f.assign(run="all"), "cluster='params'"),
        (lambda f: f[["params", "tokens", "loss"]].assign(learning_rate=np.arange(len(f)) % 5), None),
        (lambda f: pd.concat([f, f.assign(loss=3.0)]).drop(columns=["run", "step"]), None),
    ],
)
def test_checkpoints_are_recognised_by_their_columns(change, told) -> None:
    frame = change(curves())
    warned = checkpoints.warn(frame, None)
    assert len(warned) == (told is not None)
    if told is not None:
        assert told in warned[0]
        assert f"{len(frame)} rows have 8 values of" in warned[0]


def test_every_result_warns_until_it_is_told_the_run() -> None:
    frame = curves()
    fit = analysis.fit("hoffmann", frame)
    (warning,) = checkpoints.warn(frame, None)
    assert warning in fit.warnings
    assert warning in analysis.frontier(frame, 3, resamples=10).warnings
    assert warning in analysis.backtest("hoffmann", frame, origins=1, resamples=10).warnings
    by_run = analysis.fit("hoffmann", frame, cluster="run")
    assert warning not in by_run.warnings
    assert (fit.clusters, by_run.clusters) == (0, 8)
    narrow, wide = (np.ptp(each.bootstrap(100).interval("alpha")) for each in (fit, by_run))
    assert wide > 3 * narrow
