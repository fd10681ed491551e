"""The LSTM language model as a table of weights."""

from typing import Literal, Self

from scaling import tables
from scaling.tables import Weight


class Lstm(tables.Family):
    """An LSTM language model (Hochreiter and Schmidhuber 1997), Kaplan's comparison (2001.08361, section 3.2.1).

    Every layer has a state of `width`: gates = x·input + h·recurrent + bias.
    """

    kind: Literal["lstm"] = "lstm"

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        width = self.width
        gates = ("embed", "gates")
        return (
            Weight("embedding", "embedding", (vocabulary_size, width), ("vocabulary", "embed")),
            Weight("layers.input", "hidden", (width, 4 * width), gates, fan_in=width, stack=self.depth),
            Weight("layers.recurrent", "hidden", (width, 4 * width), gates, fan_in=width, stack=self.depth),
            Weight("layers.bias", "vector", (4 * width,), ("gates",), stack=self.depth),
            *self.head(vocabulary_size),
        )

    def mixing_flops(self, context: int) -> float:
        """None: a recurrent layer multiplies by weights only."""
        return 0.0

    def mixing_flops_square(self, context: int) -> float:
        return 0.0

    def activation_floats(self, context: int, scores: bool = True) -> int:
        """Gates before and after their nonlinearities, cell, its tanh, state and input: found in XLA's buffers."""
        return 13 * self.width

    def working_floats(self, context: int, scores: bool = True) -> int:
        """Gradients of gates, cell and state of the whole sequence."""
        return 10 * self.width

    def resize(self, width: int, depth: int, heads: int | None) -> Self:
        return self.edit({"width": width, "depth": depth})
