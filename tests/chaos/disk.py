"""A small file system of its own, which can be filled to the last byte."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

MARK = "SCALING_CHAOS_MOUNTS"  # set in the process that may mount


def in_own_namespace(arguments: list[str]) -> str:
    """Start this program again where it may mount what no other process sees, and end with its exit code.

    Returns where it has been, or cannot be: the reason, or nothing. What is mounted goes with the last process.
    """
    if MARK in os.environ:
        return os.environ[MARK]
    reasons = []
    for how in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        try:
            subprocess.run([*how, "true"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reasons.append(f"{' '.join(how)}: {getattr(error, 'stderr', None) or error}".strip())
            continue
        os.environ[MARK] = ""
        os.execvp(how[0], [*how, sys.executable, *arguments])
    return "; ".join(reasons)


class Disk:
    """A tmpfs, mounted in a folder while the context lasts. `fill` takes all of its space until `free`."""

    def __init__(self, folder: Path, size_bytes: int):
        self.folder = folder
        self.size_bytes = size_bytes
        self.full = False
        self._filler = folder / "filler"

    def __enter__(self) -> "Disk":
        self.folder.mkdir(parents=True)
        options = f"size={self.size_bytes},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(self.folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def fill(self) -> None:
        """Take what space there is; again and again, since processes may also give some back."""
        self.full = True
        with open(self._filler, "ab", buffering=0) as file:
            block = bytes(2**20)
            while block:
                try:
                    file.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def free(self) -> None:
        """Give the space back."""
        self.full = False
        with contextlib.suppress(FileNotFoundError):
            self._filler.unlink()
