"""The actors of a Ray cluster in which workers run, and the launcher's side that follows them.

An actor holds the resources of one process of a worker, which is its child. Ray ends the child with the actor, also
when the launcher has died; where Ray cannot, the child finds its parent gone, saves its run and ends.
Importing this imports Ray.
"""

import dataclasses
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import ray
import ray.exceptions
import ray.util
import ray.util.scheduling_strategies as strategies

from scaling import store
from scaling.launch import environments, launcher, slots
from scaling.launch.launchers import ray as asked
from scaling.worker import protocol

POLL_SECONDS = 1.0
WAIT_SECONDS = 10.0  # for resources, before a message says that workers wait
LEFT_SECONDS = 90.0  # for the other processes of a worker to end by themselves when one has failed
CALLS = 8  # at once: one waits for the child's end, more where connections broke, and one sends it a signal


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """What is started in each actor: a command whose Python is that of its node, and where and with what.

    `sources` is the text of the sweep's Python file, the last word of the command, and of what it imports.
    """

    command: tuple[str, ...]
    sources: Mapping[str, str]
    environment: Mapping[str, str]
    cpu_devices: int
    folder: str  # where the sweep was started: relative paths of its config are meant from there
    logs: str | None  # None: in a folder of the node, for a store that is no folder


@dataclasses.dataclass(frozen=True)
class ActorPlace:
    """Where an actor is: its node, by Ray's id, and its host; a port that nobody uses there now, and its log."""

    node: str
    host: str
    address: str
    port: int
    log: str


class ActorProcess:
    """One process of a worker, and the resources that it was given; lives on a node of the cluster."""

    def __init__(self, spec: ProcessSpec, number: int) -> None:
        self.spec = spec
        self.child: Popen[bytes] | None = None
        self.stopped: int | None = None  # by which signal, which may come before there is a child
        self.lock = threading.Lock()
        logs = Path(spec.logs or tempfile.mkdtemp(prefix="scaling-"))
        self.log = logs / f"{socket.gethostname()}-{os.getpid()}-{number}.log"

    def place(self) -> ActorPlace:
        """Where this is."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()
        return ActorPlace(node, host, ray.util.get_node_ip_address(), port, f"{host}:{self.log}")

    def run(self, environment: Mapping[str, str]) -> slots.End:
        """Start the process with this beside the spec's environment, unless asked to stop, and wait for its end."""
        os.environ |= {**self.spec.environment, **environment}  # this process serves nothing else
        os.environ |= {**environments.worker(), **environments.host_devices(self.spec.cpu_devices)}
        command, folder = asked.on_node(self.spec.command, self.spec.sources), Path(self.spec.folder)
        with self.lock:
            if self.stopped is not None:
                return slots.End(128 + self.stopped, "was stopped before it began", str(self.log), "")
            self.child = slots.spawn(command, os.environ, self.log, folder if folder.is_dir() else None)
        return self.wait()

    def wait(self) -> slots.End:
        """Wait until the process has ended. Raises ValueError where none was started."""
        if self.child is None:
            raise ValueError("no process was started in this actor")
        code = self.child.wait()
        return slots.End(code, slots.in_words(code), f"{socket.gethostname()}:{self.log}", slots.tail(self.log))

    def signal(self, number: int) -> None:
        """Send the process a signal that asks it to stop."""
        with self.lock:
            self.stopped = number
            if self.child is not None:
                self.child.send_signal(number)


@dataclasses.dataclass(kw_only=True)
class RaySlot(slots.Slot):
    """A place for one worker: the actors of its processes while there are some, and the last call to each."""

    actors: list[Any] = dataclasses.field(default_factory=list)
    group: Any = None  # the placement group of several actors
    asked: list[Any] = dataclasses.field(default_factory=list)
    places: list[ActorPlace] = dataclasses.field(default_factory=list)  # none as long as one waits for resources
    filled: float = 0.0
    reported: bool = False  # whether a message said that it waits
    failed: float | None = None  # when the first of its processes did, while others go on

    @property
    def waits(self) -> bool:
        """Whether its actors have no places yet."""
        return bool(self.actors) and not self.places


class RayWorkers(slots.SlotWorkers[RaySlot]):
    """Actors of a cluster, started again where they crash, or elsewhere where their node is lost."""

    def __init__(self, results: store.Store, sweep_name: str, shape: asked.WorkerShape, count: int, spec: ProcessSpec):
        super().__init__(results, sweep_name, [RaySlot(number) for number in range(count)])
        self.shape = shape
        self.spec = spec
        self._next_poll = 0.0
        self._going = True
        for slot in self.slots:
            self.start(slot)

    def poll(self) -> bool:
        """See `slots.SlotWorkers`; asks the cluster no oftener than once in `POLL_SECONDS`."""
        if time.monotonic() >= self._next_poll:
            self._going = super().poll()
            busy = [slot for slot in self.slots if slot.actors]
            if busy and all(slot.waits for slot in busy) and not self.open_runs():  # nothing is left to wait for
                self._give_back(busy)
                self._going = False
            self._report_waiting()
            self._next_poll = time.monotonic() + POLL_SECONDS
        return self._going

    def start(self, slot: RaySlot) -> None:
        """See `slots.SlotWorkers`. The actors wait where the cluster has no room for them."""
        resources = self.shape.resources
        options = {
            "num_cpus": resources["CPU"],
            "num_gpus": resources.get("GPU", 0.0),
            "resources": {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")},
            "max_concurrency": CALLS,
        }
        places: list[Any] = ["DEFAULT"]
        if self.shape.hosts > 1:
            slot.group = ray.util.placement_group([resources] * self.shape.hosts, strategy="STRICT_SPREAD")
            places = [
                strategies.PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=index)
                for index in range(self.shape.hosts)
            ]
        process = ray.remote(ActorProcess)
        slot.actors = [
            process.options(scheduling_strategy=place, **options).remote(self.spec, slot.number) for place in places
        ]
        slot.asked = [actor.place.remote() for actor in slot.actors]
        slot.places, slot.failed = [], None
        slot.filled, slot.reported = time.monotonic(), False

    def busy(self, slot: RaySlot) -> bool:
        """See `slots.SlotWorkers`."""
        return bool(slot.actors)

    def look(self, slot: RaySlot) -> slots.End | None:
        """See `slots.SlotWorkers`. A worker of several processes ends with the last, or some time after one failed."""
        answers = [self._answer(slot, index) for index in range(len(slot.actors))]
        ends = [answer for answer in answers if isinstance(answer, slots.End)]
        if slot.waits:
            places = [answer for answer in answers if isinstance(answer, ActorPlace)]
            if len(places) == len(answers):
                self._run(slot, places)
            if not ends:
                return None
        elif len(ends) < len(answers):
            if all(end.code == 0 for end in ends):
                return None
            slot.failed = slot.failed or time.monotonic()
            if time.monotonic() - slot.failed < LEFT_SECONDS:
                return None
        self._give_back([slot])
        end = max(ends, key=_weight)
        # A node that is taken away stops its worker first: another goes on. Only Ctrl-C here ends the sweep.
        return dataclasses.replace(end, code=None) if end.code in launcher.STOPPED else end

    def stop(self) -> None:
        """Ask every worker to save its run and end; those that wait for places are not started."""
        self.stopping = True
        self._next_poll = 0.0
        self._give_back([slot for slot in self.slots if slot.waits])
        for slot in self.slots:
            for actor in slot.actors:
                actor.signal.remote(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once; their runs go on from their last checkpoints."""
        self.stopping = True
        self._next_poll = 0.0
        self._give_back(self.slots)

    def _run(self, slot: RaySlot, places: list[ActorPlace]) -> None:
        slot.places = places
        coordinator = f"{places[0].address}:{places[0].port}"
        for index, actor in enumerate(slot.actors):
            own = environments.group(coordinator, len(places), index) if len(places) > 1 else {}
            slot.asked[index] = actor.run.remote(own)

    def _answer(self, slot: RaySlot, index: int) -> ActorPlace | slots.End | None:
        """What an actor has answered, or how it was lost; None as long as it has not."""
        reference = slot.asked[index]
        if not ray.wait([reference], timeout=0)[0]:
            return None
        try:
            return ray.get(reference)
        except ray.exceptions.ActorUnavailableError:  # the connection broke; whether the actor lives is to be seen
            actor = slot.actors[index]
            slot.asked[index] = actor.place.remote() if slot.waits else actor.wait.remote()
            return None
        except ray.exceptions.RayError as error:
            place = None if slot.waits else slot.places[index]
            if place is not None and place.node not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
                return slots.End(None, f"was lost with its node {place.host} ({place.address})", place.log, str(error))
            log = "none, for it never ran," if place is None else place.log
            return slots.End(-signal.SIGKILL, "ended with its actor", log, str(error))

    def _give_back(self, these: Sequence[RaySlot]) -> None:
        """Give what slots have of the cluster back to it; Ray ends what still runs there."""
        for slot in these:
            for actor in slot.actors:
                ray.kill(actor)
            if slot.group is not None:
                ray.util.remove_placement_group(slot.group)
            slot.actors, slot.asked, slot.places, slot.group = [], [], [], None

    def _report_waiting(self) -> None:
        now = time.monotonic()
        waiting = [slot for slot in self.slots if slot.waits and not slot.reported and now - slot.filled > WAIT_SECONDS]
        if waiting:
            free = ray.available_resources()
            have = asked.in_words({name: free.get(name, 0.0) for name in self.shape.resources})
            numbers = ", ".join(str(slot.number) for slot in waiting)
            where = f" on each of {self.shape.hosts} nodes" if self.shape.hosts > 1 else ""
            self.messages.append(
                f"waiting for room on the cluster: worker{'s' * (len(waiting) > 1)} {numbers} (each takes "
                f"{asked.in_words(self.shape.resources)}{where}; free is {have} in all)"
            )
            for slot in waiting:
                slot.reported = True


def _weight(end: slots.End) -> int:
    """Of several processes that ended together, whose end says most about why."""
    if end.code in launcher.STOPPED:
        return 2
    return {launcher.REFUSED: 5, None: 4, protocol.AGAIN: 1, 0: 0}.get(end.code, 3)
