"""Reads `sources.Files`."""

import glob as globbing
import os
from collections.abc import Iterator
from pathlib import Path

from scaling import schema
from scaling.config import sources
from scaling.data import folders
from scaling.storage import errors


def listing(source: sources.Files) -> str:
    files = _files(source)
    stats = [(file.name, file.bytes, os.stat(file.path).st_mtime_ns) for file in files]
    return schema.digest([str(_root(source)), stats])


def documents(source: sources.Files, split: sources.Split) -> Iterator[bytes]:
    files = _files(source)
    chosen = [file for file in files if folders.split_of(file.name, source.validation_fraction) == split]
    if not chosen:
        _refuse_split(source, split, files)
    for file in chosen:
        yield Path(file.path).read_bytes()


def text_bytes(source: sources.Files) -> int:
    return sum(file.bytes for file in _files(source))


def _root(source: sources.Files) -> Path:
    parts = Path(source.glob).expanduser().absolute().parts
    fixed = 0
    while fixed < len(parts) - 1 and not globbing.has_magic(parts[fixed]):
        fixed += 1
    return Path(*parts[:fixed])


def _files(source: sources.Files) -> list[folders.File]:
    root, pattern = _root(source), str(Path(source.glob).expanduser().absolute())
    paths = [path for path in globbing.iglob(pattern, recursive=True) if os.path.isfile(path)]
    files = [folders.File(Path(path).relative_to(root).as_posix(), path, os.stat(path).st_size) for path in paths]
    if not files:
        raise errors.MissingDataError(
            f"glob {source.glob!r} matches no file in {root}; check the path, and quote the pattern in a shell"
        )
    return sorted(files, key=lambda file: (folders.position(file.name), file.name))


def _refuse_split(source: sources.Files, split: sources.Split, files: list[folders.File]) -> None:
    if len(files) == 1:
        remedy = "cut the file into several, one part a document, and match them all"
    elif split == "validation":
        remedy = f"raise validation_fraction above {folders.position(files[0].name):.3g}, or give more files"
    else:
        remedy = f"lower validation_fraction to {folders.position(files[-1].name):.3g} or less, or give more files"
    raise errors.DataError(
        f"of the {len(files)} files of {source.glob!r} none falls in the {split} split with validation_fraction = "
        f"{source.validation_fraction:g}; {remedy}"
    )
