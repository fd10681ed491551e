"""The chaos in short, with the engines, and whole, with the slow tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chaos(*arguments: str, timeout: float) -> str:
    """Run it; gives what it printed."""
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    shown = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=timeout, check=False
    )
    print(shown.stdout, shown.stderr)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    if "the disk was never full" in shown.stdout:
        pytest.skip("all else held, but no file system could be mounted to be filled")
    return shown.stdout


@pytest.mark.engines
def test_a_short_chaos_loses_nothing() -> None:
    shown = chaos("--short", timeout=500)
    for kind in ("SIGKILL", "SIGTERM", "SIGSTOP", "full disk"):
        (line,) = (line for line in shown.splitlines() if line.strip().startswith(kind))
        assert int(line.removeprefix(f"  {kind}").split()[0]) > 0, line


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_minutes_of_chaos_lose_nothing() -> None:
    chaos(timeout=3500)
