"""Draws `sources.Synthetic`, and says what is known of it exactly."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from scaling.config import sources


def listing(source: sources.Synthetic) -> str:
    return "1"


def documents(source: sources.Synthetic, split: sources.Split) -> Iterator[bytes]:
    yield _chain(source, *((source.train_symbols, 1) if split == "train" else (source.validation_symbols, 2)))


def text_bytes(source: sources.Synthetic) -> int:
    return source.train_symbols + source.validation_symbols


def transition_matrix(source: sources.Synthetic) -> Float[np.ndarray, "alphabet alphabet"]:
    """P[i, j], the probability that symbol j (byte j + 1) follows symbol i (byte i + 1)."""
    matrix = np.empty((source.alphabet, source.alphabet))
    np.put_along_axis(matrix, _orders(source), _zipf(source)[None, :], axis=1)
    return matrix


def stationary(source: sources.Synthetic) -> Float[np.ndarray, "alphabet"]:
    """The distribution μ = μP that the chain keeps, and starts from."""
    system = np.vstack([transition_matrix(source).T - np.eye(source.alphabet), np.ones(source.alphabet)])
    return np.linalg.lstsq(system, np.append(np.zeros(source.alphabet), 1.0), rcond=None)[0]


def entropy_rate(source: sources.Synthetic) -> float:
    """Nats per symbol: H = −Σᵢ μᵢ Σⱼ Pᵢⱼ log Pᵢⱼ, the lowest loss any model of this source can reach."""
    matrix = transition_matrix(source)
    return float(-(stationary(source)[:, None] * matrix * np.log(matrix)).sum())


def _zipf(source: sources.Synthetic) -> Float[np.ndarray, "alphabet"]:
    weights = np.arange(1, source.alphabet + 1) ** -float(source.exponent)
    return weights / weights.sum()


def _orders(source: sources.Synthetic) -> Int[np.ndarray, "alphabet alphabet"]:
    """orders[i, r], the symbol of rank r after symbol i."""
    symbols = np.tile(np.arange(source.alphabet), (source.alphabet, 1))
    return np.random.Generator(np.random.PCG64([source.seed, 0])).permuted(symbols, axis=1)


def _chain(source: sources.Synthetic, length: int, stream: int) -> bytes:
    """A walk of `length` symbols: independent Zipf ranks, each looked up in the order of the symbol before it."""
    random = np.random.Generator(np.random.PCG64([source.seed, stream]))
    after = [row.tobytes() for row in _orders(source).astype(np.uint8)]
    symbol = int(random.choice(source.alphabet, p=stationary(source).clip(0)))
    bounds = np.cumsum(_zipf(source))
    walk = bytearray([symbol])
    while len(walk) < length:
        uniform = random.random(min(1_000_000, length - len(walk)))
        for rank in np.searchsorted(bounds[:-1], uniform, side="right").tolist():
            symbol = after[symbol][rank]
            walk.append(symbol)
    return (np.frombuffer(walk, np.uint8) + np.uint8(1)).tobytes()
