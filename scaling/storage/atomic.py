"""The only ways in which files and folders are written: created where absent, replaced whole, or appended to.

Everything is written as a draft, under another name in the same folder. Creating is a hard link of a complete draft
and replacing is a rename: both are atomic on local disks and on NFS, where locks are not. A reader never sees a part of
a file or folder, but for the last line of a file being appended to; a writer that fails, on a full disk too, removes
its draft, and `gc` removes that of a writer that was killed.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.storage import errors, host

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def draft_name(name: str) -> str:
    """A fresh name for a draft of `name`: `.NAME.PID-HOST-RANDOM`, by which `gc` finds the drafts of dead processes."""
    return f".{name}.{os.getpid()}-{host.tag()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """The path of a draft beside `path`, a file or a folder, which is removed at the end unless the body renamed it.

    Makes the folder of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(draft_name(path.name))
    try:
        yield draft
    finally:
        try:
            draft.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):  # the latter for a folder on macOS
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The path of a draft, which the body writes and which replaces `path` when the body ends without an error.

    A folder at `path` that is not empty is not replaced: `discard` it first.
    """
    with drafting(path) as draft:
        yield draft
        os.replace(draft, path)


@contextlib.contextmanager
def written(path: Path, text: str) -> Iterator[Path]:
    """The path of a draft of `path` that holds the text and is on the disk."""
    with drafting(path) as draft:
        with open(draft, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft


def discard(folder: Path) -> None:
    """Remove a folder: renamed in one step, then deleted, so that a crash between leaves no part under its name.

    Processes that have its files mapped keep their pages. Raises FileNotFoundError where it is missing.
    """
    aside = folder.with_name(draft_name(folder.name))
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def link(draft: Path, path: Path) -> bool:
    """Give a complete draft its name, unless the name is taken; says whether it was free.

    Raises ValueError where the file system has no hard links.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        return draft.stat().st_nlink == 2  # NFS may repeat a link whose reply was lost: then it is ours
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise ValueError(
            f"the file system of {path.parent} has no hard links ({error.strerror}), which a store needs so that two "
            "workers never take one run; put the store on a local disk or NFS"
        ) from error
    return True


def create(path: Path, text: str) -> bool:
    """Create a file with its whole content, unless it exists; says whether it was created."""
    with written(path, text) as draft:
        return link(draft, path)


def replace(path: Path, text: str) -> None:
    """Write a file whole: a reader sees the old content or the new."""
    with written(path, text) as draft:
        os.replace(draft, path)


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append one JSON object a line in one write; undo it and raise OSError where a full disk cuts it short."""
    data = "".join(f"{dumps(row, indent=None)}\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written", str(path))
        except OSError:
            file.truncate(before)
            raise


def dumps(value: Any, indent: int | None = 2) -> str:
    """JSON text that every reader accepts: numbers that are not finite become null, array scalars plain numbers."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value of plain JSON types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, bool | int | float | str | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse(content: bytes, path: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UnreadableError naming the file and the remedy where it holds none."""
    return _object(content, path, path)


def parse_lines(content: bytes, path: str) -> list[dict[str, Any]]:
    """The objects in a file, one a line; a last line without its end is a write that a crash cut short, and left out.

    Raises UnreadableError naming file, line and remedy where another line holds no JSON object.
    """
    lines = content.split(b"\n")
    return [_object(line, f"{path}, line {number},", path) for number, line in enumerate(lines[:-1], start=1)]


def _object(content: bytes, where: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise errors.UnreadableError(f"{where} is not readable as JSON ({error}); {remedy(path)}") from error
    if not isinstance(value, dict):
        raise errors.UnreadableError(f"{where} holds {type(value).__name__}, not an object; {remedy(path)}")
    return value


def remedy(path: str) -> str:
    """What to do about a file of a store that cannot be read, so that no more is lost than what it held."""
    folder, _, name = path.rpartition("/")
    if name == "config.json":
        return "restore it from a copy, or start the run's sweep again, which rewrites it"
    if name == "status.json":
        return "remove it: it is written again when the run goes on"
    if name == "sweep.json":
        return "restore it from a copy, or remove it and start the sweep again, which rewrites it"
    if folder.endswith("/metrics"):
        return "restore it from a copy, or remove it: that part of the curve is lost, and the run's result stays"
    return "restore it from a copy, or remove the run's folder and start the sweep again to train it again"
