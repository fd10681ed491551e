"""The cache folder: where it is, one writer at a time, and folders that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from scaling.storage import errors

ROOM = "free some space or set SCALING_CACHE to a folder on a larger disk"


def root() -> Path:
    """The cache folder: `$SCALING_CACHE`, else `~/.cache/scaling`; it may not exist yet."""
    named = os.environ.get("SCALING_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "scaling"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock beside `folder`, so that a second process waits for the first's work instead of repeating it.

    The kernel drops the lock when its holder dies. Where a shared disk does not honour it, `publish` still keeps
    folders whole: two processes then only do the same work twice.
    """
    import fcntl

    _make_parent(folder)
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` to write in, removed at the end unless it was published.

    Raises DiskSpaceError where the disk fills up meanwhile.
    """
    _make_parent(folder)
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.draft"
    draft.mkdir()
    try:
        yield draft
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise errors.DiskSpaceError(f"the disk of {folder} filled up while it was written; {ROOM}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, folder: Path) -> None:
    """Rename a finished draft to `folder`; where another process was first, its folder stays and ours is dropped."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def discard(folder: Path) -> None:
    """Take a folder out of sight in one rename, then delete it; readers that have it mapped keep their pages."""
    aside = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.discarded"
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DiskSpaceError unless the disk of `folder` has `needed_bytes` free."""
    present = folder
    while not present.exists():
        present = present.parent
    free = shutil.disk_usage(present).free
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
