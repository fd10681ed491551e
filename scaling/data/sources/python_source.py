"""Reads `sources.PythonSource`, by way of a TFDS dataset."""

import functools
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling import schema
from scaling.config import sources
from scaling.data import folders
from scaling.storage import cache


def listing(source: sources.PythonSource) -> str:
    files = standard_library()
    return f"{platform.python_version()}-{schema.digest([file[::2] for file in files])[:12]}"


def make_ready(source: sources.PythonSource, log: sources.Log = print) -> None:
    builder(source, log)


def documents(source: sources.PythonSource, split: sources.Split) -> Iterator[bytes]:
    from scaling.data import tfds_access

    yield from tfds_access.texts(builder(source, sources.silent), split, "text")


def text_bytes(source: sources.PythonSource) -> int:
    return sum(file.bytes for file in standard_library())


def builder(source: sources.PythonSource, log: sources.Log) -> Any:
    from scaling.data import python_builder

    return python_builder.build(cache.root() / "tfds", listing(source), standard_library(), log)


@functools.cache
def standard_library() -> tuple[folders.File, ...]:
    """The `.py` files of the running Python's standard library, by name, without what was installed or generated."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = folders.walk(folder, suffix=".py", leave_out=("site-packages", "dist-packages", "__pycache__"))
    local = ("sitecustomize.py", "usercustomize.py", "_sysconfigdata_")
    return tuple(file for file in files if not file.name.startswith(local))
