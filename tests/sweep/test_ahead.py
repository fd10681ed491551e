"""Programs are compiled by one process of a machine, and ahead of time while another is at the one that is needed."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import config
from scaling.worker import precompile
from tests import waiting

Make = Callable[..., config.Run]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(precompile.KEPT_IN, str(tmp_path))
    return tmp_path


def programs(make: list[int] | Callable[..., object], later: list[config.Run]) -> precompile.Programs:
    """Pretends to compile, by a function or noting the width of each model."""

    def note(run: config.Run, members: int) -> None:
        assert isinstance(make, list)
        make.append(run.model.width)

    compile_it = note if isinstance(make, list) else make
    return precompile.Programs(compile_it, config.Execution(), lambda: later, stop=lambda: False, log=print)


def test_each_program_is_made_when_needed_and_ahead_only_once_on_a_machine(folder: Path, make_run: Make) -> None:
    runs = [make_run(model__width=width) for width in (8, 16, 24)]
    ours: list[int] = []
    theirs: list[int] = []
    one, two = programs(ours, runs), programs(theirs, [*runs, make_run(model__width=24, seed=3)])
    one.compile(runs[0], 1)
    assert one.compile_later()
    assert ours == [8, 16]
    assert two.compile_later()
    assert not two.compile_later()  # nothing is left, another seed shares its program
    assert theirs == [24]
    two.compile(runs[0], 1)  # loads it
    assert theirs == [24, 8]
    two.compile(runs[0], 4)  # a pack's is another program
    assert theirs == [24, 8, 8]


def test_while_another_compiles_a_program_one_of_those_needed_later_is_compiled(folder: Path, make_run: Make) -> None:
    first, later = make_run(model__width=8), make_run(model__width=16)
    made: list[int] = []
    compiling, done = threading.Event(), threading.Event()

    def long(run: config.Run, members: int) -> None:
        compiling.set()
        assert done.wait(waiting.LIMIT_SECONDS)

    def short(run: config.Run, members: int) -> None:
        made.append(run.model.width)
        done.set()

    one, two = programs(long, []), programs(short, [first, later])
    thread = threading.Thread(target=one.compile, args=(first, 1))
    thread.start()
    assert compiling.wait(waiting.LIMIT_SECONDS)
    two.compile(first, 1)
    thread.join()
    assert made == [16, 8]


def test_a_compilation_that_fails_or_dies_is_taken_over(folder: Path, make_run: Make) -> None:
    run = make_run()

    def fail(run: config.Run, members: int) -> None:
        raise ValueError("does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        precompile.Programs(fail, config.Execution(), list, stop=lambda: False, log=print).compile(run, 1)
    made: list[int] = []
    programs(made, []).compile(run, 1)
    assert made == [8]
    with open(next(folder.iterdir()), "ab") as mark:  # a lock on what is compiled delays no other
        fcntl.flock(mark, fcntl.LOCK_EX)
        programs(made, []).compile(run, 1)
    assert made == [8, 8]


def test_nothing_is_compiled_ahead_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, make_run: Make) -> None:
    monkeypatch.delenv(precompile.KEPT_IN, raising=False)
    made: list[int] = []
    one = programs(made, [make_run()])
    one.compile(make_run(), 1)
    assert not one.compile_later()
    assert made == []


def test_a_program_that_cannot_be_compiled_ahead_harms_nobody(folder: Path, make_run: Make) -> None:
    needed, bad, good = (make_run(model__width=width) for width in (8, 16, 24))
    made: list[int] = []
    told: list[str] = []

    def make(run: config.Run, members: int) -> None:
        if run == bad:
            raise ValueError("does not fit")
        made.append(run.model.width)

    one = precompile.Programs(make, config.Execution(), lambda: [bad, good], stop=lambda: False, log=told.append)
    assert one.compile_later()
    assert not one.compile_later()
    one.compile(needed, 1)
    one.compile_unless_another_does(bad, 1)
    one.folder = None
    one.compile_unless_another_does(bad, 1)
    assert made == [24, 8]
    assert told == ["a program could not be compiled ahead: ValueError: does not fit"] * 3


def test_who_waits_for_a_program_stops_when_asked_to_and_compiles_where_the_other_hangs(
    folder: Path, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    programs([], []).compile(run, 1)
    (mark,) = folder.iterdir()
    mark.write_bytes(b"")
    made: list[int] = []
    with open(mark, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def make(run: config.Run, members: int) -> None:
            made.append(members)

        precompile.Programs(make, config.Execution(), list, stop=lambda: True, log=print).compile(run, 1)
        monkeypatch.setattr(precompile, "COMPILE_TIMEOUT_SECONDS", 0.2)
        programs(made, []).compile(run, 1)  # returns: who trains compiles
        programs(made, []).compile_unless_another_does(run, 1)
    assert made == []


@pytest.mark.parametrize("kept", ["gs://bucket/compiled", "new/folder", "file/in-the-way"])
def test_folders_without_marks_and_new_ones_do(
    kept: str, tmp_path: Path, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(precompile.KEPT_IN, kept)
    made: list[int] = []
    told: list[str] = []
    one = precompile.Programs(
        lambda run, members: made.append(members), config.Execution(), list, stop=lambda: False, log=told.append
    )
    one.compile(make_run(), 1)
    one.compile_unless_another_does(make_run(), 2)
    assert made == ([1, 2] if kept == "new/folder" else [2])
    assert ["each worker compiles for itself" in line for line in told] == [True] * (kept == "file/in-the-way")
    assert not (tmp_path / "gs:").exists()
