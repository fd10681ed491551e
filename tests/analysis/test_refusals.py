"""Fits that would be worthless are refused with the value, the rule and the remedy; so are files that are no table."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import analysis


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename(columns={"params": "parms"}), "nearest are parms"),
        (lambda f: f.assign(loss=f["loss"].where(f.index != 3)), "'loss' is NaN in 1 of 36 rows"),
        (lambda f: f.assign(loss=f["loss"].where(f.index != 3, np.inf)), "'loss' is infinite"),
        (lambda f: f.assign(params=f["params"].where(f.index != 3, 0)), "'params' is zero or negative"),
        (lambda f: f.assign(tokens=f["tokens"].where(f.index != 3, -5)), "'tokens' is zero or negative"),
        (lambda f: f.assign(loss=f["loss"].astype(object).where(f.index != 3, "low")), "holds 'low', not a number"),
        (lambda f: f.assign(loss=np.nan), "'loss' is NaN in all 36 rows"),
        (lambda f: f.drop(columns=["tokens", "flops", "flops_budget"]), "it also follows from .* flops and params"),
        (lambda f: f.iloc[:1], "1 runs for 5 parameters"),
        (lambda f: f.iloc[:5], "5 runs for 5 parameters"),
        (lambda f: f.iloc[:0], "0 of 0 rows"),
        (lambda f: f.assign(status="diverged"), "0 of 36 rows are finished"),
        (lambda f: f.assign(tokens=20 * f["params"]), "one ratio of tokens to parameters"),
        (lambda f: f.assign(tokens=3 * f["params"] ** 0.7), r"tokens follow parameters .* N\^0.7"),
        (lambda f: f.assign(params=1e6), "same number of parameters"),
        (lambda f: f.assign(epochs=6.0), "up to 6 times"),
        (lambda f: f.assign(context=[64] + [128] * (len(f) - 1)), "context takes 2 values"),
        (lambda f: f.assign(precision=["bfloat16"] + ["float32"] * (len(f) - 1)), "precision takes 2 values"),
        (lambda f: f.assign(run_id="same"), "run_id 'same' is in two rows"),
        (lambda f: pd.concat([f, f.iloc[:2].assign(loss=3.0)]), "run_id 'r0000' is in two rows"),
        (lambda f: f.to_dict(), "takes a pandas DataFrame"),
    ],
)
def test_a_fit_that_must_not_be_made_is_refused(change, message, sweep) -> None:
    with pytest.raises(analysis.Refused, match=message):
        analysis.fit("hoffmann", change(sweep))


@pytest.mark.parametrize("change", [lambda f: f.drop(columns="run_id"), lambda f: f.assign(tags=[[1]] * len(f))])
def test_rows_that_repeat_another_are_left_out_and_counted_everywhere(change, sweep) -> None:
    once = change(sweep)
    twice = pd.concat([once, once.iloc[:2], once.iloc[:1].assign(status="failed", loss=np.nan)], ignore_index=True)
    fit = analysis.fit("hoffmann", twice)
    assert fit.params == analysis.fit("hoffmann", once).params
    assert "36 used of 39; dropped: 1 where status is failed, 2 where every column repeats" in fit.checklist()
    for approach in (1, 2, 3):
        found = analysis.frontier(twice, approach, resamples=10)
        assert found.exponent_params.value == analysis.frontier(once, approach, resamples=10).exponent_params.value
        assert any(told.startswith("2 rows where every column repeats another row's") for told in found.excluded)
    test = analysis.backtest("hoffmann", twice, resamples=10, origins=1)
    assert "left out: 2 rows where every column repeats another row's" in test.summary()


def test_the_public_sweep_with_one_ratio_is_refused(table) -> None:
    with pytest.raises(analysis.Refused, match=r"D/N = 20.* cannot be told apart; add runs with other D/N"):
        analysis.fit("hoffmann", table("narayan_jax_chinchilla_small.csv"))


def test_unknown_names_are_answered(sweep) -> None:
    with pytest.raises(ValueError, match="hoffmann"):
        analysis.fit("hofmann", sweep)
    with pytest.raises(ValueError, match="no inputs of 'hoffmann'"):
        analysis.fit("hoffmann", sweep, flops="flops")
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = analysis.fitt


def test_read_csv_takes_a_table(tmp_path, sweep) -> None:
    sweep.to_csv(tmp_path / "runs.csv", index=False)
    frame = analysis.read_csv(tmp_path / "runs.csv")
    assert analysis.fit("hoffmann", frame).params == analysis.fit("hoffmann", sweep).params


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "is empty"),
        (b"params,tokens,loss\n", "no rows"),
        (b"params,tokens,los\n1,2,3\n", "no column 'loss'.*nearest are los"),
        (b"params,tokens,loss\n1,2,3\n1,2,3,4,5\n", "cannot be read as CSV"),
        (b"params,tokens,loss\n1,2,abc\n", "holds 'abc'"),
        (b"params,tokens,loss\n1,2,3,4\n1,2,3,4\n", "more fields than its header"),
        (b"params,tokens,loss\n1,2,3,\n1,2,3,\n", "more fields than its header"),
        (b"params;tokens;loss\n1;2;3\n", "separates its columns by ';'"),
        (b"params,tokens,loss\n1,2,\n", "is NaN"),
        (b"params,tokens,loss,loss\n1,2,3,4\n", "several columns 'loss'"),
        (b"params,tokens,loss, loss\n1,2,3,4\n", "several columns 'loss'"),
        (b"\xff\xfe\x00\x01\x89", "not UTF-8"),
    ],
)
def test_read_csv_says_what_is_wrong(content, message, tmp_path) -> None:
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(analysis.Refused, match=message):
        analysis.read_csv(path)


def test_read_csv_of_a_folder(tmp_path) -> None:
    with pytest.raises(analysis.Refused, match="is a folder"):
        analysis.read_csv(tmp_path)


def test_importing_the_analysis_starts_nothing() -> None:
    program = (
        "import sys, analysis; print([m for m in ('jax', 'matplotlib', 'scaling') if m in sys.modules]); "
        "analysis.fit, analysis.report.write; from jax._src import xla_bridge as b; print(b._backends)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "{}"]
