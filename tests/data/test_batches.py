"""Batches: every window of an epoch once before any twice, and the same from any process, step and row."""

import hashlib
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.data import batches, examples, text
from scaling.storage import errors


def numbered(tokens: int) -> np.ndarray:
    """Tokens that are their own places, so that a window says where it was read."""
    return np.arange(tokens, dtype=np.uint32)


@st.composite
def shapes(draw):
    """(tokens, context, batch_size) that hold at least one batch an epoch."""
    context = draw(st.integers(1, 12))
    windows = draw(st.integers(1, 50))
    batch_size = draw(st.integers(1, windows))
    return windows * context + draw(st.integers(1 if windows == 1 else 0, context)), context, batch_size


@given(shapes(), st.integers(0, 2**40))
def test_every_window_once_an_epoch(shape, seed):
    tokens, context, batch_size = shape
    made = batches.Batches(examples.Windows(numbered(tokens), context), batch_size, seed)
    epochs = 3
    steps = -(-epochs * made.examples.count // batch_size)
    windows = made.chunk(0, steps)["tokens"].reshape(-1, context + 1)
    for epoch in range(epochs):
        read = windows[epoch * made.examples.count : (epoch + 1) * made.examples.count]
        np.testing.assert_array_equal(np.diff(read, axis=1) % tokens, 1)
        targets = read[:, 1:].ravel()
        assert len(np.unique(targets)) == len(targets) == tokens // context * context


@given(shapes(), st.integers(0, 1000), st.integers(0, 20), st.integers(1, 4), st.data())
def test_rows_and_chunks_are_parts_of_the_whole(shape, seed, start, steps, data):
    tokens, context, batch_size = shape
    made = batches.Batches(examples.Windows(numbered(tokens), context), batch_size, seed)
    chunk = made.chunk(start, steps)["tokens"]
    assert chunk.shape == (steps, batch_size, context + 1)
    assert chunk.dtype == np.int32
    again = batches.Batches(examples.Windows(numbered(tokens), context), batch_size, seed)
    np.testing.assert_array_equal(
        chunk, [again.at(step)["tokens"] for step in reversed(range(start, start + steps))][::-1]
    )
    cut = data.draw(st.integers(0, batch_size))
    hosts = [made.chunk(start, steps, rows)["tokens"] for rows in (slice(0, cut), slice(cut, None))]
    np.testing.assert_array_equal(chunk, np.concatenate(hosts, axis=1))


@pytest.mark.parametrize("windows", [batches.DRAWN_EXAMPLES, batches.DRAWN_EXAMPLES + 4000], ids=["drawn", "cipher"])
def test_orders_are_shuffled_and_differ_by_epoch_and_seed(windows):
    made = batches.Batches(examples.Windows(numbered(2 * windows + 1), 2), windows, seed=0)
    assert made.examples.count == windows
    other = batches.Batches(examples.Windows(numbered(2 * windows + 1), 2), windows, seed=1)
    orders = [each.at(step)["tokens"][:, 0] for each, step in ((made, 0), (made, 1), (other, 0))]
    for order in orders:
        assert len(np.unique(order)) == windows
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
        assert abs(np.corrcoef(order, np.arange(windows))[0, 1]) < 0.02
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(orders[first], orders[second])[0, 1]) < 0.02


@pytest.mark.parametrize("tokens", [10_000, 300_000], ids=["drawn", "cipher"])
def test_another_process_makes_the_same_batch(tokens):
    code = (
        "import hashlib, numpy as np; from scaling.data import batches, examples; "
        f"made = batches.Batches(examples.Windows(np.arange({tokens}, dtype=np.uint32), 4), 16, 7); "
        "print(hashlib.sha256(made.chunk(1234, 3)['tokens'].tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = batches.Batches(examples.Windows(numbered(tokens), 4), 16, 7).chunk(1234, 3)["tokens"]
    assert hashlib.sha256(here.tobytes()).hexdigest() == other


def test_an_epoch_shorter_than_a_batch_is_refused():
    with pytest.raises(errors.DataError, match=r"64 tokens hold 8 windows of context 8, fewer than a batch of 9"):
        batches.Batches(examples.Windows(numbered(64), 8), 9, 0)
    with pytest.raises(errors.DataError, match="0 windows"):
        batches.Batches(examples.Windows(numbered(7), 8), 1, 0)


def read(targets: int, context: int) -> np.ndarray:
    corpus: Any = types.SimpleNamespace(validation=np.arange(targets + 1, dtype=np.uint16))
    return text.TextCorpus.validation_examples(corpus, context)["tokens"]


@given(st.integers(1, 30), st.integers(1, 30))
def test_validation_windows_predict_every_token_once(context, windows):
    found = read(context * windows, context)
    assert found.shape == (windows, context + 1)
    np.testing.assert_array_equal(found[:, 1:].ravel(), np.arange(1, context * windows + 1))
    np.testing.assert_array_equal(found[1:, 0], found[:-1, -1])


@pytest.mark.parametrize(("targets", "context", "nearest"), [(100, 32, 96), (120, 32, 128), (10, 32, 32)])
def test_validation_that_does_not_divide_names_the_nearest_that_does(targets, context, nearest):
    with pytest.raises(errors.DataError, match=f"the nearest is {nearest}$"):
        read(targets, context)
