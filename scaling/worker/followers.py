"""What process 0 of a group tells the others of the runs that it claimed, and how they train them with it.

Process 0 alone has the leases, the trackers and what is stored. The others train the same members from the same
checkpoints, which all of them save, and keep nothing else. They learn of each pack, and of the end, from process 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scaling import config, store
from scaling.store import record
from scaling.training import processes
from scaling.worker import faults, protocol

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import loop


@dataclasses.dataclass(frozen=True)
class Pack:
    """Runs to be trained together, with their ids, and the corpora that they were planned on."""

    run_ids: Sequence[str]
    members: "Sequence[loop.TrainingRun]"
    stored: Sequence[record.Stored]
    execution: config.Execution

    def train(
        self, log: Callable[[str], None], begin: "Callable[[Pack, corpora.Corpus], object]"
    ) -> "list[loop.Outcome]":
        """Train on the corpus that the records name, when `begin` has been called with it.

        Raises ValueError where the data has changed since the plan.
        """
        from scaling.data import corpus as corpora
        from scaling.training import loop

        corpus = corpora.prepare(self.members[0].run.data, log)
        for run_id, stored in zip(self.run_ids, self.stored, strict=True):
            for name, planned in dataclasses.asdict(stored).items():
                if getattr(corpus, name) != planned:
                    raise ValueError(
                        f"the corpus of run {run_id} has {name} {getattr(corpus, name)} and was planned with "
                        f"{planned}; restore the data, or start the sweep again to plan runs on the new data"
                    )
        processes.gather(None)  # another host may have made its corpus meanwhile
        begin(self, corpus)
        return loop.train(self.members, self.execution, corpus)


def tell(pack: Pack) -> None:
    """Let the other processes train a pack too."""

    def names(folders: Sequence[object]) -> list[str]:
        return [str(folder).rpartition("/")[2] for folder in folders]

    def told(run_id: str, member: "loop.TrainingRun", stored: record.Stored) -> dict[str, Any]:
        trunk = member.trunk
        return {
            "run_id": run_id,
            "run": member.run.model_dump(mode="json"),
            "attempts": names(member.checkpoints),
            "trunk": trunk and [trunk.run_id, names(trunk.checkpoints), trunk.step],
            "branches": list(member.branches),
            "stored": dataclasses.asdict(stored),
        }

    if processes.several():
        members = [told(*each) for each in zip(pack.run_ids, pack.members, pack.stored, strict=True)]
        processes.share({"members": members, "execution": pack.execution.model_dump(mode="json")})


def lead(work: Callable[[], int]) -> int:
    """The exit code of `work`, which the other processes end with too; where it raises they end as this one does."""
    try:
        code = work()
    except BaseException as error:
        processes.share({"end": protocol.REFUSED if isinstance(error, ValueError | OSError) else protocol.CRASHED})
        raise
    processes.share({"end": code})
    return code


def follow(results: store.Store, stop: Callable[[], int | None], log: Callable[[str], None]) -> int:
    """Train what process 0 claims until it says that it is over; returns its exit code.

    `stop` gives the signal by which this process was asked to stop, or None: process 0 is told, and all stop.
    """
    said: list[int] = []

    def asked() -> bool:
        number = stop()
        if number is not None and not said:
            processes.say(number)
            said.append(number)
        return bool(said)

    while True:
        told = processes.share(meanwhile=asked)
        if "end" in told:
            return int(told["end"])
        try:
            processes.together(functools.partial(_train, told, results, asked, log), faults.kind)
        except processes.PartedError as error:
            log(str(error))
            return protocol.AGAIN
        except Exception as error:  # all failed; process 0 stores why, and the others go on with it
            log(f"failed, as all processes did: {processes.describe(error)}")


def _train(
    told: dict[str, Any], results: store.Store, asked: Callable[[], bool], log: Callable[[str], None]
) -> "list[loop.Outcome]":
    return _pack(told, results, asked).train(log, lambda pack, corpus: None)


def _pack(told: dict[str, Any], results: store.Store, asked: Callable[[], bool]) -> Pack:
    """What was told, with checkpoints in this process' own store."""
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
        [one["run_id"] for one in told["members"]],
        [member(one) for one in told["members"]],
        [record.Stored(**one["stored"]) for one in told["members"]],
        config.Execution.model_validate(told["execution"]),
    )
