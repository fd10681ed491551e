"""What every launcher does: it describes what it would start, starts workers on machines, and follows them."""

import abc
import contextlib
import dataclasses
import difflib
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from scaling import config, launch, registry, schema, store
from scaling.config import imports
from scaling.launch import rate_limiter
from scaling.storage import retry
from scaling.worker import protocol

POLL_SECONDS = 0.2
REFUSED = protocol.REFUSED  # for errors of its user, which trying again does not fix
STOPPED = tuple(128 + number for number in protocol.SIGNALS)  # exit codes of workers that were asked to stop
RESTARTS = 3  # crashes of one worker after which it is given up


@dataclasses.dataclass(frozen=True)
class Job:
    """A sweep with open runs, for which a launcher is to start workers.

    `runs` counts those that have no result; `workers` is what was asked for, None where the launcher is to choose.
    `config_path` is the sweep's Python file, which workers read: it may define families, trackers and the like.
    `secrets` are the variables of the environment in which its trackers need secrets.
    """

    store_path: str
    sweep_name: str
    mesh: config.Mesh
    runs: int
    workers: int | None = None
    config_path: Path | None = None
    secrets: tuple[str, ...] = ()

    def results(self, log: Callable[[str], None] = print) -> store.Store:
        """The store, for the launcher that follows the workers: it is retried while it cannot be reached."""
        return store.Store(self.store_path).retrying(retry.Waiter(lambda: False, log))

    def worker_command(self, python: str = sys.executable, folder: str | None = None) -> list[str]:
        """The command line of one worker; with the sweep's Python file in `folder`, where it was sent to one."""
        own = []
        if self.config_path is not None:
            place = self.config_path.absolute() if folder is None else f"{folder}/{self.config_path.name}"
            own = ["--config", str(place)]
        return [python, "-m", "scaling.cli", "worker", self.store_path, self.sweep_name, *own]

    def sources(self) -> Mapping[str, str]:
        """The text of the sweep's Python file and of what it imports from beside it, by paths relative to its folder.

        Raises ValueError where that cannot be sent to other machines.
        """
        return {} if self.config_path is None else imports.sources(self.config_path)


class Workers(abc.ABC):
    """The workers of one launch: `poll` restarts those that crashed, `stop` asks all to save their runs and end."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.meanwhile: Callable[[], None] | None = None  # called once, when a core is free and others still train

    @abc.abstractmethod
    def poll(self) -> bool:
        """Look at each worker, and act on how it ended; True while one runs, or others train open runs."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask every worker to save its run and end."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End every worker at once; their runs go on from their last checkpoints."""

    def wait(self, tick: Callable[[], None], poll_seconds: float = POLL_SECONDS) -> None:
        """Call `tick` until all is done. Ctrl-C, SIGTERM or SIGHUP stop the workers, which save their runs first."""
        with _interrupts():
            try:
                self._poll_until_done(tick, poll_seconds)
            except KeyboardInterrupt:
                self.messages.append("stopping: the workers save their runs (again to stop at once)")
                try:
                    self.stop()
                    self._poll_until_done(tick, poll_seconds)
                except KeyboardInterrupt:
                    self.kill()
                self.messages.append("stopped; start the same command again to go on")
            except BaseException:
                self.kill()
                raise

    def take_messages(self) -> list[str]:
        """The messages since the last call."""
        taken, self.messages = self.messages, []
        return taken

    def _poll_until_done(self, tick: Callable[[], None], poll_seconds: float) -> None:
        while self.poll():
            tick()
            time.sleep(poll_seconds)
        tick()


class OpenRuns:
    """The statuses of a sweep's runs that have not ended, read from the store no oftener than `rate_limiter` allows."""

    def __init__(self, results: store.Store, sweep_name: str):
        self._results = results
        self._sweep_name = sweep_name
        self._statuses: list[str] = []
        self._limited = rate_limiter.RateLimited(self._read)

    def __call__(self) -> list[str]:
        self._limited.call_if_due()
        return self._statuses

    def expire(self) -> None:
        """Read the store at the next call: a worker has ended."""
        self._limited.expire()

    def _read(self) -> None:
        statuses = self._results.statuses(self._sweep_name).values()
        self._statuses = [status for status in statuses if status in store.OPEN]


class Launcher(schema.Variant):
    """Where workers are started, and with what resources: `--launcher KIND --cluster FIELD=VALUE`.

    One of your own is a subclass with a `kind` in the sweep's Python file.
    """

    manual: ClassVar[bool] = False  # whether a person starts the workers, from what `start` writes

    def device(self, job: Job) -> tuple[str, float | None]:
        """The kind of device that workers get, "cpu" or its name, and the bytes for arrays on one, where known."""
        raise NotImplementedError

    def workers(self, need: float, mesh: config.Mesh) -> int | None:
        """How many workers to start where nobody says and a device needs `need` bytes; None leaves it to `start`."""
        return None

    def describe(self, job: Job) -> str:
        """Exactly what `start` would start, as text."""
        raise NotImplementedError

    def start(self, job: Job) -> Workers | None:
        """Start workers for the open runs; None where it is `manual`."""
        raise NotImplementedError


def load(kind: str, overrides: Sequence[str] = ()) -> Launcher:
    """The launcher of a kind, with settings of the form FIELD=VALUE. Raises ValueError for one that it lacks."""
    if kind not in Launcher.group and registry.module("Launcher", kind) is None:
        known = sorted({*launch.kinds(), *Launcher.group})
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no launcher {kind!r}; {hint}choose one of {', '.join(known)}, or define it in the sweep's file"
        )
    launcher = typing.cast(type[Launcher], Launcher.group[kind])
    values = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            fields = ", ".join(name for name in launcher.model_fields if name != "kind") or "none"
            raise ValueError(f"--cluster {text!r} is no setting; write FIELD=VALUE (fields of {kind}: {fields})")
        values[name] = schema.parse_value(value)
    return launcher.model_validate(values)


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the body, as Ctrl-C does; not where `nohup` has one ignored."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
