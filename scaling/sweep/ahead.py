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

from scaling import config, schema

WAIT_SECONDS = 0.05
KEPT_IN = "JAX_COMPILATION_CACHE_DIR"


class Programs:
    """Compiles the programs of runs by `make`, each in one process of this machine while the others do something else.

    `later` gives runs to be trained alone, by anyone, whose programs may be compiled ahead; it is asked when first one
    would be.
    """

    def __init__(
        self,
        make: Callable[[config.Run, int], object],
        execution: config.Execution,
        later: Callable[[], Iterable[config.Run]],
    ):
        self.make = make
        self.execution = execution
        self.folder = Path(os.environ[KEPT_IN]) if os.environ.get(KEPT_IN) else None
        self._find = later
        self._later: list[config.Run] | None = None

    def compile(self, run: config.Run, members: int) -> None:
        """Compile a program or load it; while another process compiles it, compile what is needed later.

        Where compiled programs are not kept this does nothing: whoever trains compiles.
        """
        if self.folder is None:
            return
        with open(self._mark(run, members), "ab") as mark:
            while not _compiled(mark) and not _locked(mark):
                if not self.compile_later():
                    time.sleep(WAIT_SECONDS)
            self.make(run, members)
            if not _compiled(mark):
                mark.write(b"compiled")

    def compile_later(self) -> bool:
        """Compile one program of those needed later that nobody has compiled or compiles now; False where none is."""
        if self.folder is None:
            return False
        if self._later is None:
            self._later = list({run.shared: run for run in self._find()}.values())
        while self._later:
            run = self._later.pop(0)
            with open(self._mark(run, 1), "ab") as mark:
                if not _compiled(mark) and _locked(mark):
                    self.make(run, 1)
                    mark.write(b"compiled")
                    return True
        return False

    def _mark(self, run: config.Run, members: int) -> Path:
        """The file that is locked while a program is compiled, and not empty when it has been.

        A mark whose program is gone from the disk costs what there was without marks: more than one may compile it.
        """
        assert self.folder is not None
        parts = [run.shared.model_dump(mode="json"), self.execution.model_dump(mode="json"), members]
        return self.folder / f"{schema.digest(parts)[:16]}.mark"


def _compiled(mark: IO[bytes]) -> bool:
    return os.fstat(mark.fileno()).st_size > 0


def _locked(mark: IO[bytes]) -> bool:
    """Take the lock if it is free; it goes when the file is closed, or with the process."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
