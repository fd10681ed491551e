"""Which errors of a disk or a service may pass by themselves, and how they are waited for."""

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scaling.storage import backends

# Errors that pass by themselves or when a person makes room: full disks, servers and mounts that are away.
PASSING = frozenset(
    (
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.EHOSTUNREACH, errno.EHOSTDOWN,
        errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENOLINK, errno.EREMOTEIO, errno.ENFILE, errno.EMFILE,
    )
)  # fmt: skip
FIRST_SECONDS = 0.5  # between two tries, at first; then a quarter of what the outage has lasted, up to
LONGEST_SECONDS = 15.0
TOLD_SECONDS = 60.0  # between two lines of log about one outage

Value = TypeVar("Value")


class UnreachableError(OSError):
    """A storage service that did not answer, or said that it cannot now."""


def passes(error: BaseException) -> bool:
    """Whether an error of a disk or a service may pass by itself, so that it is worth waiting for."""
    return isinstance(error, UnreachableError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in PASSING
    )


class Outages:
    """Waits while something is away, and says so; gives up where the worker is asked to stop."""

    def __init__(self, stop: Callable[[], bool], log: Callable[[str], None]):
        self.stop = stop
        self.log = log
        self._told = -float("inf")

    def wait(self, error: OSError, seconds: float) -> None:
        """Wait before something is tried again that has failed for `seconds`. Raises the error where a stop is due."""
        if time.monotonic() - self._told > TOLD_SECONDS:
            self._told = time.monotonic()
            self.log(f"paused, and trying again until it passes: {type(error).__name__}: {error}")
        end = time.monotonic() + min(max(FIRST_SECONDS, seconds / 4), LONGEST_SECONDS)
        while time.monotonic() < end:
            if self.stop():
                raise error
            time.sleep(0.1)

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Ends the body quietly where `wait` gave up: a stop was asked for while the store was away."""
        try:
            yield
        except OSError as error:
            if not (self.stop() and passes(error)):
                raise
            self.log(f"leases could not be released and run out by themselves: {type(error).__name__}: {error}")

    def passed(self, seconds: float) -> None:
        """Something is back that was away for `seconds`."""
        self._told = -float("inf")
        self.log(f"going on after a pause of {seconds:.0f} s")


def patiently(do: Callable[[], Value], outages: Outages) -> Value:
    """Do something, again and again while it fails by what may pass: a full disk, a server that is away."""
    start, failed = time.monotonic(), False
    while True:
        try:
            done = do()
        except OSError as error:
            if not passes(error):
                raise
            failed = True
            outages.wait(error, time.monotonic() - start)
        else:
            if failed:
                outages.passed(time.monotonic() - start)
            return done


class Patient(backends.Storage):
    """A storage whose outages are waited out.

    Every operation may be done again: what `create` made before its reply was lost is recognised as ours.
    """

    def __init__(self, inner: backends.Storage, outages: Outages):
        self.inner = inner
        self.outages = outages
        self.pace_seconds = inner.pace_seconds

    def __str__(self) -> str:
        return str(self.inner)

    def local(self) -> Path | None:
        return self.inner.local()

    def sub(self, key: str) -> "Patient":
        return Patient(self.inner.sub(key), self.outages)

    def read(self, key: str) -> bytes:
        return self._patiently(lambda: self.inner.read(key))

    def read_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        listed = list(keys)
        return self._patiently(lambda: self.inner.read_many(listed))

    def create(self, key: str, text: str) -> bool:
        return self._patiently(lambda: self.inner.create(key, text))

    def replace(self, key: str, text: str) -> None:
        self._patiently(lambda: self.inner.replace(key, text))

    def append(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._patiently(lambda: self.inner.append(key, rows))

    def names(self, key: str) -> list[str]:
        return self._patiently(lambda: self.inner.names(key))

    def present(self, keys: Sequence[str]) -> set[str]:
        return self._patiently(lambda: self.inner.present(keys))

    def modified(self, key: str) -> float:
        return self._patiently(lambda: self.inner.modified(key))

    def now(self) -> float:
        return self._patiently(self.inner.now)

    def size(self, key: str) -> int:
        return self._patiently(lambda: self.inner.size(key))

    def remove(self, key: str) -> None:
        self._patiently(lambda: self.inner.remove(key))

    def upload(self, path: Path, key: str) -> None:
        self._patiently(lambda: self.inner.upload(path, key))

    def download(self, key: str, path: Path) -> None:
        self._patiently(lambda: self.inner.download(key, path))

    def _patiently(self, do: Callable[[], Value]) -> Value:
        return patiently(do, self.outages)
