"""Training examples by index: windows of a stream of tokens, or rows of arrays. No JAX here.

Examples lie in a ring of `length` places, `stride` from one to the next; a batch is read at some places, by the host
or, where the arrays are kept on the device, by the compiled step.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, Integer

Batch = dict[str, np.ndarray]


class Array(NamedTuple):
    """The name, shape and type of an array."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Layout(NamedTuple):
    """What a program must know of its examples: the arrays of one of them, and those that are kept on the device.

    `window` is how many tokens are read from each place of a ring of tokens; 0 where a place is a row.
    """

    example: tuple[Array, ...]
    resident: tuple[Array, ...] = ()
    window: int = 0


class Examples(Protocol):
    """Windows or rows."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """What is kept on the device, if it has room."""
        ...

    @property
    def length(self) -> int:
        """Places in the ring."""
        ...

    @property
    def stride(self) -> int:
        """Places from one example to the next."""
        ...

    @property
    def count(self) -> int:
        """Examples in an epoch."""
        ...

    def layout(self, resident: bool) -> Layout:
        """What a program must know, with the arrays on the device or without."""
        ...

    def read(self, places: Int64[np.ndarray, "examples"]) -> Batch:
        """The examples at some places."""
        ...

    def shortage(self, batch_size: int) -> str:
        """How many examples there are, fewer than a batch, and what to do about it."""
        ...


def _arrays(arrays: Mapping[str, np.ndarray], skip: int = 0) -> tuple[Array, ...]:
    return tuple(Array(name, array.shape[skip:], array.dtype.name) for name, array in sorted(arrays.items()))


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of `context` + 1 tokens of a ring, whose targets do not overlap."""

    tokens: Integer[np.ndarray, "tokens"]
    context: int

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return {"tokens": np.asarray(self.tokens)}

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def stride(self) -> int:
        return self.context

    @property
    def count(self) -> int:
        return self.length // self.context if self.length > self.context else 0

    def layout(self, resident: bool) -> Layout:
        return text_layout(self.context, (self.length, self.tokens.dtype.name) if resident else None)

    @functools.cached_property
    def _windows(self) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(np.asarray(self.tokens), self.context + 1)

    def read(self, places: Int64[np.ndarray, "examples"]) -> Batch:
        across = places >= len(self._windows)
        if not across.any():
            return {"tokens": self._windows[places].astype(np.int32)}
        read = np.empty((len(places), self.context + 1), np.int32)
        read[~across] = self._windows[places[~across]]
        ring = (places[across, None] + np.arange(self.context + 1)) % self.length
        read[across] = np.asarray(self.tokens)[ring]
        return {"tokens": read}

    def shortage(self, batch_size: int) -> str:
        return (
            f"{self.length:,} tokens hold {self.count:,} windows of context {self.context}, fewer than a "
            f"batch of {batch_size}; use more tokens, a smaller batch or a shorter context"
        )


def text_layout(context: int, resident: tuple[int, str] | None = None) -> Layout:
    """The layout of windows of `context` + 1 tokens; `resident` is the number and type of those on the device."""
    example = (Array("tokens", (context + 1,), "int32"),)
    if resident is None:
        return Layout(example)
    count, dtype = resident
    return Layout(example, (Array("tokens", (count,), dtype),), context + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Arrays that lead with the axis of examples."""

    arrays: Mapping[str, np.ndarray]

    @property
    def length(self) -> int:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of examples are to be of one length and are {lengths or 'none'}")
        return next(iter(lengths.values()))

    @property
    def stride(self) -> int:
        return 1

    @property
    def count(self) -> int:
        return self.length

    def layout(self, resident: bool) -> Layout:
        return Layout(_arrays(self.arrays, 1), _arrays(self.arrays) if resident else ())

    def read(self, places: Int64[np.ndarray, "examples"]) -> Batch:
        return {name: array[places] for name, array in self.arrays.items()}

    def shortage(self, batch_size: int) -> str:
        return f"there are {self.count:,} training examples, fewer than a batch of {batch_size}; use a smaller batch"
