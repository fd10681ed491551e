"""Checks of this machine's folders: whether they may be written, how much room they have, and who else may write."""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scaling.checks import finding
from scaling.launch import environments
from scaling.storage import cache
from scaling.worker import precompile

LITTLE_BYTES = 2e9  # for text, tokens and compiled programs


def room(check: str, place: Path, needed: float | None = None, what: str = "") -> list[finding.Finding]:
    """The room on the disk of a folder, which need not exist, and whether it may be written.

    `needed` bytes are those of `what`; None where that is not known.
    """
    there = cache.nearest_existing(place)
    free = shutil.disk_usage(there).free
    size = f"{place}: {free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK | os.X_OK):
        return [finding.wrong(check, f"{place} may not be written", "choose another folder, or fix its permissions")]
    if needed is not None and free < needed:
        return [
            finding.wrong(check, f"{size}, and {what} need {needed / 1e9:.3g} GB", "free some, or use a larger disk")
        ]
    if free < LITTLE_BYTES:
        return [finding.warning(check, size, "free some before something large is written")]
    return [finding.ok(check, size + (f"; {what} need at most {needed / 1e9:.3g} GB" if needed else ""))]


def cache_folder() -> list[finding.Finding]:
    """The folder of text, tokens and compiled programs."""
    return room("cache", cache.root())


def temporary_folder() -> list[finding.Finding]:
    """The folder of temporary files."""
    try:
        return room("temporary", Path(tempfile.gettempdir()))
    except FileNotFoundError as error:
        return [finding.wrong("temporary", str(error), "set TMPDIR to a folder that may be written")]


def compiled(environment: Mapping[str, str], user: int) -> list[finding.Finding]:
    """Whether compiled programs, which are executed, lie where only this user may write."""
    check, named = "programs", environment.get(precompile.KEPT_IN)
    if named and "://" in named:
        return [
            finding.warning(
                check,
                f"compiled programs are kept in {named}: who may write there can have workers execute anything",
                "let nobody else write to it",
            )
        ]
    folder = Path(named) if named else environments.compile_folder()
    remedy = f"remove {folder}, and set SCALING_CACHE to a folder of your own"
    for place in (folder, *folder.resolve().parents):
        if place.exists() and (how := _writers(place, user)):
            return [finding.wrong(check, f"compiled programs are executed, and {place} {how}", remedy)]
    for place in folder.resolve().parents:
        if place.exists() and _mode(place) & stat.S_IWGRP and not _sticky(place):
            message = f"the group of {place} may put other programs into {folder}"
            return [finding.warning(check, message, f"`chmod g-w {place}`, if it has other members than you")]
    if folder.exists() and _mode(folder) & (stat.S_IRWXG | stat.S_IRWXO):
        return [finding.warning(check, f"others may read {folder}", f"`chmod 700 {folder}`")]
    return [finding.ok(check, f"{folder} is yours alone" if folder.exists() else f"{folder}, made when first needed")]


def _writers(place: Path, user: int) -> str:
    """Who else can change what lies in a folder, beyond its group; of others' folders, in words."""
    about = place.stat()
    if about.st_uid not in (user, 0):
        return "belongs to another user"
    return "may be written by anyone" if about.st_mode & stat.S_IWOTH and not _sticky(place) else ""


def _sticky(place: Path) -> bool:
    """Whether a folder is one like /tmp, where nobody can rename what others made."""
    return bool(_mode(place) & stat.S_ISVTX)


def _mode(place: Path) -> int:
    return place.stat().st_mode
