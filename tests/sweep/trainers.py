"""Trainers for tests of workers: they call a function where others train, on the identity of a corpus."""

import dataclasses
import types
from collections.abc import Callable, Sequence
from typing import Any

from scaling import config
from scaling.training import loop
from scaling.worker import context

MICROBATCH = 2  # of every pretended program


@dataclasses.dataclass(frozen=True)
class Identity:
    """A corpus as far as a record needs it."""

    data_sha256: str = "a" * 64
    unique_tokens: int = 10_000
    validation_id: str = "b" * 16
    tokenizer_id: str = "bytes"


class Fake(context.Trainer):
    """Trains packs by a function of members, execution and corpus."""

    def __init__(self, train: Callable[..., list[loop.Outcome]], corpus: Any = Identity()):  # frozen
        self.function = train
        self.corpus = corpus

    def prepare(self, data: config.Data, log: Callable[[str], None]) -> Any:
        return self.corpus

    def program_of(self, run: config.Run, execution: config.Execution, members: int, corpus: Any) -> Any:
        return types.SimpleNamespace(microbatch=MICROBATCH)

    def train(self, members: Sequence[Any], execution: config.Execution, corpus: Any) -> list[loop.Outcome]:
        return self.function(members, execution, corpus)


def alone(train: Callable[..., loop.Outcome], corpus: Any = Identity()) -> Fake:  # frozen
    """Trains runs, each in a pack of its own, by a function of the run, execution, corpus, and what goes with it."""

    def pack(members: Any, execution: config.Execution, corpus: Any) -> list[loop.Outcome]:
        (m,) = members
        return [train(m.run, execution, corpus, checkpoints=m.checkpoints, record=m.record, stop=m.stop)]

    return Fake(pack, corpus)


def outcome(status: Any, step: int = 20, reason: str = "", loss: float | None = None) -> loop.Outcome:
    """How a run ended after 1.5 s, with a loss where one is given."""
    return loop.Outcome(status, reason, step, 1.5, loss, 0.01 if loss else None, loss)
