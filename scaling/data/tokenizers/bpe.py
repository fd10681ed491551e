"""Trains and encodes `tokenizers.Bpe`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from scaling import schema
from scaling.config import tokenizers
from scaling.storage import atomic, errors


def build(tokenizer: tokenizers.Bpe, folder: Path, documents: Callable[[], Iterator[bytes]]) -> tokenizers.Encoder:
    file = folder / "tokenizer.json"
    if not file.exists():
        with atomic.writing(file) as draft:
            _train(tokenizer, documents()).save(str(draft))
    return BpeEncoder(file.read_text("utf-8"))


def _train(tokenizer: tokenizers.Bpe, documents: Iterator[bytes]) -> Any:
    import tokenizers as library

    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=tokenizer.vocabulary_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(_byte_of_character()),
        show_progress=False,
    )
    model.train_from_iterator((_text(document) for document in documents), trainer)
    reached = model.get_vocab_size() + 1
    if reached != tokenizer.vocabulary_size:
        raise errors.DataError(
            f"vocabulary_size = {tokenizer.vocabulary_size:,} but the training split supports {reached:,} tokens of "
            f"byte-pair encoding; set vocabulary_size to {reached:,} or less, or give more text"
        )
    return model


class BpeEncoder:
    """The encoder of `Bpe`, from the JSON text of a trained Hugging Face tokenizer."""

    def __init__(self, trained: str) -> None:
        import tokenizers as library

        self._model = library.Tokenizer.from_str(trained)
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
