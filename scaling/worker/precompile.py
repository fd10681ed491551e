"""Programs that one worker of a machine compiles for all of them, and that workers compile before they are needed.

Compiled programs are kept on disk between processes, so that what one worker has compiled the others load. The demo's
eight sizes take 5 to 6 CPU seconds each, a tenth of its sweep's: two workers that start with the same size would both
compile it, and a worker that has nothing to train while the tune stage ends could compile for the ladder.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from scaling import config, devices, schema
from scaling.training import processes

WAIT_SECONDS = 0.05
PATIENCE_SECONDS = 600.0  # for another process at the same program, which may hang; then it is compiled here too
KEPT_IN = "JAX_COMPILATION_CACHE_DIR"


class Programs:
    """Compiles the programs of runs by `make`, each in one process of this machine while the others do something else.

    `later` gives runs to be trained alone, by anyone, whose programs may be compiled ahead; it is asked when first one
    would be. Where programs are not kept in a folder of this machine, or files cannot be locked there, each process
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
        self.together = processes.several()  # they compile together: none may wait for another to have done it
        self.folder = Path(kept) if kept and "://" not in kept and not self.together else None
        self._find = later
        self._later: list[config.Run] | None = None

    def compile(self, run: config.Run, members: int) -> None:
        """Compile a program or load it; while another process compiles it, compile what is needed later.

        Where programs are compiled without regard to others this does nothing: whoever trains compiles.
        """
        mark = self._mark(run, members)
        if mark is None:
            return
        with mark:
            start = time.monotonic()
            while not _compiled(mark) and not self._locked(mark):
                if self.stop() or time.monotonic() - start > PATIENCE_SECONDS:
                    return
                if not self.compile_later():
                    time.sleep(WAIT_SECONDS)
            self._make(run, members, mark)

    def compile_unless_another_does(self, run: config.Run, members: int) -> None:
        """Compile a program or load it, for this process to have; not where another process compiles it now."""
        mark = self._mark(run, members)
        if mark is None:
            self.make(run, members)
            return
        with mark:
            if _compiled(mark) or self._locked(mark):
                self._make(run, members, mark)

    def compile_later(self) -> bool:
        """Compile one program of those needed later that nobody has compiled or compiles now; False where none is."""
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
                try:
                    self._make(run, 1, mark)
                except Exception as error:  # whoever trains a run that needs it will fail, and tell of it there
                    self.log(f"a program could not be compiled ahead: {type(error).__name__}: {error}")
                    continue
                return True
        return False

    def _make(self, run: config.Run, members: int, mark: IO[bytes]) -> None:
        self.make(run, members)
        if not _compiled(mark):
            try:
                mark.write(b"compiled")
            except OSError as error:
                self._alone(error)

    def _mark(self, run: config.Run, members: int) -> IO[bytes] | None:
        """The file that is locked while a program is compiled, and not empty when it has been; None where none is used.

        A mark whose program is gone from the disk costs what there was without marks: more than one may compile it.
        """
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
        """Take the lock if it is free; it goes when the file is closed, or with the process."""
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


def _machine() -> list[object]:
    """What a compiled program depends on beside the run."""
    import jax

    return [jax.__version__, jax.local_devices()[0].device_kind, jax.device_count(), len(devices.cores())]


def _compiled(mark: IO[bytes]) -> bool:
    return os.fstat(mark.fileno()).st_size > 0
