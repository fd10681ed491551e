"""What a batch means, what is minimised and what is measured: one module for each kind of `scaling.config.tasks`."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Options(NamedTuple):
    """What a task is given beside the model and the batch.

    `z_loss` is the run's, a traced number. `loss_chunk` gives, for so many tokens in a forward pass, of how many the
    logits may exist at once; None for all of them.
    """

    z_loss: Any
    loss_chunk: Callable[[int], int | None]
