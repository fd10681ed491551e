"""Batches of examples, each a pure function of (seed, step)."""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, Integer

from scaling.data import examples as data
from scaling.storage import errors

DRAWN_EXAMPLES = 2**16
"""Up to so many examples an order is drawn whole; Grain's cipher, which needs no table, is slow below its 16 bits."""

Rows = slice | Integer[np.ndarray, "rows"]

CIPHER_ROUNDS = 8
"""Grain's own shuffle takes 4, whose neighbours in the order are correlated (0.04 at 131,072 examples); 8 show none."""


class Batches:
    """Examples in shuffled epochs, by random access.

    Epoch e cuts the ring of examples at a place drawn from (seed, e) into ⌊length / stride⌋ examples, and reads them in
    an order drawn from (seed, e): each once before any twice. Of a stream of tokens the fewer than a window that are
    left over are others in every epoch. Raises DataError where an epoch is shorter than a batch.
    """

    def __init__(self, examples: data.Examples, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        if examples.count < batch_size:
            raise errors.DataError(examples.shortage(batch_size))
        self._epoch = functools.lru_cache(maxsize=4)(self._draw_epoch)

    def at(self, step: int, rows: Rows = slice(None)) -> data.Batch:
        """Rows of the batch of a step; other rows are not read."""
        return {name: array[0] for name, array in self.chunk(step, 1, rows).items()}

    def chunk(self, start_step: int, steps: int, rows: Rows = slice(None)) -> data.Batch:
        """The same rows of each of `steps` batches from `start_step` on: (steps, rows, …)."""
        places = self.places(start_step, steps, rows)
        read = self.examples.read(places.ravel())
        return {name: array.reshape(*places.shape, *array.shape[1:]) for name, array in read.items()}

    def places(self, start_step: int, steps: int, rows: Rows = slice(None)) -> Int64[np.ndarray, "steps rows"]:
        """Where in the ring each example of these batches is."""
        chosen = np.arange(self.batch_size, dtype=np.int64)[rows]
        turns = np.arange(start_step, start_step + steps, dtype=np.int64)[:, None] * self.batch_size + chosen
        return self._places(turns.ravel()).reshape(turns.shape)

    def _places(self, turns: Int64[np.ndarray, "examples"]) -> Int64[np.ndarray, "examples"]:
        """Where in the ring the examples at these turns of the endless sequence of epochs are."""
        epochs, indices = np.divmod(turns, self.examples.count)
        places = np.empty_like(turns)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            cut, order = self._epoch(epoch)
            places[here] = (cut + order(indices[here]) * self.examples.stride) % self.examples.length
        return places

    def _draw_epoch(self, epoch: int) -> tuple[int, Callable[[Int64[np.ndarray, "n"]], Int64[np.ndarray, "n"]]]:
        """The cut and the order (index → example) of an epoch."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        cut = int(random.integers(self.examples.length))
        count = self.examples.count
        if count <= DRAWN_EXAMPLES:
            return cut, random.permutation(count).__getitem__

        from grain import experimental

        key = int(random.integers(2**32))
        return cut, lambda indices: np.array(
            [experimental.index_shuffle(index, count - 1, key, CIPHER_ROUNDS) for index in indices.tolist()], np.int64
        )
