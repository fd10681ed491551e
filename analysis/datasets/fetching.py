"""The bytes of a public file: from the cache, else downloaded; never used unless their SHA-256 is the pinned one."""

import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.error
import urllib.request

from analysis import errors
from analysis.datasets.entry import Entry

FOLDER = "datasets"
TIMEOUT_SECONDS = 60.0  # without a byte from the server


def kept(entry: Entry) -> pathlib.Path:
    """Where the file of `entry` is, or will be, in the cache; its name holds the pinned SHA-256."""
    named = os.environ.get("SCALING_CACHE")
    root = pathlib.Path(named).expanduser().absolute() if named else pathlib.Path.home() / ".cache" / "scaling"
    return root / FOLDER / f"{str(entry.sha256)[:12]}-{pathlib.PurePosixPath(entry.path).name}"


def fetch(entry: Entry) -> bytes:
    """The bytes of the source of `entry`, from the cache or else from its URL, and then kept in the cache.

    Raises `Refused` that names the URL, the SHA-256 and the place for the file where it cannot be downloaded, and
    both hashes where the bytes are not the pinned ones; nothing is kept then.
    """
    if entry.sha256 is None:
        raise errors.Refused(
            f"{entry.name} has no known SHA-256, so it is not downloaded; datasets.load says what to do"
        )
    path = kept(entry)
    if path.is_file():
        content = path.read_bytes()
        _verify(entry, content, str(path), f"delete it, or put the file of {entry.url} there")
        return content
    content = _download(entry, path)
    _verify(entry, content, entry.url, "the source has changed or the answer is not the file; nothing was kept")
    _keep(path, content)
    return content


def _download(entry: Entry, path: pathlib.Path) -> bytes:
    try:
        with urllib.request.urlopen(entry.url, timeout=TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise errors.Refused(
            f"{entry.name} is not on this machine and {entry.url} does not give it ({error}). On a machine that "
            f"reaches it, download that file (SHA-256 {entry.sha256}) and put it at {path}; or put the tidy table "
            f"{entry.file} in the folder named by SCALING_DATASETS"
        ) from error


def _verify(entry: Entry, content: bytes, where: str, remedy: str) -> None:
    if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise errors.Refused(
            f"{where} holds {len(content)} bytes with SHA-256 {digest}, but {entry.name} is {entry.sha256}: {remedy}"
        )


def _keep(path: pathlib.Path, content: bytes) -> None:
    """Write whole to a temporary name beside `path`, then rename: no reader ever sees a part of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, path)
        finally:
            pathlib.Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise errors.Refused(
            f"{path} cannot be written ({error}); free some space or set SCALING_CACHE to a folder you may write"
        ) from error
