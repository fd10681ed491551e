"""The cache folder: where it is, one writer at a time for a folder in it, and the free space of its disk."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scaling.storage import atomic, errors

ROOM = "free some space or set SCALING_CACHE to a folder on a larger disk"


def root() -> Path:
    """The cache folder: `$SCALING_CACHE`, else `~/.cache/scaling`; it may not exist yet."""
    named = os.environ.get("SCALING_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "scaling"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock beside `folder` while the body runs, so that one process does the work and others wait.

    The kernel releases the lock when its holder dies. A shared disk may ignore locks: then two processes do the same
    work, and `publish` still lets one complete folder appear.
    """
    import fcntl

    _make_parent(folder)
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write in, removed at the end unless it was published.

    Raises DiskSpaceError where the disk fills up meanwhile.
    """
    _make_parent(folder)
    with atomic.drafting(folder) as draft:
        draft.mkdir()
        try:
            yield draft
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise errors.DiskSpaceError(f"the disk of {folder} filled up while it was written; {ROOM}") from error


def publish(draft: Path, folder: Path) -> None:
    """Rename a complete draft to `folder`; where another process was first, its folder stays."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def nearest_existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def free_bytes(path: Path) -> int:
    """Free space on the disk that a path lies on, or would lie on."""
    return shutil.disk_usage(nearest_existing(path)).free


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DiskSpaceError unless the disk of `folder` has `needed_bytes` free."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise errors.DiskSpaceError(
            f"{purpose} needs {needed_bytes / 1e6:,.1f} MB in {folder}; its disk has {free / 1e6:,.1f} MB free; {ROOM}"
        )


def _make_parent(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise errors.DataError(
            f"the cache folder {folder.parent} cannot be made: {error}; set SCALING_CACHE to a folder you may write"
        ) from error
