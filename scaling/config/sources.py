"""Where documents come from: the standard library's source text, TFDS, local files, a chain of known entropy.

How a kind is read is in `scaling.data.sources`; a source of one's own defines the methods itself, at least `documents`.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import pydantic

from scaling import registry, schema

Split = Literal["train", "validation"]
Log = Callable[[str], None]


def silent(line: str) -> None:
    """A log that says nothing."""


class Source(schema.Variant):
    """A corpus of documents in two splits, always in the same order."""

    def listing(self) -> str:
        """A fingerprint of what the source holds now, from names, sizes, times and versions, reading no content."""
        own = registry.function(self, "listing")
        return "" if own is None else own(self)

    def make_ready(self, log: Log = print) -> None:
        """Do, once, what must be done before documents can be read: download or build."""
        own = registry.function(self, "make_ready")
        if own is not None:
            own(self, log)

    def documents(self, split: Split) -> Iterator[bytes]:
        """The documents of a split in their fixed order."""
        return registry.required(self, "documents")(self, split)

    def text_bytes(self) -> int | None:
        """About how many bytes both splits hold, from metadata alone; None where that is not known."""
        own = registry.function(self, "text_bytes")
        return None if own is None else own(self)


class PythonSource(Source):
    """The source text of the running Python's standard library: real text on every machine, 10 to 35 MB.

    A TFDS dataset, built once under the cache folder (see `scaling.data.python_builder`); about one file in twenty is
    validation.
    """

    kind: Literal["python_source"] = "python_source"


class Tfds(Source):
    """A TensorFlow dataset by name, read without TensorFlow: prepared as array_record, or by a builder that needs none.

    `name` as TFDS writes it (`lm1b`, `wikipedia/20230601.en:1.0.0`); a split may be a slice (`train[:95%]`);
    `data_dir` None is TFDS's default (`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
    """

    kind: Literal["tfds"] = "tfds"
    name: str
    train_split: str
    validation_split: str
    text_key: str
    data_dir: str | None = None


class Files(Source):
    """Local files, each one document, that match `glob` (`~` and `**` allowed).

    A hash of its name relative to the folder before the first wildcard gives each file its split and its place, so
    that the first documents of a split are a fair sample of it.
    """

    kind: Literal["files"] = "files"
    glob: str
    validation_fraction: float = pydantic.Field(gt=0, lt=1)


class Synthetic(Source):
    """A Markov chain of order one whose every row is Zipf's law in a seeded order of its own: p(rank r) ∝ r^−exponent.

    All rows have one entropy, so the rate is known exactly. A split is one document of bytes 1 … alphabet, without
    byte 0, which the byte tokenizer keeps for the end of a document.
    """

    kind: Literal["synthetic"] = "synthetic"
    alphabet: int = pydantic.Field(ge=2, le=255)
    exponent: float = pydantic.Field(ge=0)
    seed: pydantic.NonNegativeInt
    train_symbols: pydantic.PositiveInt
    validation_symbols: pydantic.PositiveInt
