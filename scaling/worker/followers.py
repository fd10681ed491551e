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
from scaling.worker import context, faults, pack, protocol

if TYPE_CHECKING:
    from scaling.training import loop


def broadcast(sent: pack.Pack) -> None:
    """Send a pack to the followers, which train it too. Checkpoint directories are sent by name: stores differ."""
    if not processes.several():
        return

    def names(folders: Sequence[object]) -> list[str]:
        return [str(folder).rpartition("/")[2] for folder in folders]

    def encoded(packed: pack.PackedRun) -> dict[str, Any]:
        training, trunk = packed.training, packed.training.trunk
        return {
            "run_id": packed.run_id,
            "run": training.run.model_dump(mode="json"),
            "attempts": names(training.checkpoints),
            "trunk": trunk and [trunk.run_id, names(trunk.checkpoints), trunk.step],
            "branches": list(training.branches),
            "stored": dataclasses.asdict(packed.stored),
        }

    members = [encoded(packed) for packed in sent.runs]
    processes.broadcast({"members": members, "execution": sent.execution.model_dump(mode="json")})


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
            return _decoded(message, results, asked).train(trainer, log, lambda *given: None)

        try:
            processes.together(train, faults.kind)
        except processes.PartedError as error:
            log(str(error))
            return protocol.AGAIN
        except Exception as error:  # raised by all processes; the leader stores it, and all go on to the next pack
            log(f"failed, as all processes did: {processes.describe(error)}")


def _decoded(message: dict[str, Any], results: store.Store, asked: Callable[[], bool]) -> pack.Pack:
    """The pack of a message, with checkpoint directories in this process' own store."""
    from scaling.training import loop

    def folders(run_id: str, names: list[str]) -> list[Any]:
        return [results.run(run_id).sub(f"checkpoints/{name}").place() for name in names]

    def decoded(one: dict[str, Any]) -> pack.PackedRun:
        trunk = None
        if one["trunk"]:
            trunk_id, names, step = one["trunk"]
            trunk = loop.Trunk(folders(trunk_id, names), trunk_id, step)
        run = config.Run.model_validate(one["run"])
        keep_nothing = lambda rows: None  # noqa: E731
        checkpoints = folders(one["run_id"], one["attempts"])
        training = loop.TrainingRun(run, checkpoints, keep_nothing, asked, trunk, one["branches"])
        return pack.PackedRun(one["run_id"], training, record.Stored(**one["stored"]))

    return pack.Pack(
        [decoded(one) for one in message["members"]], config.Execution.model_validate(message["execution"])
    )
