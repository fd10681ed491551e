"""The operations that a store needs of a folder or a bucket, and the folder.

No operation relies on locks or on the clock of a host: creating where absent is atomic, replacing is whole, and times
are those of the file system or the service.
"""

import abc
import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from scaling.storage import atomic

Value = TypeVar("Value")
Place: TypeAlias = "Path | Storage"


class Storage(abc.ABC):
    """A folder of files. Keys are relative paths with `/`, which never lead out of it."""

    min_request_interval_seconds = 0.0  # above 0 where every operation is a request over a network

    @abc.abstractmethod
    def __str__(self) -> str:
        """Its place, as a person would write it."""

    @abc.abstractmethod
    def sub(self, key: str) -> "Storage":
        """The folder `key` in it, which need not exist."""

    @abc.abstractmethod
    def read(self, key: str) -> bytes:
        """A file's content. Raises FileNotFoundError where there is none."""

    @abc.abstractmethod
    def read_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """The content of those files that exist, by key."""

    @abc.abstractmethod
    def create(self, key: str, text: str) -> bool:
        """Create a file with its whole content unless there is one; says whether this call created it. Idempotent."""

    @abc.abstractmethod
    def replace(self, key: str, text: str) -> None:
        """Write a file whole: a reader sees the old content or the new."""

    @abc.abstractmethod
    def append(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add JSON lines to what `key` holds; only ever called by one process for one key."""

    @abc.abstractmethod
    def names(self, key: str) -> list[str]:
        """Names of the files and folders in a folder, in alphabetical order; empty where the folder is missing."""

    @abc.abstractmethod
    def walk(self) -> list[str]:
        """The keys of all files in it, in alphabetical order."""

    @abc.abstractmethod
    def present(self, keys: Sequence[str]) -> set[str]:
        """Those of the files that exist."""

    @abc.abstractmethod
    def modified(self, key: str) -> float:
        """When a file was last written, in seconds since 1970 by the storage's clock."""

    @abc.abstractmethod
    def now(self) -> float:
        """What the storage's clock shows now; needs the right to write."""

    @abc.abstractmethod
    def size(self, key: str) -> int:
        """Bytes of a file, or of all files in a folder; 0 where there is nothing."""

    @abc.abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""

    @abc.abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Write a file whole, from one of this machine, however large."""

    @abc.abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Copy a file to this machine. Raises FileNotFoundError where there is none."""

    def local(self) -> Path | None:
        """Its path, where it is a folder."""
        return None

    def place(self) -> "Place":
        """Its path where it is a folder, else itself: for code that writes large files by itself."""
        return self.local() or self

    def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return bool(self.present([key]))

    def read_json(self, key: str) -> dict[str, Any]:
        """The object in a file. Raises FileNotFoundError, or UnreadableError where it holds none."""
        return atomic.parse(self.read(key), f"{self}/{key}")


class Folder(Storage):
    """A folder of a local or shared disk; it is made when something is first written."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def local(self) -> Path:
        return self.path

    def sub(self, key: str) -> "Folder":
        return Folder(self.path / key)

    def read(self, key: str) -> bytes:
        with open(f"{self.path}/{key}", "rb") as file:
            return file.read()

    def read_many(self, keys: Collection[str]) -> dict[str, bytes]:
        contents = {}
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                contents[key] = self.read(key)
        return contents

    def create(self, key: str, text: str) -> bool:
        return atomic.create(self.path / key, text)

    def replace(self, key: str, text: str) -> None:
        atomic.replace(self.path / key, text)

    def append(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        atomic.append_lines(self.path / key, rows)

    def names(self, key: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path / key))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self) -> list[str]:
        files = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def present(self, keys: Sequence[str]) -> set[str]:
        root = f"{self.path}/"
        return {key for key in keys if os.path.exists(root + key)}

    def modified(self, key: str) -> float:
        return (self.path / key).stat().st_mtime

    def now(self) -> float:
        with atomic.written(self.path / "clock", "") as draft:
            return draft.stat().st_mtime

    def size(self, key: str) -> int:
        path = self.path / key
        paths = [path, *(Path(folder) / name for folder, _, names in os.walk(path) for name in names)]
        total = 0
        for each in paths:
            with contextlib.suppress(FileNotFoundError):  # another process removes it meanwhile
                about = each.lstat()
                total += about.st_size if stat.S_ISREG(about.st_mode) else 0
        return total

    def remove(self, key: str) -> None:
        path = self.path / key
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def upload(self, path: Path, key: str) -> None:
        with atomic.writing(self.path / key) as draft:
            shutil.copyfile(path, draft)

    def download(self, key: str, path: Path) -> None:
        shutil.copyfile(self.path / key, path)


def open_storage(place: str | os.PathLike[str]) -> Storage:
    """The storage at a path or a URL (`s3://bucket/folder`, `gs://…`). Raises ValueError for other URLs."""
    text = os.fspath(place)
    if "://" in text:
        from scaling.storage import bucket

        return bucket.open_bucket(text)
    return Folder(Path(text).absolute())
