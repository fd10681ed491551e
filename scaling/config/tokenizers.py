"""How documents become tokens.

How a kind encodes is in `scaling.data.tokenizers`; a tokenizer of one's own defines `build` itself.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pydantic

from scaling import registry, schema

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int32, Integer


class Encoder(Protocol):
    """A tokenizer ready to use. One token that stands for no text ends each document."""

    id: str
    vocabulary_size: int

    def encode(self, documents: Sequence[bytes]) -> "Integer[np.ndarray, 'tokens']":
        """The tokens of the documents one after another, each document followed by the end-of-document token."""

    def decode(self, tokens: "Integer[np.ndarray, 'tokens']") -> bytes:
        """The text of the tokens; ends of documents leave nothing in it."""

    def token_bytes(self) -> "Int32[np.ndarray, 'vocabulary']":
        """How many bytes of text each token stands for; 0 for the end of a document."""


class Tokenizer(schema.Variant):
    """How text becomes tokens; `vocabulary_size` is known before any text is seen."""

    vocabulary_size: int

    def build(self, folder: Path, documents: Callable[[], Iterator[bytes]]) -> Encoder:
        """The encoder of this config: read from `folder`, or trained on the documents and written there."""
        return registry.required(self, "build")(self, folder, documents)


class Bytes(Tokenizer):
    """A token a byte of text; byte 0 ends a document and so may not stand in one."""

    kind: Literal["bytes"] = "bytes"
    vocabulary_size: Literal[256] = 256


class Bpe(Tokenizer):
    """Byte-level byte-pair encoding trained on the training split, split into words as GPT-2 does it.

    256 tokens are the bytes, the last one ends a document, the others are merges.
    """

    kind: Literal["bpe"] = "bpe"
    vocabulary_size: int = pydantic.Field(ge=258)
