"""Text as tokens: a source turned once into tokens that are cached on disk and memory-mapped from there."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from scaling import schema
from scaling.config import data as datas
from scaling.config import sources, tokenizers
from scaling.data import corpus as corpora
from scaling.data import examples
from scaling.storage import atomic, cache, errors

FORMAT = 1
"""Part of every key: raise it when the meaning of the cached files changes."""

BATCH_BYTES = 4_000_000
"""Text encoded at a time: enough to keep a tokenizer's threads busy, little beside the memory of a small machine."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextCorpus(corpora.Corpus):
    """The tokens of a `Text` and what identifies them.

    `validation` has one token more than are predicted, the first one's context. `data_sha256` is over the content of
    all documents of both splits, whatever their paths and the tokenizer; `validation_id` over the validation tokens
    used. `token_bytes[t]` is how many bytes of text token t stands for.
    """

    train: Integer[np.ndarray, "unique_tokens"] = dataclasses.field(repr=False)
    validation: Integer[np.ndarray, "validation_tokens+1"] = dataclasses.field(repr=False)
    vocabulary_size: int
    unique_tokens: int
    data_sha256: str
    validation_id: str
    tokenizer_id: str
    token_bytes: Int32[np.ndarray, "vocabulary"] = dataclasses.field(repr=False)
    folder: Path

    def train_examples(self, context: int) -> examples.Windows:
        return examples.Windows(self.train, context)

    def validation_examples(self, context: int) -> examples.Batch:
        """The validation tokens as windows side by side: each of them but the first is a target exactly once.

        Raises DataError unless the number of targets is a multiple of the context, so that none is dropped unsaid.
        """
        targets = len(self.validation) - 1
        if targets % context:
            below = targets // context * context
            nearest = below + context if below == 0 or targets - below > context / 2 else below
            raise errors.DataError(
                f"validation_tokens = {targets:,} is no multiple of context = {context}; the nearest is {nearest:,}"
            )
        windows = np.lib.stride_tricks.sliding_window_view(self.validation, context + 1)[::context]
        return {"tokens": windows.astype(np.int32)}


def find(data: datas.Text) -> TextCorpus | None:
    """The corpus if it is cached, by looking at names and sizes only; None where `prepare` has work to do.

    Raises MissingDataError where files of the source are gone, DataError where the corpus is too short for `data`.
    """
    folder = _folder(data)
    return _open(data, folder) if folder.is_dir() and _defect(folder) is None else None


def prepare(data: datas.Text, log: sources.Log = print) -> TextCorpus:
    """The corpus, cached first if need be: builds the dataset, trains the tokenizer, writes the tokens.

    A second process waits for the first. Raises MissingDataError, DataError (empty, too short, unreadable for the
    tokenizer) or DiskSpaceError; nothing half-written stays behind.
    """
    cached = find(data)
    if cached is not None:
        return cached
    data.source.make_ready(log)
    folder = _folder(data)
    with cache.locked(folder):
        if folder.is_dir():
            defect = _defect(folder)
            if defect is None:
                return _open(data, folder)
            log(f"cached corpus {folder.name} is damaged ({defect}): making it again")
            atomic.discard(folder)
        _write(data, folder, log)
    return _open(data, folder)


def encoder(data: datas.Text, corpus: TextCorpus) -> tokenizers.Encoder:
    """The encoder that made a corpus, to encode and decode other text with it."""
    return data.tokenizer.build(corpus.folder, lambda: data.source.documents("train"))


def _folder(data: datas.Text) -> Path:
    source, tokenizer = data.source.identity(), data.tokenizer.identity()
    key = schema.digest([FORMAT, source, data.source.listing(), tokenizer])[:16]
    return cache.root() / "corpora" / f"{data.source.kind}-{data.tokenizer.kind}-{key}"


def _defect(folder: Path) -> str | None:
    """What is wrong with a cached corpus as far as names and sizes tell; None if nothing is."""
    record_file = folder / "corpus.json"
    try:
        record = json.loads(record_file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{record_file.name}: {error}"
    if not isinstance(record, dict) or record.pop("record_sha256", None) != schema.digest(record):
        return f"{record_file.name} is not as it was written"
    for name, size in record["file_bytes"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, not the {size:,} that were written"
    return None


def _open(data: datas.Text, folder: Path) -> TextCorpus:
    record = json.loads((folder / "corpus.json").read_text("utf-8"))
    train_tokens, validation_tokens = record["tokens"]["train"], record["tokens"]["validation"]
    where = f"split of the {data.source.kind} corpus in {record['tokenizer_id']} tokens"
    if data.validation_tokens + 1 > validation_tokens:
        raise errors.DataError(
            f"validation_tokens = {data.validation_tokens:,}, but the validation {where} has {validation_tokens:,} "
            f"of which {validation_tokens - 1:,} can be predicted; lower validation_tokens or give more validation text"
        )
    if data.train_tokens is not None and data.train_tokens > train_tokens:
        raise errors.DataError(
            f"train_tokens = {data.train_tokens:,}, but the training {where} has {train_tokens:,}; lower train_tokens, "
            "or leave it None to use all"
        )
    dtype = np.dtype(record["dtype"])
    train = np.memmap(folder / "train.bin", dtype, mode="r", shape=(train_tokens,))[: data.train_tokens]
    used = np.fromfile(folder / "validation.bin", dtype, count=data.validation_tokens + 1)
    used.flags.writeable = False
    identity = hashlib.sha256(record["tokenizer_id"].encode() + b"\0" + used.astype("<u4").tobytes())
    return TextCorpus(
        train=train,
        validation=used,
        vocabulary_size=record["vocabulary_size"],
        unique_tokens=len(train),
        data_sha256=record["data_sha256"],
        validation_id=identity.hexdigest()[:16],
        tokenizer_id=record["tokenizer_id"],
        token_bytes=np.load(folder / "token_bytes.npy"),
        folder=folder,
    )


def _write(data: datas.Text, folder: Path, log: sources.Log) -> None:
    dtype = np.min_scalar_type(data.tokenizer.vocabulary_size - 1)
    text_bytes = data.source.text_bytes()
    if text_bytes is not None:
        cache.require_space(folder, text_bytes * dtype.itemsize, f"the token cache of the {data.source.kind} corpus")
    with cache.temporary(folder) as draft:
        begun = time.monotonic()
        log(f"{data.source.kind}: making the corpus in {data.tokenizer.kind} tokens, once")
        encoder = data.tokenizer.build(draft, lambda: data.source.documents("train"))
        validation = _write_split(data, "validation", encoder, draft, dtype, log, known=set())
        train = _write_split(data, "train", encoder, draft, dtype, log, known=validation.documents)
        np.save(draft / "token_bytes.npy", encoder.token_bytes())
        record: dict[str, Any] = {
            "source": data.source.model_dump(mode="json"),
            "tokenizer": data.tokenizer.model_dump(mode="json"),
            "tokenizer_id": encoder.id,
            "vocabulary_size": encoder.vocabulary_size,
            "dtype": dtype.name,
            "tokens": {"train": train.tokens, "validation": validation.tokens},
            "text_bytes": {"train": train.text_bytes, "validation": validation.text_bytes},
            "data_sha256": schema.digest([train.sha256, validation.sha256]),
            "validation_documents_in_train": train.known,
            "file_bytes": {file.name: file.stat().st_size for file in sorted(draft.iterdir())},
        }
        record["record_sha256"] = schema.digest(record)
        (draft / "corpus.json").write_text(json.dumps(record, indent=1), "utf-8")
        if _folder(data) != folder:
            raise errors.DataError(
                f"the {data.source.kind} corpus changed while it was read; let what writes to it finish, then run again"
            )
        cache.publish(draft, folder)
    seconds = time.monotonic() - begun
    log(
        f"{data.source.kind}: {train.tokens:,} training and {validation.tokens:,} validation tokens ({encoder.id}) "
        f"from {(train.text_bytes + validation.text_bytes) / 1e6:.1f} MB in {seconds:.1f} s"
    )
    if train.known:
        log(f"{data.source.kind}: {train.known:,} validation documents also stand in the training split, word for word")


@dataclasses.dataclass
class _Written:
    """What was written of one split; `documents` are digests, `known` how many were among those given as known."""

    sha256: str
    tokens: int
    text_bytes: int
    documents: set[bytes]
    known: int


def _write_split(
    data: datas.Text,
    split: sources.Split,
    encoder: tokenizers.Encoder,
    draft: Path,
    dtype: np.dtype[Any],
    log: sources.Log,
    known: set[bytes],
) -> _Written:
    """Encode a split into `<split>.bin`; raises DataError where it holds no text."""
    content = hashlib.sha256()
    written = _Written("", 0, 0, set(), 0)
    repeated = set()
    said = time.monotonic()
    with open(draft / f"{split}.bin", "wb") as file:
        for documents in _batched(data.source.documents(split)):
            tokens = encoder.encode(documents)
            file.write(tokens.astype(dtype, copy=False).data)
            for document in documents:
                digest = hashlib.sha256(document).digest()
                content.update(digest)
                if split == "validation":
                    written.documents.add(digest)
                elif digest in known:
                    repeated.add(digest)
            written.tokens += len(tokens)
            written.text_bytes += sum(map(len, documents))
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log(f"{data.source.kind}: {split}, {written.text_bytes / 1e6:,.0f} MB, {written.tokens:,} tokens")
    if not written.text_bytes:
        raise errors.DataError(
            f"the {split} split of the {data.source.kind} corpus holds no text: it has no document that is not "
            f"empty; check what the source names: {data.source.to_json(indent=None)}"
        )
    written.sha256, written.known = content.hexdigest(), len(repeated)
    return written


def _batched(documents: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Documents in lists of about BATCH_BYTES; empty ones, which have nothing to learn from, are left out."""
    batch: list[bytes] = []
    size = 0
    for document in documents:
        if not document:
            continue
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
