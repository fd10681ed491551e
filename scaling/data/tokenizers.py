"""Documents to token ids and back, with the bytes of text that every token stands for."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pydantic
from jaxtyping import Int32, Integer

from scaling import schema
from scaling.data import errors


class Encoder(Protocol):
    """A tokenizer ready to use. One token that stands for no text ends each document."""

    id: str
    vocabulary_size: int

    def encode(self, documents: Sequence[bytes]) -> Integer[np.ndarray, "tokens"]:
        """The tokens of the documents one after another, each document followed by the end-of-document token."""

    def decode(self, tokens: Integer[np.ndarray, "tokens"]) -> bytes:
        """The text of the tokens; ends of documents leave nothing in it."""

    def token_bytes(self) -> Int32[np.ndarray, "vocabulary"]:
        """How many bytes of text each token stands for; 0 for the end of a document."""


class Tokenizer(schema.Variant):
    """How text becomes tokens; `vocabulary_size` is known before any text is seen."""

    vocabulary_size: int

    def build(self, folder: Path, documents: Callable[[], Iterator[bytes]]) -> Encoder:
        """The encoder of this config: read from `folder`, or trained on the documents and written there."""
        raise NotImplementedError


class Bytes(Tokenizer):
    """A token a byte of text; byte 0 ends a document and so may not stand in one."""

    kind: Literal["bytes"] = "bytes"
    vocabulary_size: Literal[256] = 256

    def build(self, folder: Path, documents: Callable[[], Iterator[bytes]]) -> Encoder:
        return BytesEncoder()


class BytesEncoder:
    """The encoder of `Bytes`."""

    id = "bytes"
    vocabulary_size = 256

    def encode(self, documents: Sequence[bytes]) -> Integer[np.ndarray, "tokens"]:
        joined = b"".join(itertools.chain.from_iterable((document, b"\0") for document in documents))
        tokens = np.frombuffer(joined, np.uint8)
        if len(joined) - np.count_nonzero(tokens) != len(documents):
            index = next(i for i, document in enumerate(documents) if b"\0" in document)
            raise errors.DataError(
                f"a document holds byte 0 at offset {documents[index].index(0)} (it begins {documents[index][:40]!r}); "
                "the byte tokenizer keeps byte 0 for the end of a document: remove it there, or leave that file out"
            )
        return tokens

    def decode(self, tokens: Integer[np.ndarray, "tokens"]) -> bytes:
        return np.asarray(tokens).astype(np.uint8).tobytes().replace(b"\0", b"")

    def token_bytes(self) -> Int32[np.ndarray, "vocabulary"]:
        return np.minimum(np.arange(256, dtype=np.int32), 1)


class Bpe(Tokenizer):
    """Byte-level byte-pair encoding trained on the training split, split into words as GPT-2 does it.

    256 tokens are the bytes, the last one ends a document, the others are merges.
    """

    kind: Literal["bpe"] = "bpe"
    vocabulary_size: int = pydantic.Field(ge=258)

    def build(self, folder: Path, documents: Callable[[], Iterator[bytes]]) -> Encoder:
        file = folder / "tokenizer.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".draft")
            self._train(documents()).save(str(draft))
            draft.rename(file)
        return BpeEncoder(file.read_text("utf-8"))

    def _train(self, documents: Iterator[bytes]) -> Any:
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocabulary_size - 1,
            min_frequency=2,
            initial_alphabet=sorted(_byte_of_character()),
            show_progress=False,
        )
        model.train_from_iterator((_text(document) for document in documents), trainer)
        reached = model.get_vocab_size() + 1
        if reached != self.vocabulary_size:
            raise errors.DataError(
                f"vocabulary_size = {self.vocabulary_size:,} but the training split supports {reached:,} tokens of "
                f"byte-pair encoding; set vocabulary_size to {reached:,} or less, or give more text"
            )
        return model


class BpeEncoder:
    """The encoder of `Bpe`, from the JSON text of a trained Hugging Face tokenizer."""

    def __init__(self, trained: str) -> None:
        import tokenizers

        self._model = tokenizers.Tokenizer.from_str(trained)
        pieces = self._model.get_vocab()
        self.vocabulary_size = len(pieces) + 1
        byte_of = _byte_of_character()
        self._texts = [b""] * self.vocabulary_size
        for piece, token in pieces.items():
            self._texts[token] = bytes(byte_of[character] for character in piece)
        self.id = f"bpe-{self.vocabulary_size}-{schema.digest([text.hex() for text in self._texts])[:12]}"

    def encode(self, documents: Sequence[bytes]) -> Integer[np.ndarray, "tokens"]:
        end = [self.vocabulary_size - 1]
        encodings = self._model.encode_batch_fast([_text(document) for document in documents], add_special_tokens=False)
        ids = itertools.chain.from_iterable(itertools.chain(encoding.ids, end) for encoding in encodings)
        return np.fromiter(ids, np.uint32)

    def decode(self, tokens: Integer[np.ndarray, "tokens"]) -> bytes:
        return b"".join(self._texts[token] for token in np.asarray(tokens).tolist())

    def token_bytes(self) -> Int32[np.ndarray, "vocabulary"]:
        return np.array([len(text) for text in self._texts], np.int32)


def _text(document: bytes) -> str:
    try:
        return document.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.DataError(
            f"a document is not UTF-8 at byte {error.start} (it begins {document[:40]!r}); byte-pair encoding reads "
            "text: convert the file, leave it out, or use the byte tokenizer"
        ) from error


def _byte_of_character() -> dict[str, int]:
    """The 256 characters by which byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
