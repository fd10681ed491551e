"""What every launcher is: it says exactly what it would start, starts workers on machines, and looks after them."""

import abc
import contextlib
import dataclasses
import importlib
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from scaling import config, launch, schema, store
from scaling.launch import rate_limiter
from scaling.storage import retry
from scaling.worker import protocol

KINDS = typing.get_args(launch.Kind)
POLL_SECONDS = 0.2
REFUSED = protocol.REFUSED  # for errors of its user, which trying again does not mend
STOPPED = tuple(128 + number for number in protocol.SIGNALS)  # exit codes of workers that were asked to stop
RESTARTS = 3  # crashes of one worker after which it is given up


@dataclasses.dataclass(frozen=True)
class Job:
    """A sweep whose open runs want workers: all that a launcher is told.

    `runs` counts those that have no result; `workers` is what was asked for, None where the launcher is to choose.
    `config_path` is the sweep's Python file, where it may define a model family: workers read it. `tracking` says
    whether workers need the key of a tracker.
    """

    store_path: str
    sweep_name: str
    mesh: config.Mesh
    runs: int
    workers: int | None = None
    config_path: Path | None = None
    tracking: config.Tracking = dataclasses.field(default_factory=config.Tracking)

    def results(self, log: Callable[[str], None] = print) -> store.Store:
        """The store, for as long as workers are looked after: while it is away, that is told and it is waited for."""
        return store.Store(self.store_path).retrying(retry.Waiter(lambda: False, log))

    def worker_command(self, python: str = sys.executable) -> list[str]:
        """The command line of one worker."""
        own = [] if self.config_path is None else ["--config", str(self.config_path.absolute())]
        return [python, "-m", "scaling.cli", "worker", self.store_path, self.sweep_name, *own]


class Workers(abc.ABC):
    """The workers of one launch. `poll` looks after them, `stop` asks them to save their runs and end."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.meanwhile: Callable[[], None] | None = None  # called once, when a core is free and others still train

    @abc.abstractmethod
    def poll(self) -> bool:
        """Look after the workers; True while there is something to wait for, here or elsewhere."""

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
        """What there is to tell since the last call."""
        told, self.messages = self.messages, []
        return told

    def _poll_until_done(self, tick: Callable[[], None], poll_seconds: float) -> None:
        while self.poll():
            tick()
            time.sleep(poll_seconds)
        tick()


class Left:
    """The statuses of a sweep's runs that are still to end, as they were a moment ago."""

    def __init__(self, results: store.Store, sweep_name: str):
        self._results = results
        self._sweep_name = sweep_name
        self._statuses: list[str] = []
        self._pace = rate_limiter.Paced(self._look)

    def __call__(self) -> list[str]:
        self._pace.tick()
        return self._statuses

    def hurry(self) -> None:
        """Have the store looked at when next asked: a worker ended."""
        self._pace.hurry()

    def _look(self) -> None:
        statuses = self._results.statuses(self._sweep_name).values()
        self._statuses = [status for status in statuses if status in store.OPEN]


class Launcher(schema.Variant):
    """Where workers are started, and with what resources: `--launcher KIND --cluster FIELD=VALUE`."""

    hands_over: ClassVar[bool] = False  # whether a person starts the workers, from what `start` writes

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
        """Start workers for the open runs; None where it `hands_over`."""
        raise NotImplementedError


def load(kind: str, overrides: Sequence[str] = ()) -> Launcher:
    """The launcher of a kind, with settings of the form FIELD=VALUE. Raises ValueError for one that it lacks."""
    if kind not in KINDS:
        raise ValueError(f"there is no launcher {kind!r}; choose one of {', '.join(KINDS)}")
    importlib.import_module(f"scaling.launch.{kind}")
    launcher = typing.cast(type[Launcher], Launcher.group[kind])
    values = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            known = ", ".join(name for name in launcher.model_fields if name != "kind") or "none"
            raise ValueError(f"--cluster {text!r} is no setting; write FIELD=VALUE (fields of {kind}: {known})")
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
