"""A store in a bucket: `s3://` and `gs://` through fsspec. Creating where absent is a conditional write.

Listings are never cached: what another worker wrote a moment ago is seen.
"""

import contextlib
import errno
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from scaling.storage import atomic, retry
from scaling.storage.backends import Storage

EXTRAS = {"s3": "s3", "gs": "gcs"}  # of this package, by protocol
# Packages whose errors come from the service or the network; an error of any other is a bug and is not retried.
SERVICE_PACKAGES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "requests")
PACE_SECONDS = 10.0  # metrics are written so often at most, and before every checkpoint
CLOCK_SECONDS = 300.0  # how long the service's clock is extrapolated by this process's
MANY = 32  # files from which on one listing is cheaper than a question for each


class Service:
    """What keeps buckets: the connection to it, made by the process that first uses it, and what its clock shows."""

    def __init__(self, protocol: str):
        self.protocol = protocol
        self.clock: tuple[float, float] | None = None  # monotonic time of a request, and the service's clock minus it
        self._fs: Any = None

    @property
    def fs(self) -> Any:
        """The file system of fsspec. It does not survive a fork, and none is made before it is used.

        Raises ValueError where the library for it is missing.
        """
        if self._fs is None:
            try:
                self._fs = fsspec.filesystem(self.protocol, use_listings_cache=False)
            except ImportError as error:
                raise ValueError(
                    f"{self.protocol}:// needs a library that is not installed ({error}); pip install "
                    f"'scaling[{EXTRAS[self.protocol]}]'"
                ) from error
        return self._fs


class Bucket(Storage):
    """A folder of a bucket; `root` is `bucket/folder` without the protocol."""

    min_request_interval_seconds = PACE_SECONDS

    def __init__(self, service: Service, root: str):
        self.service = service
        self.root = root
        self._parts: dict[str, int] = {}

    @property
    def fs(self) -> Any:
        """The file system of fsspec."""
        return self.service.fs

    def __str__(self) -> str:
        return f"{self.service.protocol}://{self.root}"

    def sub(self, key: str) -> "Bucket":
        return Bucket(self.service, f"{self.root}/{key}")

    def read(self, key: str) -> bytes:
        with _translated():
            return self.fs.cat_file(f"{self.root}/{key}")

    def read_many(self, keys: Collection[str]) -> dict[str, bytes]:
        paths = {f"{self.root}/{key}": key for key in keys}
        if not paths:
            return {}
        with _translated():
            contents = self.fs.cat(list(paths), on_error="return")
            if not isinstance(contents, dict):  # of one path fsspec gives the content alone
                contents = {next(iter(paths)): contents}
            for value in contents.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
        return {paths[path]: value for path, value in contents.items() if isinstance(value, bytes)}

    def create(self, key: str, text: str) -> bool:
        data = text.encode()
        with _translated():
            try:
                self.fs.pipe_file(f"{self.root}/{key}", data, mode="create")
            except FileExistsError:
                return self.fs.cat_file(f"{self.root}/{key}") == data  # then an earlier reply of ours was lost
        return True

    def replace(self, key: str, text: str) -> None:
        with _translated():
            self.fs.pipe_file(f"{self.root}/{key}", text.encode())

    def append(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Objects cannot be added to: each call writes a part, `KEY-000001.EXT`, and so on."""
        part = self._parts.get(key, 0) + 1
        stem, dot, extension = key.rpartition(".")
        text = "".join(f"{atomic.dumps(row, indent=None)}\n" for row in rows)
        self.replace(f"{stem}-{part:06d}{dot}{extension}", text)
        self._parts[key] = part

    def names(self, key: str) -> list[str]:
        with _translated():
            try:
                paths = self.fs.ls(f"{self.root}/{key}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def walk(self) -> list[str]:
        with _translated():
            return sorted(path.removeprefix(f"{self.root}/") for path in self.fs.find(self.root))

    def present(self, keys: Sequence[str]) -> set[str]:
        with _translated():
            if len(keys) < MANY:
                return {key for key in keys if self.fs.exists(f"{self.root}/{key}")}
            top = {key.partition("/")[0] for key in keys}
            paths = {path for each in top for path in self.fs.find(f"{self.root}/{each}")}
        return {key for key in keys if f"{self.root}/{key}" in paths}

    def modified(self, key: str) -> float:
        with _translated():
            return self.fs.modified(f"{self.root}/{key}").timestamp()

    def now(self) -> float:
        at = time.monotonic()
        if self.service.clock is None or at - self.service.clock[0] > CLOCK_SECONDS:
            path = f"{self.root}/.clock.{secrets.token_hex(8)}"
            with _translated():
                self.fs.pipe_file(path, b"")
                self.service.clock = at, self.fs.modified(path).timestamp() - at
                self.fs.rm_file(path)
        return at + self.service.clock[1]

    def size(self, key: str) -> int:
        with _translated():
            return sum(info["size"] for info in self.fs.find(f"{self.root}/{key}", detail=True).values())

    def remove(self, key: str) -> None:
        with _translated(), contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{key}", recursive=True)

    def upload(self, path: Path, key: str) -> None:
        with _translated():
            self.fs.put_file(str(path), f"{self.root}/{key}")

    def download(self, key: str, path: Path) -> None:
        with _translated():
            self.fs.get_file(f"{self.root}/{key}", str(path))


def open_bucket(url: str) -> Bucket:
    """The bucket, or a folder in it, that a URL names.

    Raises ValueError for another protocol, and where no bucket is named.
    """
    protocol, _, root = url.partition("://")
    if protocol not in EXTRAS:
        raise ValueError(f"store {url}: {protocol}:// is not supported; give a folder, or s3://… or gs://…")
    root = root.strip("/")
    if not root or "//" in root or any(part in (".", "..") for part in root.split("/")):
        raise ValueError(f"store {url} is no folder of a bucket; write {protocol}://BUCKET/FOLDER")
    return Bucket(Service(protocol), root)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the service's own library become OSErrors, by whether waiting may fix them.

    botocore's, aiohttp's and gcsfs's errors have no common parent, and s3fs makes an OSError without a number of what
    it does not know.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EBUSY or (type(error) is OSError and error.errno is None):
            raise retry.UnreachableError(str(error)) from error
        raise
    except Exception as error:
        name, code = type(error).__name__, getattr(error, "code", None)
        if "Credential" in name or code in (401, 403):
            raise PermissionError(f"{name}: {error}; give the credentials of the bucket in the environment") from error
        if type(error).__module__.partition(".")[0] not in SERVICE_PACKAGES:
            raise
        raise retry.UnreachableError(f"{name}: {error}") from error
