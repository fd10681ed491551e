"""The LSTM language model as a table of weights."""

from typing import ClassVar, Literal

from scaling import tables
from scaling.tables import Weight


class Lstm(tables.Family):
    """An LSTM language model (Hochreiter and Schmidhuber 1997), Kaplan's comparison (2001.08361, section 3.2.1).

    Every layer has a state of `width`: gates = x·input + h·recurrent + bias.
    """

    kind: Literal["lstm"] = "lstm"
    causal: ClassVar[bool] = True

    def weights(self, vocabulary_size: int, context: int) -> tuple[Weight, ...]:
        width, depth = self.width, self.depth
        gates = ("embed", "gates")
        return tables.in_stages(
            [self.embedding(vocabulary_size)],
            [Weight("layers.input", "hidden", (width, 4 * width), gates, fan_in=width, stack=depth)],
            [
                Weight("layers.recurrent", "hidden", (width, 4 * width), gates, fan_in=width, stack=depth),
                Weight("layers.bias", "vector", (4 * width,), ("gates",), stack=depth),
            ],
            self.head(vocabulary_size),
        )

    def activation_floats(self, context: int, scores: bool = True) -> int:
        """Gates before and after their nonlinearities, cell, its tanh, state and input: found in XLA's buffers."""
        return 13 * self.width

    def working_floats(self, context: int, scores: bool = True) -> int:
        """Gradients of gates, cell and state of the whole sequence."""
        return 10 * self.width
