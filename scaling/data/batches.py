"""Batches of windows of tokens, each a pure function of (seed, step)."""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32, Int64, Integer

from scaling.data import corpus as corpora
from scaling.storage import errors

DRAWN_WINDOWS = 2**16
"""Up to so many windows an order is drawn whole; Grain's cipher, which needs no table, is slow below its 16 bits."""

Rows = slice | Integer[np.ndarray, "rows"]

CIPHER_ROUNDS = 8
"""Grain's own shuffle takes 4, whose neighbours in the order are correlated (0.04 at 131,072 windows); 8 show none."""


class Batches:
    """Windows of `context` + 1 tokens in shuffled epochs, by random access.

    Epoch e lays the tokens in a ring, cuts it at a place drawn from (seed, e) into ⌊tokens / context⌋ windows whose
    targets do not overlap, and reads them in an order drawn from (seed, e): each once before any twice. The fewer than
    `context` tokens left over are others in every epoch. Raises DataError where an epoch is shorter than a batch.
    """

    def __init__(self, tokens: Integer[np.ndarray, "tokens"], context: int, batch_size: int, seed: int) -> None:
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.windows_per_epoch = len(tokens) // context
        if self.windows_per_epoch < batch_size or len(tokens) <= context:
            raise errors.DataError(
                f"{len(tokens):,} tokens hold {self.windows_per_epoch:,} windows of context {context}, fewer than a "
                f"batch of {batch_size}; use more tokens, a smaller batch or a shorter context"
            )
        self._tokens = np.asarray(tokens)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._tokens, context + 1)
        self._epoch = functools.lru_cache(maxsize=4)(self._draw_epoch)

    def at(self, step: int, rows: Rows = slice(None)) -> Int32[np.ndarray, "rows context+1"]:
        """Rows of the batch of a step; tokens of other rows are not touched."""
        return self.chunk(step, 1, rows)[0]

    def chunk(self, start_step: int, steps: int, rows: Rows = slice(None)) -> Int32[np.ndarray, "steps rows context+1"]:
        """The same rows of each of `steps` batches from `start_step` on."""
        starts = self.starts(start_step, steps, rows)
        return self._read(starts.ravel()).reshape(*starts.shape, self.context + 1)

    def starts(self, start_step: int, steps: int, rows: Rows = slice(None)) -> Int64[np.ndarray, "steps rows"]:
        """Where in the ring of tokens each window of these batches begins."""
        chosen = np.arange(self.batch_size, dtype=np.int64)[rows]
        places = np.arange(start_step, start_step + steps, dtype=np.int64)[:, None] * self.batch_size + chosen
        return self._starts(places.ravel()).reshape(places.shape)

    def _starts(self, places: Int64[np.ndarray, "windows"]) -> Int64[np.ndarray, "windows"]:
        """Where in the tokens the windows at these places of the endless sequence of epochs begin."""
        epochs, indices = np.divmod(places, self.windows_per_epoch)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            cut, order = self._epoch(epoch)
            starts[here] = (cut + order(indices[here]) * self.context) % len(self._tokens)
        return starts

    def _read(self, starts: Int64[np.ndarray, "windows"]) -> Int32[np.ndarray, "windows context+1"]:
        across = starts >= len(self._windows)
        if not across.any():
            return self._windows[starts].astype(np.int32)
        read = np.empty((len(starts), self.context + 1), np.int32)
        read[~across] = self._windows[starts[~across]]
        ring = (starts[across, None] + np.arange(self.context + 1)) % len(self._tokens)
        read[across] = self._tokens[ring]
        return read

    def _draw_epoch(self, epoch: int) -> tuple[int, Callable[[Int64[np.ndarray, "n"]], Int64[np.ndarray, "n"]]]:
        """The cut and the order (index → window) of an epoch."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        cut = int(random.integers(len(self._tokens)))
        windows = self.windows_per_epoch
        if windows <= DRAWN_WINDOWS:
            return cut, random.permutation(windows).__getitem__

        from grain import experimental

        key = int(random.integers(2**32))
        return cut, lambda indices: np.array(
            [experimental.index_shuffle(index, windows - 1, key, CIPHER_ROUNDS) for index in indices.tolist()], np.int64
        )


def validation_windows(corpus: corpora.Corpus, context: int) -> Int32[np.ndarray, "windows context+1"]:
    """The validation tokens as windows side by side: each of them but the first is a target exactly once.

    Raises DataError unless the number of targets is a multiple of the context, so that none is dropped unsaid.
    """
    targets = len(corpus.validation) - 1
    if targets % context:
        below = targets // context * context
        nearest = below + context if below == 0 or targets - below > context / 2 else below
        raise errors.DataError(
            f"validation_tokens = {targets:,} is no multiple of context = {context}; the nearest is {nearest:,}"
        )
    return np.lib.stride_tricks.sliding_window_view(corpus.validation, context + 1)[::context].astype(np.int32)
