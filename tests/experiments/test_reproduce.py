"""`reproduce` by name, and from nothing to a page at the smallest scale."""

from pathlib import Path

import pytest

import experiments
from scaling import store


def test_names_are_found_in_the_folder() -> None:
    assert experiments.names() == ["hoffmann2022", "kaplan2020"]


def test_an_unknown_name_or_scale_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no experiment 'kaplan'; name one of hoffmann2022, kaplan2020"):
        experiments.reproduce("kaplan", "cpu", tmp_path / "store", 1)
    with pytest.raises(ValueError, match=r"no scale 'tpu'; its scales: cpu, test"):
        experiments.reproduce("kaplan2020", "tpu", tmp_path / "store", 1)
    with pytest.raises(ValueError, match="no experiment 'papers'"):
        experiments.reproduce("papers", "cpu", tmp_path / "store", 1)
    for name, text, message in (
        ("nothing.py", None, "there is no Python file .*nothing.py; give the path"),
        ("empty.py", "", r"empty.py defines no PAPER; set PAPER to an experiments.papers.Paper"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            experiments.reproduce(str(tmp_path / name), "cpu", tmp_path / "store", 1)
    assert not (tmp_path / "store").exists()


def check(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "store"
    assert experiments.reproduce(name, "test", place, 2) == 0
    folder = store.Store(place).sweep_folder(f"{name}-test") / "report"
    html, markdown = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "data:image/png;base64" in html
    paper = experiments.find(name)
    assert paper.title in markdown
    assert "| N* ∝ C^a" in markdown
    assert all(figure.stat().st_size > 10_000 for figure in folder.glob("*.png"))
    assert str(folder / "report.html") in capsys.readouterr().out


@pytest.mark.engines
def test_hoffmann_from_nothing_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check("hoffmann2022", tmp_path, capsys)
    runs = store.Store(tmp_path / "store").run_ids()
    assert experiments.reproduce("hoffmann2022", "test", tmp_path / "store", 2) == 0
    assert store.Store(tmp_path / "store").run_ids() == runs


@pytest.mark.slow
def test_kaplan_from_nothing_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check("kaplan2020", tmp_path, capsys)
