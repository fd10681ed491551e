"""Transient errors of a disk or a service: which they are, and how operations are retried until they pass."""

import contextlib
import errno
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from scaling.storage import backends

# Errors that pass by themselves or when a person makes room: full disks, servers and mounts that are away.
TRANSIENT = frozenset(
    (
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.EHOSTUNREACH, errno.EHOSTDOWN,
        errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENOLINK, errno.EREMOTEIO, errno.ENFILE, errno.EMFILE,
    )
)  # fmt: skip
FIRST_SECONDS = 0.5  # between two tries, at first; then a quarter of the time that the storage has failed, up to
LONGEST_SECONDS = 15.0
LOG_SECONDS = 60.0  # between two lines of log about one failure

Value = TypeVar("Value")
Given = ParamSpec("Given")


class UnreachableError(OSError):
    """A storage service did not answer, or answered that it is unavailable."""


def is_transient(error: BaseException) -> bool:
    """Whether an error of a disk or a service may pass by itself, or when a person makes room."""
    return isinstance(error, UnreachableError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in TRANSIENT
    )


class Waiter:
    """Waits between two tries, and logs that it does; raises the error where the process is asked to stop."""

    def __init__(self, stop: Callable[[], bool], log: Callable[[str], None]):
        self.stop = stop
        self.log = log
        self._logged = -float("inf")

    def wait(self, error: OSError, seconds: float) -> None:
        """Wait before the next try of an operation that has failed for `seconds`. Raises `error` when asked to stop."""
        if time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            self.log(f"paused, and trying again until it passes: {type(error).__name__}: {error}")
        end = time.monotonic() + min(max(FIRST_SECONDS, seconds / 4), LONGEST_SECONDS)
        while time.monotonic() < end:
            if self.stop():
                raise error
            time.sleep(0.1)

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Suppresses the transient error that `wait` raised because the process was asked to stop."""
        try:
            yield
        except OSError as error:
            if not (self.stop() and is_transient(error)):
                raise
            self.log(f"leases could not be released and run out by themselves: {type(error).__name__}: {error}")

    def passed(self, seconds: float) -> None:
        """Log that an operation succeeded after it had failed for `seconds`."""
        self._logged = -float("inf")
        self.log(f"going on after a pause of {seconds:.0f} s")


def call(do: Callable[[], Value], waiter: Waiter) -> Value:
    """What an idempotent operation returns, tried again while it raises transient errors."""
    start, failed = time.monotonic(), False
    while True:
        try:
            value = do()
        except OSError as error:
            if not is_transient(error):
                raise
            failed = True
            waiter.wait(error, time.monotonic() - start)
        else:
            if failed:
                waiter.passed(time.monotonic() - start)
            return value


def _retried(
    method: Callable[Concatenate[backends.Storage, Given], Value],
) -> Callable[Concatenate["RetryingStorage", Given], Value]:
    """The method of a RetryingStorage that calls one of the storage inside, again while its errors are transient."""

    @functools.wraps(method, updated=())
    def retried(self: "RetryingStorage", *args: Given.args, **kwargs: Given.kwargs) -> Value:
        return call(lambda: getattr(self.inner, method.__name__)(*args, **kwargs), self.waiter)

    return retried


class RetryingStorage(backends.Storage):
    """A storage that retries every operation while its errors are transient.

    Every operation is idempotent: `create` recognises the file that it made before its reply was lost.
    """

    def __init__(self, inner: backends.Storage, waiter: Waiter):
        self.inner = inner
        self.waiter = waiter
        self.min_request_interval_seconds = inner.min_request_interval_seconds

    def __str__(self) -> str:
        return str(self.inner)

    def local(self) -> Path | None:
        return self.inner.local()

    def sub(self, key: str) -> "RetryingStorage":
        return RetryingStorage(self.inner.sub(key), self.waiter)

    read = _retried(backends.Storage.read)
    read_many = _retried(backends.Storage.read_many)
    create = _retried(backends.Storage.create)
    replace = _retried(backends.Storage.replace)
    append = _retried(backends.Storage.append)
    names = _retried(backends.Storage.names)
    walk = _retried(backends.Storage.walk)
    present = _retried(backends.Storage.present)
    modified = _retried(backends.Storage.modified)
    now = _retried(backends.Storage.now)
    size = _retried(backends.Storage.size)
    remove = _retried(backends.Storage.remove)
    upload = _retried(backends.Storage.upload)
    download = _retried(backends.Storage.download)
