"""Checkpoint directories: a checkpoint is complete or missing, wherever a crash cuts its removal short."""

import errno
import shutil
from pathlib import Path

import pytest

from scaling.storage import directories


@pytest.fixture
def place(tmp_path: Path) -> directories.LocalDirectory:
    """A folder with checkpoints of two steps."""
    place = directories.LocalDirectory(tmp_path / "000001")
    for step in (5, 10):
        place.put(step, lambda path: path.write_text("whole"))
    return place


def test_a_removal_that_is_cut_short_leaves_no_half_checkpoint(
    place: directories.LocalDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for a damaged one, and a run whose checkpoints are all damaged fails."""

    def killed(path: Path, **_: object) -> None:
        for file in Path(path).rglob(directories.FILE):
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        place.clear()
    for step in place.steps():
        with place.file(step) as path:
            assert path.read_text() == "whole"


def test_a_late_writer_does_not_make_a_removal_fail(
    place: directories.LocalDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def while_it_writes(path: Path, ignore_errors: bool = False) -> None:
        if path == place.path and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", while_it_writes)
    place.clear()
    assert place.steps() == []
