"""The `scaling` command: in a process of its own, as a person starts it, or in this one, which starts much faster."""

import contextlib
import dataclasses
import io
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from scaling import cli

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended, and the CPU seconds that it and its children took, where it had a process of its own."""

    code: int
    out: str
    err: str
    cpu_seconds: float = float("nan")


def environment(**more: str) -> dict[str, str]:
    """The environment in which a process finds the project, wherever it runs."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "COLUMNS": "200", **more}


def line(*arguments: object) -> list[str]:
    """The words that start `scaling ARGUMENTS…`."""
    return [sys.executable, "-m", "scaling.cli", *map(str, arguments)]


def ran(command: list[str], cwd: Path, env: Mapping[str, str]) -> Ended:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(shown.returncode, shown.stdout, shown.stderr, spent)


def process(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """`scaling ARGUMENTS…` in a folder, by a process of its own."""
    return ran(line(*arguments), cwd, environment(**(env or {})))


def here(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """`scaling ARGUMENTS…` in a folder, by this process: for what starts no backend of its own and no workers."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["scaling", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "200", **(env or {})}),
    ):  # fmt: skip
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())
