"""Where documents come from: the standard library's source text, TFDS, local files, a chain of known entropy."""

import functools
import glob as globbing
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float, Int

from scaling import schema
from scaling.data import cache, errors

Split = Literal["train", "validation"]
Log = Callable[[str], None]


class Source(schema.Variant):
    """A corpus of documents in two splits, always in the same order."""

    def listing(self) -> str:
        """A fingerprint of what the source holds now, from names, sizes, times and versions, reading no content."""
        raise NotImplementedError

    def make_ready(self, log: Log = print) -> None:
        """Do, once, what must be done before documents can be read: download or build."""

    def documents(self, split: Split) -> Iterator[bytes]:
        """The documents of a split in their fixed order."""
        raise NotImplementedError

    def text_bytes(self) -> int | None:
        """About how many bytes both splits hold, from metadata alone; None where that is not known."""
        return None


class File(NamedTuple):
    """A file of a corpus: its name relative to the corpus, where it lies, its size."""

    name: str
    path: str
    bytes: int


def position(name: str) -> float:
    """Where a hash puts a name in [0, 1): the same on every machine, and uniform over names."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64


def split_of(name: str, validation_fraction: float) -> Split:
    """The split of a file by its name alone, so that files added later move no other."""
    return "validation" if position(name) < validation_fraction else "train"


class PythonSource(Source):
    """The source text of the running Python's standard library: real text on every machine, 10 to 35 MB.

    A TFDS dataset, built once under the cache folder (see `scaling.data.python_source`); about one file in twenty is
    validation.
    """

    kind: Literal["python_source"] = "python_source"

    def listing(self) -> str:
        files = standard_library()
        return f"{platform.python_version()}-{schema.digest([file[::2] for file in files])[:12]}"

    def make_ready(self, log: Log = print) -> None:
        self._builder(log)

    def documents(self, split: Split) -> Iterator[bytes]:
        from scaling.data import tfds_access

        yield from tfds_access.texts(self._builder(_silent), split, "text")

    def text_bytes(self) -> int:
        return sum(file.bytes for file in standard_library())

    def _builder(self, log: Log) -> Any:
        from scaling.data import python_source

        return python_source.build(cache.root() / "tfds", self.listing(), standard_library(), log)


@functools.cache
def standard_library() -> tuple[File, ...]:
    """The `.py` files of the running Python's standard library, by name, without what was installed or generated."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = _walk(folder, suffix=".py", leave_out=("site-packages", "dist-packages", "__pycache__"))
    local = ("sitecustomize.py", "usercustomize.py", "_sysconfigdata_")
    return tuple(file for file in files if not file.name.startswith(local))


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

    def listing(self) -> str:
        files = _walk(self._folder() / self.name.replace(":", "/"))
        return schema.digest([(file.name, file.bytes, os.stat(file.path).st_mtime_ns) for file in files])

    def make_ready(self, log: Log = print) -> None:
        from scaling.data import tfds_access

        if tfds_access.is_prepared(tfds_access.find(self.name, self._folder())):
            return
        with cache.locked(cache.root() / "tfds" / self.name.replace("/", "-")):
            builder = tfds_access.find(self.name, self._folder())
            if not tfds_access.is_prepared(builder):
                log(f"TFDS dataset {self.name!r} is not in {self._folder()}: preparing it there")
                tfds_access.prepare(builder)

    def documents(self, split: Split) -> Iterator[bytes]:
        from scaling.data import tfds_access

        self.make_ready(_silent)
        builder = tfds_access.find(self.name, self._folder())
        name = self.train_split if split == "train" else self.validation_split
        yield from tfds_access.texts(builder, name, self.text_key)

    def text_bytes(self) -> int | None:
        files = _walk(self._folder() / self.name.replace(":", "/"))
        return sum(file.bytes for file in files) or None

    def _folder(self) -> Path:
        named = self.data_dir or os.environ.get("TFDS_DATA_DIR")
        return Path(named).expanduser().absolute() if named else Path.home() / "tensorflow_datasets"


class Files(Source):
    """Local files, each one document, that match `glob` (`~` and `**` allowed).

    A hash of its name relative to the folder before the first wildcard gives each file its split and its place, so
    that the first documents of a split are a fair sample of it.
    """

    kind: Literal["files"] = "files"
    glob: str
    validation_fraction: float = pydantic.Field(gt=0, lt=1)

    def listing(self) -> str:
        files = self._files()
        stats = [(file.name, file.bytes, os.stat(file.path).st_mtime_ns) for file in files]
        return schema.digest([str(self._root()), stats])

    def documents(self, split: Split) -> Iterator[bytes]:
        files = self._files()
        chosen = [file for file in files if split_of(file.name, self.validation_fraction) == split]
        if not chosen:
            self._refuse_split(split, files)
        for file in chosen:
            yield Path(file.path).read_bytes()

    def text_bytes(self) -> int:
        return sum(file.bytes for file in self._files())

    def _root(self) -> Path:
        parts = Path(self.glob).expanduser().absolute().parts
        fixed = 0
        while fixed < len(parts) - 1 and not globbing.has_magic(parts[fixed]):
            fixed += 1
        return Path(*parts[:fixed])

    def _files(self) -> list[File]:
        root, pattern = self._root(), str(Path(self.glob).expanduser().absolute())
        paths = [path for path in globbing.iglob(pattern, recursive=True) if os.path.isfile(path)]
        files = [File(Path(path).relative_to(root).as_posix(), path, os.stat(path).st_size) for path in paths]
        if not files:
            raise errors.MissingDataError(
                f"glob {self.glob!r} matches no file in {root}; check the path, and quote the pattern in a shell"
            )
        return sorted(files, key=lambda file: (position(file.name), file.name))

    def _refuse_split(self, split: Split, files: list[File]) -> None:
        if len(files) == 1:
            remedy = "cut the file into several, one part a document, and match them all"
        elif split == "validation":
            remedy = f"raise validation_fraction above {position(files[0].name):.3g}, or give more files"
        else:
            remedy = f"lower validation_fraction to {position(files[-1].name):.3g} or less, or give more files"
        raise errors.DataError(
            f"of the {len(files)} files of {self.glob!r} none falls in the {split} split with validation_fraction = "
            f"{self.validation_fraction:g}; {remedy}"
        )


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

    def listing(self) -> str:
        return "1"

    def documents(self, split: Split) -> Iterator[bytes]:
        yield self._chain(*((self.train_symbols, 1) if split == "train" else (self.validation_symbols, 2)))

    def text_bytes(self) -> int:
        return self.train_symbols + self.validation_symbols

    def transition_matrix(self) -> Float[np.ndarray, "alphabet alphabet"]:
        """P[i, j], the probability that symbol j (byte j + 1) follows symbol i (byte i + 1)."""
        matrix = np.empty((self.alphabet, self.alphabet))
        np.put_along_axis(matrix, self._orders(), self._zipf()[None, :], axis=1)
        return matrix

    def stationary(self) -> Float[np.ndarray, "alphabet"]:
        """The distribution μ = μP that the chain keeps, and starts from."""
        system = np.vstack([self.transition_matrix().T - np.eye(self.alphabet), np.ones(self.alphabet)])
        return np.linalg.lstsq(system, np.append(np.zeros(self.alphabet), 1.0), rcond=None)[0]

    def entropy_rate(self) -> float:
        """Nats per symbol: H = −Σᵢ μᵢ Σⱼ Pᵢⱼ log Pᵢⱼ, the lowest loss any model of this source can reach."""
        matrix = self.transition_matrix()
        return float(-(self.stationary()[:, None] * matrix * np.log(matrix)).sum())

    def _zipf(self) -> Float[np.ndarray, "alphabet"]:
        weights = np.arange(1, self.alphabet + 1) ** -float(self.exponent)
        return weights / weights.sum()

    def _orders(self) -> Int[np.ndarray, "alphabet alphabet"]:
        """orders[i, r], the symbol of rank r after symbol i."""
        symbols = np.tile(np.arange(self.alphabet), (self.alphabet, 1))
        return np.random.Generator(np.random.PCG64([self.seed, 0])).permuted(symbols, axis=1)

    def _chain(self, length: int, stream: int) -> bytes:
        """A walk of `length` symbols: independent Zipf ranks, each looked up in the order of the symbol before it."""
        random = np.random.Generator(np.random.PCG64([self.seed, stream]))
        after = [row.tobytes() for row in self._orders().astype(np.uint8)]
        symbol = int(random.choice(self.alphabet, p=self.stationary().clip(0)))
        bounds = np.cumsum(self._zipf())
        walk = bytearray([symbol])
        while len(walk) < length:
            uniform = random.random(min(1_000_000, length - len(walk)))
            for rank in np.searchsorted(bounds[:-1], uniform, side="right").tolist():
                symbol = after[symbol][rank]
                walk.append(symbol)
        return (np.frombuffer(walk, np.uint8) + np.uint8(1)).tobytes()


def _silent(line: str) -> None:
    """A log that says nothing."""


def _walk(folder: Path, suffix: str = "", leave_out: Collection[str] = ()) -> list[File]:
    """The files below a folder that end in `suffix`, sorted by name; none where the folder is not there."""
    found: list[File] = []
    pending = [("", str(folder))] if folder.is_dir() else []
    while pending:
        prefix, inner = pending.pop()
        with os.scandir(inner) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in leave_out:
                        pending.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name.endswith(suffix) and entry.is_file():
                    found.append(File(prefix + entry.name, entry.path, entry.stat().st_size))
    return sorted(found)
