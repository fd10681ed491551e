"""Reads `sources.Tfds`."""

import os
from collections.abc import Iterator
from pathlib import Path

from scaling import schema
from scaling.config import sources
from scaling.data import folders, tfds_access
from scaling.storage import cache


def listing(source: sources.Tfds) -> str:
    files = folders.walk(_folder(source) / source.name.replace(":", "/"))
    return schema.digest([(file.name, file.bytes, os.stat(file.path).st_mtime_ns) for file in files])


def make_ready(source: sources.Tfds, log: sources.Log = print) -> None:
    if tfds_access.is_prepared(tfds_access.find(source.name, _folder(source))):
        return
    with cache.locked(cache.root() / "tfds" / source.name.replace("/", "-")):
        builder = tfds_access.find(source.name, _folder(source))
        if not tfds_access.is_prepared(builder):
            log(f"TFDS dataset {source.name!r} is not in {_folder(source)}: preparing it there")
            tfds_access.prepare(builder)


def documents(source: sources.Tfds, split: sources.Split) -> Iterator[bytes]:
    make_ready(source, sources.silent)
    builder = tfds_access.find(source.name, _folder(source))
    name = source.train_split if split == "train" else source.validation_split
    yield from tfds_access.texts(builder, name, source.text_key)


def text_bytes(source: sources.Tfds) -> int | None:
    files = folders.walk(_folder(source) / source.name.replace(":", "/"))
    return sum(file.bytes for file in files) or None


def _folder(source: sources.Tfds) -> Path:
    named = source.data_dir or os.environ.get("TFDS_DATA_DIR")
    return Path(named).expanduser().absolute() if named else Path.home() / "tensorflow_datasets"
