"""Where the checkpoints of one attempt lie: a folder that all processes see, or a folder of a bucket.

<shelf>/<step>/      a whole checkpoint; an unfinished one has another name, or, in a bucket, is not there yet
"""

import abc
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling.storage import backends, cache

FILE = "state.npz"  # a checkpoint that is one file
KEPT = 2  # the newest checkpoint, and the one before it should the newest be unreadable


class Shelf(abc.ABC):
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
        """Keep a checkpoint of one file, which `write` is told where to write."""

    @abc.abstractmethod
    def drop(self, step: int) -> None:
        """Remove a checkpoint; nothing where there is none."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove all checkpoints."""


class Folder(Shelf):
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
        """Write it in a folder that has its name only once it is whole."""
        draft, final = self.path / f"{step}.draft", self.path / str(step)
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        write(draft / FILE)
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)

    def drop(self, step: int) -> None:
        dropped = self.path / f"{step}.dropped"  # no longer a checkpoint, from one moment to the next
        with contextlib.suppress(FileNotFoundError):  # another worker is at it
            (self.path / str(step)).rename(dropped)
            shutil.rmtree(dropped)

    def clear(self) -> None:
        for step in self.steps():  # one at a time: half of one, where this is killed, would be taken for a damaged one
            self.drop(step)
        shutil.rmtree(self.path, ignore_errors=True)  # a late attempt may be writing in it; `gc` removes what that left


class Bucket(Shelf):
    """A folder of a bucket: an object a step, which is there whole or not at all."""

    def __init__(self, files: backends.Storage):
        self.files = files

    def __str__(self) -> str:
        return str(self.files)

    def steps(self) -> list[int]:
        return sorted(int(name) for name in self.files.names("") if name.isdecimal())

    @contextlib.contextmanager
    def file(self, step: int) -> Iterator[Path]:
        with _here() as path:
            with contextlib.suppress(FileNotFoundError):
                self.files.download(f"{step}/{FILE}", path)
            yield path

    def put(self, step: int, write: Callable[[Path], None]) -> None:
        with _here() as path:
            write(path)
            self.files.upload(path, f"{step}/{FILE}")

    def drop(self, step: int) -> None:
        self.files.remove(str(step))

    def clear(self) -> None:
        self.files.remove("")


def of(place: backends.Place) -> Shelf:
    """The shelf at a place."""
    return Bucket(place) if isinstance(place, backends.Storage) else Folder(Path(place))


@contextlib.contextmanager
def _here() -> Iterator[Path]:
    """The path of a file of this machine that is gone afterwards."""
    place = cache.root() / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder) / FILE
