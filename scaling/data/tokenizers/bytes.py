"""Encodes `tokenizers.Bytes`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Integer

from scaling.config import tokenizers
from scaling.storage import errors


def build(tokenizer: tokenizers.Bytes, folder: Path, documents: Callable[[], Iterator[bytes]]) -> tokenizers.Encoder:
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
