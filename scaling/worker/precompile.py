"""Compiles each program in one worker of a machine, and compiles programs before they are needed.

Compiled programs are kept on disk, so that what one worker has compiled the others load. The demo's eight sizes take 5
to 6 CPU seconds each, a tenth of its sweep's: two workers that start with the same size would both compile it, and a
worker that has nothing to train while the tune stage ends can compile for the grid.

A program has a mark: a file that its compiler locks, and writes to when it is done. The kernel releases the lock of a
process that dies, and then another compiles. Marks save work and decide nothing else: where locks do not work, where a
mark outlives its program, or where a lock is held for too long, two processes compile the same program.
"""

import fcntl
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from scaling import config, devices, schema
from scaling.planning import packing
from scaling.training import processes
from scaling.worker import context, queue

WAIT_SECONDS = 0.05
COMPILE_TIMEOUT_SECONDS = 600.0  # for another process that compiles the same program, and may hang
KEPT_IN = "JAX_COMPILATION_CACHE_DIR"


class Programs:
    """Compiles the programs of runs by `make`, each in one process of this machine while the others do something else.

    `later` gives runs that train alone, in any worker, whose programs may be compiled ahead; it is called once, when
    first needed. Where programs are not kept in a folder of this machine, or files cannot be locked there, each process
    compiles for itself, and `log` says why.
    """

    def __init__(
        self,
        make: Callable[[config.Run, int], object],
        execution: config.Execution,
        later: Callable[[], Iterable[config.Run]],
        *,
        stop: Callable[[], bool],
        log: Callable[[str], None],
    ):
        self.make = make
        self.execution = execution
        self.stop = stop
        self.log = log
        kept = os.environ.get(KEPT_IN)
        alone = not processes.several()  # several compile together, and none may wait for another to have done it
        self.folder = Path(kept) if kept and "://" not in kept and alone else None
        self._find = later
        self._later: list[config.Run] | None = None

    def compile(self, run: config.Run, members: int) -> None:
        """Compile or load a program; while another process holds its mark, compile programs that are needed later.

        Returns without it where marks are not used, a stop is asked for, or the other takes longer than
        `COMPILE_TIMEOUT_SECONDS`: the training that needs it then compiles it.
        """
        mark = self._mark(run, members)
        if mark is None:
            return
        with mark:
            start = time.monotonic()
            while not _compiled(mark) and not self._locked(mark):
                if self.stop() or time.monotonic() - start > COMPILE_TIMEOUT_SECONDS:
                    return
                if not self.compile_later():
                    time.sleep(WAIT_SECONDS)
            self._make(run, members, mark)

    def compile_unless_another_does(self, run: config.Run, members: int) -> None:
        """Compile or load a program, unless another process compiles it now."""
        mark = self._mark(run, members)
        if mark is None:
            self._compiles(lambda: self.make(run, members))
            return
        with mark:
            if _compiled(mark) or self._locked(mark):
                self._compiles(lambda: self._make(run, members, mark))

    def compile_later(self) -> bool:
        """Compile one program that is needed later and that no process compiles; False where none is left."""
        if self._later is None:
            self._later = list({run.shared: run for run in self._find()}.values())
        while self._later:
            run = self._later.pop(0)
            mark = self._mark(run, 1)
            if mark is None:
                return False
            with mark:
                if _compiled(mark) or not self._locked(mark):
                    continue
                if self._compiles(functools.partial(self._make, run, 1, mark)):
                    return True
        return False

    def _compiles(self, make: Callable[[], object]) -> bool:
        """Whether a program could be compiled before it is needed; where not, the log says why."""
        try:
            make()
        except Exception as error:  # the training that needs it fails too, and its run is stored as failed
            self.log(f"a program could not be compiled ahead: {type(error).__name__}: {error}")
            return False
        return True

    def _make(self, run: config.Run, members: int, mark: IO[bytes]) -> None:
        self.make(run, members)
        if not _compiled(mark):
            try:
                mark.write(b"compiled")
            except OSError as error:
                self._alone(error)

    def _mark(self, run: config.Run, members: int) -> IO[bytes] | None:
        """The file that is locked while a program is compiled, and not empty afterwards; None where none is used."""
        if self.folder is None:
            return None
        parts = [run.shared.identity(), self.execution.model_dump(mode="json"), members, _machine()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return open(self.folder / f"{schema.digest(parts)[:16]}.mark", "ab", buffering=0)
        except OSError as error:
            self._alone(error)
            return None

    def _locked(self, mark: IO[bytes]) -> bool:
        """Take the lock if it is free; closing the file releases it, and so does the end of the process."""
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some file systems of clusters have no locks
            self._alone(error)
        return True

    def _alone(self, error: OSError) -> None:
        self.log(f"each worker compiles for itself from here on: marks in {self.folder} cannot be kept ({error})")
        self.folder = None


class Precompiler:
    """Compiles the programs of one worker's sweep: of the pack that trains, of the next one, and of the next stage."""

    def __init__(self, work: context.Work):
        self.work = work
        self.programs = Programs(self._make, work.execution, self._alone, stop=work.stop, log=work.log)

    def start_next(self, claims: Sequence[queue.Claim]) -> threading.Thread | None:
        """A thread that compiles the program of the next runs while these train; None without a core to spare."""
        key = packing.key(claims[0].run.run)[0]
        left = [run for run in self.work.runs.left() if packing.key(run.run)[0] != key and self.work.runs.ready(run)]
        if len(devices.cores()) == 1 or not left or processes.several():  # several compile together
            return None
        arguments = left[0].run, self.work.most(left[0])
        compile_it = self.programs.compile_unless_another_does
        thread = threading.Thread(target=compile_it, args=arguments, name="compile the next program", daemon=True)
        thread.start()
        return thread

    def compile_later(self) -> None:
        """Compile what the next stage needs while other workers train what is left of this one."""
        work = self.work
        while not work.stop() and any(work.runs.status(run.run_id) == "running" for run in work.runs.left()):
            if not self.programs.compile_later():
                return

    def _make(self, run: config.Run, members: int) -> None:
        """Compile the program of a pack, or load it."""
        trainer = self.work.trainer
        trainer.program_of(run, self.work.execution, members, trainer.prepare(run.data, self.work.log))

    def _alone(self) -> list[config.Run]:
        """Runs of the sweep, of this stage and the next, that train alone on this device."""
        import jax

        if processes.several():  # several compile together
            return []
        kind, runs = jax.local_devices()[0].device_kind, [queued.run for queued in self.work.runs.left()]
        runs += [point.run for point in self.work.settings.points()]
        return [run for run in runs if packing.most(run, self.work.execution, kind, memory=1.0, limit=None) == 1]


def _machine() -> list[object]:
    """What a compiled program depends on beside the run."""
    import jax

    return [jax.__version__, jax.local_devices()[0].device_kind, jax.device_count(), len(devices.cores())]


def _compiled(mark: IO[bytes]) -> bool:
    return os.fstat(mark.fileno()).st_size > 0
