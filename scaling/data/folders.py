"""The files of a corpus: which there are, and the split and place that a hash of its name gives each."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from scaling.config import sources


class File(NamedTuple):
    """A file of a corpus: its name relative to the corpus, where it lies, its size."""

    name: str
    path: str
    bytes: int


def position(name: str) -> float:
    """Where a hash puts a name in [0, 1): the same on every machine, and uniform over names."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64


def split_of(name: str, validation_fraction: float) -> sources.Split:
    """The split of a file by its name alone, so that files added later move no other."""
    return "validation" if position(name) < validation_fraction else "train"


def walk(folder: Path, suffix: str = "", leave_out: Collection[str] = ()) -> list[File]:
    """The files below a folder that end in `suffix`, sorted by name; none where the folder is not there."""
    files: list[File] = []
    pending = [("", str(folder))] if folder.is_dir() else []
    while pending:
        prefix, inner = pending.pop()
        with os.scandir(inner) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in leave_out:
                        pending.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name.endswith(suffix) and entry.is_file():
                    files.append(File(prefix + entry.name, entry.path, entry.stat().st_size))
    return sorted(files)
