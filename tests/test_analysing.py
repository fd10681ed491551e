"""`scaling fit`, `predict` and `report` on tables that people bring: what they say, and what they refuse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from scaling.commands import analysing, drawing
from scaling.commands.arguments import Objective, Table


def table(**more: object) -> pd.DataFrame:
    """30 runs of a planted law at five budgets."""
    budget, size = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e12, 1e14, 5), np.geomspace(0.3, 3, 6)))
    params = 1e5 * (budget / 1e12) ** 0.5 * size
    tokens = budget / 6 / params
    loss = 1.5 + 40 / params**0.35 + 90 / tokens**0.4
    loss = loss * np.exp(0.002 * np.random.default_rng(0).normal(size=len(loss)))
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss, **more})


def test_a_saved_fit_spends_flops_by_the_rule_of_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame["flops"] = 9 * frame["params"] * frame["tokens"]
    analysis.fit("hoffmann", frame).save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    told = capsys.readouterr().out
    bought = analysis.frontier(frame, 3).allocate(1e15)
    assert f"params {bought.params}," in told
    assert "C = 9 · N · D" in told
    analysis.fit("hoffmann", frame.drop(columns="flops")).save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    assert "6 · params · tokens (Kaplan" in capsys.readouterr().out


def test_a_table_needs_the_columns_of_its_law_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame.rename(columns={"loss": "loss_c4"}).to_csv(tmp_path / "named.csv", index=False)
    analysing.fit(Table(tmp_path / "named.csv", loss="loss_c4"), "hoffmann", Objective(), 100, None)
    flops = np.geomspace(1e12, 1e14, 30)
    pd.DataFrame({"flops": flops, "loss": 30 / flops**0.07}).to_csv(tmp_path / "flops.csv", index=False)
    analysing.fit(Table(tmp_path / "flops.csv"), "kaplan_c", Objective(), 100, None)
    saved = tmp_path / "fit.json"
    analysing.fit(Table(tmp_path / "flops.csv", columns=("x=flops",)), "power", Objective(), 100, saved)
    capsys.readouterr()
    analysing.predict(saved, {"x": 1e15}, None)
    assert f"loss {30 / 1e15**0.07:.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no column 'params'"):
        analysing.fit(Table(tmp_path / "flops.csv"), "hoffmann", Objective(), 100, None)


def test_a_folder_that_is_not_there_is_refused_before_fitting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        analysing.fit(Table(tmp_path / "unread.csv"), "hoffmann", Objective(), 100, tmp_path / "nowhere" / "fit.json")


def test_a_failed_row_that_fit_accepts_is_reported_too(tmp_path: Path) -> None:
    frame = table(status="finished").astype(object)
    frame.loc[len(frame)] = ["-", "-", "-", "failed"]
    frame.to_csv(tmp_path / "runs.csv", index=False)
    drawing.report(Table(tmp_path / "runs.csv"), tmp_path / "out", None)
    assert "30 finished of 31" in (tmp_path / "out" / "report.md").read_text()
