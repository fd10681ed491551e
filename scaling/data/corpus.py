"""What a run reads, ready to be read: examples by index for training and validation, and what identifies them."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from scaling.config import data as datas
from scaling.config import sources
from scaling.data import examples
from scaling.storage import errors


class Corpus(abc.ABC):
    """Examples and their identity. `ArrayCorpus` serves arrays; `scaling.data.text.TextCorpus` tokens.

    `data_sha256` is over the content of both splits, `validation_id` over what is validated on. `unique_tokens` are the
    positions of all training examples. `token_bytes` are the bytes that each token stands for, where there are tokens.
    """

    data_sha256: str
    validation_id: str
    unique_tokens: int
    tokenizer_id: str | None
    token_bytes: np.ndarray | None

    @abc.abstractmethod
    def train_examples(self, context: int) -> examples.Examples:
        """The training examples of `context` positions each."""

    @abc.abstractmethod
    def validation_examples(self, context: int) -> examples.Batch:
        """All validation examples as one batch, the same for every run."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayCorpus(Corpus):
    """Arrays by name that lead with the axis of examples; `context` positions has each in the model."""

    train: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    validation: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    context: int = 1
    tokenizer_id = None
    token_bytes = None

    def __post_init__(self) -> None:
        for name, array in {**self.validation, **self.train}.items():
            if array.dtype.itemsize > 4:
                raise errors.DataError(
                    f"the array {name!r} is of {array.dtype.name}, and devices compute in 32 bits here; "
                    f"cast it to {array.dtype.kind}4"
                )

    @functools.cached_property
    def data_sha256(self) -> str:  # type: ignore[override]
        return _digest(self.train, self.validation)

    @functools.cached_property
    def validation_id(self) -> str:  # type: ignore[override]
        return _digest(self.validation)[:16]

    @property
    def unique_tokens(self) -> int:  # type: ignore[override]
        return examples.Rows(self.train).length * self.context

    def train_examples(self, context: int) -> examples.Rows:
        self._check(context)
        return examples.Rows(self.train)

    def validation_examples(self, context: int) -> examples.Batch:
        self._check(context)
        return dict(self.validation)

    def _check(self, context: int) -> None:
        if context != self.context:
            raise errors.DataError(
                f"the run has context {context}, and an example of these data {self.context} positions; "
                f"set context to {self.context}"
            )


def _digest(*splits: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names, types, shapes and values of arrays."""
    content = hashlib.sha256()
    for arrays in splits:
        for name, array in sorted(arrays.items()):
            content.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def find(data: datas.Data) -> Corpus | None:
    """The corpus if it can be read at once; None where `prepare` has work to do."""
    return data.find()


def prepare(data: datas.Data, log: sources.Log = print) -> Corpus:
    """The corpus, cached first if need be."""
    return data.prepare(log)
