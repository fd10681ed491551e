"""Checkpoint directories: the checkpoints of one attempt, by step, in a folder that all processes see or in a bucket.

<directory>/<step>/      a complete checkpoint; an incomplete one has another name, or is missing where this is a bucket
"""

import abc
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling.storage import atomic, backends, cache

FILE = "state.npz"  # a checkpoint that is one file
KEPT = 2  # the newest checkpoint, and the one before it should the newest be unreadable


class CheckpointDirectory(abc.ABC):
    """The checkpoints of one attempt, by step."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Its place, as a person would write it."""

    @abc.abstractmethod
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""

    @abc.abstractmethod
    def file(self, step: int) -> "contextlib.AbstractContextManager[Path]":
        """The path of a checkpoint that is one file, while the body runs; it need not exist."""

    @abc.abstractmethod
    def put(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint of one file, which `write` writes at the path it is given."""

    @abc.abstractmethod
    def drop(self, step: int) -> None:
        """Remove a checkpoint; nothing where there is none."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove all checkpoints."""


class LocalDirectory(CheckpointDirectory):
    """A folder of a local or shared disk."""

    def __init__(self, path: Path):
        self.path = path.absolute()

    def __str__(self) -> str:
        return str(self.path)

    def steps(self) -> list[int]:
        names = os.listdir(self.path) if self.path.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    @contextlib.contextmanager
    def file(self, step: int) -> Iterator[Path]:
        yield self.path / str(step) / FILE

    def put(self, step: int, write: Callable[[Path], None]) -> None:
        with atomic.writing(self.path / str(step)) as draft:
            draft.mkdir()
            write(draft / FILE)
            self.drop(step)

    def drop(self, step: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # missing, or another worker removes it too
            atomic.discard(self.path / str(step))

    def clear(self) -> None:
        for step in self.steps():  # each by a rename: a crash in rmtree would leave a part of one, read as damaged
            self.drop(step)
        shutil.rmtree(self.path, ignore_errors=True)  # a superseded attempt may write in it; `gc` removes its files


class BucketDirectory(CheckpointDirectory):
    """A folder of a bucket: one object a step; objects are written whole."""

    def __init__(self, files: backends.Storage):
        self.files = files

    def __str__(self) -> str:
        return str(self.files)

    def steps(self) -> list[int]:
        return sorted(int(name) for name in self.files.names("") if name.isdecimal())

    @contextlib.contextmanager
    def file(self, step: int) -> Iterator[Path]:
        with _scratch_file() as path:
            with contextlib.suppress(FileNotFoundError):
                self.files.download(f"{step}/{FILE}", path)
            yield path

    def put(self, step: int, write: Callable[[Path], None]) -> None:
        with _scratch_file() as path:
            write(path)
            self.files.upload(path, f"{step}/{FILE}")

    def drop(self, step: int) -> None:
        self.files.remove(str(step))

    def clear(self) -> None:
        self.files.remove("")


def at(place: backends.Place) -> CheckpointDirectory:
    """The checkpoint directory at a place."""
    return BucketDirectory(place) if isinstance(place, backends.Storage) else LocalDirectory(Path(place))


@contextlib.contextmanager
def _scratch_file() -> Iterator[Path]:
    """The path of a file in this machine's cache, removed afterwards."""
    place = cache.root() / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder) / FILE
