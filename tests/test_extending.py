"""docs/extending.md: its files in a folder outside the project, and its commands there, as a user runs them.

The sections do not depend on each other's commands. Those that start workers for a small change of what another shows
are run with the engines.
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from scaling import store
from tests import command, extending

ROOT = extending.ROOT
LINES = 60  # of a file


@dataclasses.dataclass(frozen=True)
class Made:
    """The folder after the commands of a section, and what they printed."""

    folder: Path
    shown: str

    def row(self, sweep: str) -> dict[str, Any]:
        """The result of a sweep's only run."""
        (row,) = self.rows(sweep)
        return row

    def rows(self, sweep: str) -> list[dict[str, Any]]:
        """The results of a sweep, finished and finite."""
        rows = store.Store(self.folder / "results").runs(sweep).to_dict("records")
        assert {row["status"] for row in rows} == {"finished"}
        assert all(math.isfinite(row["loss"]) and row["loss_se"] > 0 for row in rows)
        return rows

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The metrics of a run."""
        files = (self.folder / "results" / "runs" / run_id / "metrics").iterdir()
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def project() -> dict[Path, str]:
    """What is in the files of the project."""
    files = (file for part in ("scaling", "analysis", "experiments", "configs") for file in (ROOT / part).rglob("*.py"))
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, and after its commands what they wrote; the project is left as it was."""
    before, folder = project(), tmp_path_factory.mktemp("mine")
    for name, text in extending.FILES.items():
        (folder / name).write_text(text, "utf-8")
    yield folder
    assert project() == before


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scaling` and `python` as commands."""
    bin = tmp_path_factory.mktemp("bin")
    for name, module in (("python", ""), ("scaling", "-m scaling.cli")):
        (bin / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (bin / name).chmod(0o755)
    return bin


def family(made: Made) -> None:
    row = made.row("convolution")
    assert (row["family"], row["width"], row["depth"]) == ("convolution", 16, 2)
    assert row["params"] == 2 * 256 * 16 + 2 * (4 * 16 + 16 * 16)
    assert row["loss"] < 0.5 * math.log(256)
    assert "convolution 16×2" in made.shown


def task(made: Made) -> None:
    rows = made.rows("sine")
    assert sorted(row["width"] for row in rows) == [8, 32]
    for row in rows:
        assert pd.isna([row["vocabulary_size"], row["tokenizer_id"], row["bits_per_byte"]]).all()
        assert (row["unique_tokens"], row["epochs"]) == (512, 1920 / 512)
        assert row["loss_se"] < row["loss"] < 0.2  # the variance of y is 0.43
        assert 0.5 < row["metric/sign"] < 1
        assert 0 < row["metric/sign_se"] < 0.1
        points = [point for point in made.history(row["run_id"]) if point["kind"] == "validation"]
        assert points
        assert all("metric/sign" in point for point in points)
    assert (made.folder / "results/sweeps/sine/report/report.html").is_file()
    header, *lines = made.shown.splitlines()[-3:]
    assert "metric/sign" in header.split(",")
    assert sorted(line.split(",")[0] for line in lines) == sorted(row["run_id"] for row in rows)


def source(made: Made) -> None:
    row = made.row("sums")
    assert row["unique_tokens"] == sum(
        len(text) + 1 for text in extending.module("sums.py").Sums(digits=3).documents("train")
    )
    assert row["bits_per_byte"] < 0.5 * 8


def optimizer(made: Made) -> None:
    row = made.row("signum")
    assert (row["optimizer"], row["schedule"]) == ("signum", "exponential")
    assert row["loss"] < 0.5 * math.log(256)
    rates = [point["learning_rate"] for point in made.history(row["run_id"]) if point["kind"] == "train"]
    assert rates[10] == pytest.approx(3e-3)
    assert rates[-1] == pytest.approx(3e-3 * 0.1 ** (89 / 90))


def tracker(made: Made) -> None:
    row = made.row("lines")
    tracked = [json.loads(line) for line in (made.folder / f"tracked/{row['run_id']}.jsonl").read_text().splitlines()]
    steps = [point["step"] for point in tracked if point["kind"] == "train"]
    assert steps == list(range(1, 61))
    assert (tracked[-1]["kind"], tracked[-1]["loss"]) == ("result", row["loss"])


def launcher(made: Made) -> None:
    made.row("script")
    assert "wrote workers.sh" in made.shown
    assert "script: 1 finished" in made.shown
    assert (made.folder / "workers.sh").read_text().startswith("nice -n 5 ")


def law(made: Made) -> None:
    fitted = analysis.load(made.folder / "fit.json", extending.module("corrupted.py").corrupted)
    assert fitted.params == pytest.approx({"E": 1.5, "B": 60.0, "C": 0.8, "beta": 0.35}, rel=0.03)
    truth = 1.5 + 60 / (1e9 * 0.9) ** 0.35 + 0.8 * 0.1
    loss = float(made.shown.rpartition("share 0.1: loss ")[2].split(",")[0])
    assert loss == pytest.approx(truth, rel=0.003)


def paper(made: Made) -> None:
    assert len(made.rows("shannon-cpu")) == 3
    folder = made.folder / "results/sweeps/shannon-cpu/report"
    (line,) = (line for line in (folder / "report.md").read_text().splitlines() if "theorem 9" in line)
    assert "| agrees |" in line
    assert (folder / "report.html").is_file()
    assert (folder / "loss.png").stat().st_size > 10_000


CHECKS: dict[str, Callable[[Made], None]] = {
    "A model family": family,
    "A task on data of your own": task,
    "A source of text": source,
    "An optimizer, and a schedule": optimizer,
    "A tracker": tracker,
    "A launcher": launcher,
    "A law": law,
    "A paper": paper,
}


ENGINES = ("A source of text", "An optimizer, and a schedule", "A launcher", "A paper")
SECTIONS = [
    pytest.param(section, marks=[pytest.mark.engines] if section in ENGINES else []) for section in extending.COMMANDS
]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_of_a_section_do_what_it_says(folder: Path, bin: Path, section: str) -> None:
    path = os.pathsep.join([str(bin), os.environ["PATH"]])
    ended = subprocess.run(
        ["sh", "-e"], input=extending.COMMANDS[section], capture_output=True, text=True, cwd=folder,
        env=command.environment(PATH=path),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    CHECKS[section](Made(folder, ended.stdout))


def test_each_section_has_one_short_file_and_its_commands() -> None:
    assert list(extending.COMMANDS) == list(CHECKS)
    assert len(extending.FILES) == extending.PAGE.count("```python") == len(CHECKS)
    for name, commands in zip(extending.FILES, extending.COMMANDS.values(), strict=True):
        assert name in commands
        assert len(extending.FILES[name].splitlines()) <= LINES
