"""A TFDS builder over the source text of the running Python's standard library. Imported when used: it loads TFDS."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from scaling.config import sources
from scaling.data import folders, tfds_access
from scaling.storage import cache

VALIDATION_FRACTION = 0.05
EXPECTED_BYTES = 5_000_000


class PythonSourceBuilder(tfds.core.GeneratorBasedBuilder):
    """Standard library files as (path, text), split by a hash of the path; only distinct, non-empty UTF-8 files."""

    name = "python_source"
    code_path = Path(__file__)
    """Said here because finding it out, TFDS imports `importlib_resources`, which it does not require."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: Sequence[folders.File] = (), **kwargs: Any) -> None:
        self._files = files
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="The source text of a Python's standard library.",
            features=tfds.features.FeaturesDict({"path": text, "text": text}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        kept = list(distinct_texts(self._files))
        return {split: self._generate_examples(kept, split) for split in ("train", "validation")}

    def _generate_examples(self, files: list[folders.File], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in files:
            if folders.split_of(file.name, VALIDATION_FRACTION) == split:
                yield file.name, {"path": file.name, "text": Path(file.path).read_bytes()}


def distinct_texts(files: Sequence[folders.File]) -> Iterator[folders.File]:
    """The files that hold text (UTF-8 without NUL, not empty) and repeat no earlier one."""
    seen = set()
    for file in files:
        content = Path(file.path).read_bytes()
        if not content or b"\0" in content or content in seen:
            continue
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        seen.add(content)
        yield file


def build(data_dir: Path, config_name: str, files: Sequence[folders.File], log: sources.Log) -> Any:
    """The prepared builder of these files, in `data_dir/python_source/<config_name>`; writes it if it is not there.

    `config_name` tells one Python's library from another's in a shared cache.
    """
    builder = _builder(data_dir, config_name, files)
    folder = Path(builder.data_dir)
    if tfds_access.is_prepared(builder):
        return builder
    with cache.locked(folder):
        if tfds_access.is_prepared(builder):
            return _builder(data_dir, config_name, files)
        total = sum(file.bytes for file in files)
        cache.require_space(folder, 2 * total, "the dataset python_source")
        small = ": less than 5 MB, since parts of it are not installed" if total < EXPECTED_BYTES else ""
        log(f"python_source: reading {len(files):,} files, {total / 1e6:.1f} MB, of the standard library{small}")
        tfds_access.prepare(builder)
    return builder


def _builder(data_dir: Path, config_name: str, files: Sequence[folders.File]) -> PythonSourceBuilder:
    config = tfds.core.BuilderConfig(name=config_name)
    with tfds_access.quiet():
        return PythonSourceBuilder(files=files, data_dir=str(data_dir), config=config, file_format="array_record")
