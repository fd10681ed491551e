"""A worker of several processes: process 0 claims runs and broadcasts each pack; the others train it with process 0.

Only process 0, the leader, holds leases and trackers and writes results. The followers train the same runs from the
same checkpoints, which all of them save, and store nothing else. Packs, and the end with its exit code, are broadcast
by the leader, one after another, so that all processes run the same computations in the same order.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scaling import config, store
from scaling.store import record
from scaling.training import processes
from scaling.worker import context, faults, protocol

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import loop

Before = Callable[["Pack", "corpora.Corpus"], object]


@dataclasses.dataclass(frozen=True)
class Pack:
    """Runs to be trained together, with their ids, and the corpora that they were planned on."""

    run_ids: Sequence[str]
    members: "Sequence[loop.TrainingRun]"
    stored: Sequence[record.Stored]
    execution: config.Execution

    def train(self, trainer: context.Trainer, log: Callable[[str], None], before: Before) -> "list[loop.Outcome]":
        """Prepare the corpus, call `before` with it, and train.

        Raises ValueError where the data has changed since the plan.
        """
        corpus = trainer.prepare(self.members[0].run.data, log)
        for run_id, stored in zip(self.run_ids, self.stored, strict=True):
            for name, planned in dataclasses.asdict(stored).items():
                if getattr(corpus, name) != planned:
                    raise ValueError(
                        f"the corpus of run {run_id} has {name} {getattr(corpus, name)} and was planned with "
                        f"{planned}; restore the data, or start the sweep again to plan runs on the new data"
                    )
        processes.gather(None)  # a barrier: other hosts may still prepare their corpus
        before(self, corpus)
        return trainer.train(self.members, self.execution, corpus)


def broadcast(pack: Pack) -> None:
    """Send a pack to the followers, which train it too. Checkpoint directories are sent by name: stores differ."""
    if not processes.several():
        return

    def names(folders: Sequence[object]) -> list[str]:
        return [str(folder).rpartition("/")[2] for folder in folders]

    def encoded(run_id: str, member: "loop.TrainingRun", stored: record.Stored) -> dict[str, Any]:
        trunk = member.trunk
        return {
            "run_id": run_id,
            "run": member.run.model_dump(mode="json"),
            "attempts": names(member.checkpoints),
            "trunk": trunk and [trunk.run_id, names(trunk.checkpoints), trunk.step],
            "branches": list(member.branches),
            "stored": dataclasses.asdict(stored),
        }

    members = [encoded(*each) for each in zip(pack.run_ids, pack.members, pack.stored, strict=True)]
    processes.broadcast({"members": members, "execution": pack.execution.model_dump(mode="json")})


def leader(work: Callable[[], int]) -> int:
    """The exit code of `work`, which is broadcast as the end; where `work` raises, followers end with its code too."""
    try:
        code = work()
    except BaseException as error:
        processes.broadcast({"end": protocol.REFUSED if isinstance(error, ValueError | OSError) else protocol.CRASHED})
        raise
    processes.broadcast({"end": code})
    return code


def follower(
    results: store.Store, trainer: context.Trainer, stop: Callable[[], int | None], log: Callable[[str], None]
) -> int:
    """Train the packs that the leader broadcasts until it broadcasts the end; returns that exit code.

    `stop` gives the signal by which this process was asked to stop, or None: it is sent to the leader once, and the
    leader stops all processes at the same step.
    """
    sent: list[int] = []

    def asked() -> bool:
        number = stop()
        if number is not None and not sent:
            processes.announce(number)
            sent.append(number)
        return bool(sent)

    while True:
        message = processes.broadcast(meanwhile=asked)
        if "end" in message:
            return int(message["end"])

        def train(message: dict[str, Any] = message) -> "list[loop.Outcome]":
            return _decoded(message, results, asked).train(trainer, log, lambda pack, corpus: None)

        try:
            processes.together(train, faults.kind)
        except processes.PartedError as error:
            log(str(error))
            return protocol.AGAIN
        except Exception as error:  # raised by all processes; the leader stores it, and all go on to the next pack
            log(f"failed, as all processes did: {processes.describe(error)}")


def _decoded(message: dict[str, Any], results: store.Store, asked: Callable[[], bool]) -> Pack:
    """The pack of a message, with checkpoint directories in this process' own store."""
    from scaling.training import loop

    def folders(run_id: str, names: list[str]) -> list[Any]:
        return [results.run(run_id).sub(f"checkpoints/{name}").place() for name in names]

    def member(one: dict[str, Any]) -> loop.TrainingRun:
        trunk = None
        if one["trunk"]:
            trunk_id, names, step = one["trunk"]
            trunk = loop.Trunk(folders(trunk_id, names), trunk_id, step)
        run = config.Run.model_validate(one["run"])
        keep_nothing = lambda rows: None  # noqa: E731
        checkpoints = folders(one["run_id"], one["attempts"])
        return loop.TrainingRun(run, checkpoints, keep_nothing, asked, trunk, one["branches"])

    return Pack(
        [one["run_id"] for one in message["members"]],
        [member(one) for one in message["members"]],
        [record.Stored(**one["stored"]) for one in message["members"]],
        config.Execution.model_validate(message["execution"]),
    )
