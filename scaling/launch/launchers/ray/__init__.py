"""Workers on a Ray cluster: each an actor that reserves its GPUs or cores on a node, or one on each of several nodes.

This module computes the request and describes it; `actors` makes it and follows the workers. Ray is imported only when
a cluster is asked.
"""

import collections
import dataclasses
import logging
import math
import os
import shlex
import socket
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic

from scaling import config, devices, memory, store
from scaling.launch import environments, launcher
from scaling.worker import protocol

if TYPE_CHECKING:
    from scaling.launch.launchers.ray import actors

ACCELERATOR = "accelerator_type:"  # of what kind a node's GPUs are, in Ray's words: a resource of that name
ANY = 0.001  # of such a resource: enough to be placed where there is some
OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster that is started to try things out: workers keep nothing there
REACH_SECONDS = 5.0

Resources = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class WorkerShape:
    """What one worker asks for: so many hosts, on each these resources of Ray's and so many devices of JAX's."""

    hosts: int
    devices: int
    resources: dict[str, float]

    @property
    def accelerated(self) -> bool:
        """Whether the devices are GPUs."""
        return "GPU" in self.resources

    def held(self, node: Resources) -> int:
        """How many hosts of workers a node holds when it is empty."""
        return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in self.resources.items())

    def capacity(self, nodes: Sequence[Resources], most: int) -> int:
        """How many workers, up to `most`, empty nodes hold at once: the hosts of one worker are on different nodes."""
        held = [self.held(node) for node in nodes]
        return max(n for n in range(most + 1) if sum(min(here, n) for here in held) >= n * self.hosts)


def _split(value: Any) -> Any:
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


class Ray(launcher.Launcher):
    """Workers on the Ray cluster at `address`: HOST:PORT, or "auto" for the one that this machine belongs to.

    A worker has the devices of one run's mesh: GPUs where the cluster has any, on `hosts` machines, by default the
    fewest that hold it; `gpus` and `cpus` are those of each machine. `gpu` names the kind ("H100") that memory and
    times are planned for, and that workers are placed on where nodes say what they have. `env` names variables that
    workers get as they are here. The address "local" starts a cluster in this process, to try things out.
    """

    kind: str = "ray"
    address: str = "auto"
    hosts: pydantic.PositiveInt | None = None
    gpus: pydantic.NonNegativeInt | None = None
    cpus: pydantic.PositiveInt | None = None
    gpu: str | None = None
    env: Annotated[tuple[str, ...], pydantic.BeforeValidator(_split)] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpu is not None and self.gpus == 0:
            raise ValueError(f"gpu {self.gpu!r} names a device and gpus=0 asks for none; leave one of them out")
        for name in self.env:
            if name not in os.environ:
                raise ValueError(
                    f"env: {name} is not set here, so that workers cannot have it; set it, or leave it out"
                )
        return self

    def device(self, job: launcher.Job) -> tuple[str, float | None]:
        """See `launcher.Launcher`. Raises ValueError where no cluster answers, or a run's mesh is not what is asked."""
        cluster = nodes(self.address)
        shape = self._shape(job.mesh, cluster)
        if not shape.accelerated:
            limit = _memory(shape, cluster)
            return "cpu", None if limit is None else limit / shape.devices
        kinds = {self.gpu} if self.gpu else {kind for node in cluster if shape.held(node) for kind in _kinds(node)}
        if len(kinds) != 1:  # runs may meet any of them; each worker refuses what does not fit its own
            return "GPU", None
        (kind,) = kinds
        return kind, devices.memory_bytes(kind)

    def describe(self, job: launcher.Job) -> str:
        """Each worker: what it reserves, and for each of its processes the environment and the command."""
        if not job.runs:
            return "nothing: every run has a result"
        cluster = nodes(self.address)
        shape = self._shape(job.mesh, cluster)
        count = self._count(job, shape, cluster)
        common = self._environment(shape, cluster, count)
        hidden = dict.fromkeys(self.env, "(as here)")
        lines = [
            f"# Ray cluster {self.address}: {_inventory(cluster)}",
            "# every process has its node's environment, what workers on one machine have beside it, and what is shown",
        ]
        group = "" if shape.hosts == 1 else f"a placement group, STRICT_SPREAD, of {shape.hosts} bundles with "
        for number in range(count):
            lines.append(f"worker {number}: {group}an actor with {in_words(shape.resources)}")
            for index in range(shape.hosts):
                own = environments.group("<its first host>:<a free port>", shape.hosts, index) if group else {}
                settings = {**common, **hidden, **own}
                words = " ".join(f"{name}={_quote(value)}" for name, value in settings.items())
                lines.append(f"  {words} {shlex.join(job.worker_command('python'))}")
        return "\n".join(lines)

    def start(self, job: launcher.Job) -> "actors.RayWorkers":
        """Ask the cluster for places, at most one a run; workers wait as actors where it has too few for all at once.

        Raises ValueError where no cluster answers, or nothing in it holds a worker and none were asked for.
        """
        cluster = nodes(self.address)
        shape = self._shape(job.mesh, cluster)
        count = self._count(job, shape, cluster)
        connect(self.address)
        from scaling.launch.launchers.ray import actors

        spec = actors.ProcessSpec(
            command=tuple(job.worker_command()),
            sources=job.sources(),
            environment=self._environment(shape, cluster, count) | {name: os.environ[name] for name in self.env},
            cpu_devices=1 if shape.accelerated else shape.devices,
            folder=os.getcwd(),
            logs=None if "://" in job.store_path else str(store.Store(job.store_path).logs(job.sweep_name)),
        )
        return actors.RayWorkers(job.results(), job.sweep_name, shape, count, spec)

    def _shape(self, mesh: config.Mesh, cluster: Sequence[Resources]) -> WorkerShape:
        """What a worker asks for: on the fewest hosts that some nodes of the cluster hold, unless settings say.

        Raises ValueError where settings and mesh disagree.
        """
        accelerated = (
            self.gpu is not None or any(node.get("GPU") for node in cluster) if self.gpus is None else self.gpus > 0
        )
        if self.hosts is not None:
            counts = [self.hosts]
        elif self.gpus:
            counts = [math.ceil(mesh.least / self.gpus)]
        else:
            counts = [count for count in range(1, mesh.least + 1) if mesh.least % count == 0]
        shapes = [self._on(count, mesh, accelerated, cluster) for count in counts]
        return next((shape for shape in shapes if shape.capacity(cluster, 1)), shapes[0])

    def _on(self, hosts: int, mesh: config.Mesh, accelerated: bool, cluster: Sequence[Resources]) -> WorkerShape:
        each = self.gpus if accelerated and self.gpus else math.ceil(mesh.least / hosts)
        rows, per_row = divmod(hosts * each, mesh.fsdp * mesh.tensor)
        if per_row or mesh.data not in (None, rows):
            data = "any" if mesh.data is None else mesh.data
            raise ValueError(
                f"execution.mesh (data {data} × fsdp {mesh.fsdp} × tensor {mesh.tensor}) takes another number of "
                f"devices than a worker has, {hosts} × {each} on its hosts; change the mesh, or hosts and gpus"
            )
        resources = {"CPU": float(self.cpus or each)}
        if accelerated:
            resources["GPU"] = float(each)
        if self.gpu is not None and any(self.gpu in _kinds(node) for node in cluster):
            resources[ACCELERATOR + self.gpu] = ANY
        return WorkerShape(hosts, each, resources)

    def _count(self, job: launcher.Job, shape: WorkerShape, cluster: Sequence[Resources]) -> int:
        """How many workers to start: as many as were asked for, or the cluster holds, and at most one a run."""
        if job.workers is not None:
            return min(job.workers, job.runs)
        count = shape.capacity(cluster, job.runs)
        if job.runs and not count:
            where = "one node" if shape.hosts == 1 else f"each of {shape.hosts} nodes"
            raise ValueError(
                f"a worker takes {in_words(shape.resources)} on {where}, and the Ray cluster has "
                f"{_inventory(cluster)}; ask for less (--cluster hosts=, gpus=, cpus=, or a smaller execution.mesh), "
                "or say how many workers are to wait for nodes that will come (--workers)"
            )
        return count

    def _environment(self, shape: WorkerShape, cluster: Sequence[Resources], count: int) -> dict[str, str]:
        """What every worker has in its environment for being one of these."""
        settings = {protocol.WORKERS: str(count)}
        if not shape.accelerated:
            limit = _memory(shape, cluster)
            settings |= {"JAX_PLATFORMS": "cpu", devices.THREADS: f"{shape.resources['CPU']:.0f}"}
            settings |= {} if limit is None else {memory.LIMIT: f"{limit:.0f}"}
        return settings


def on_node(command: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """A worker's command for the Python of this node, which need not see the folder of the sweep's Python file.

    Where the last word, the path of that file, has not the text of `sources` here, they are written to a new folder.
    """
    words = [sys.executable, *command[1:]]
    path = Path(words[-1])
    here = {name: file.read_text("utf-8") for name in sources if (file := path.parent / name).is_file()}
    if here == sources:
        return words
    folder = Path(tempfile.mkdtemp(prefix="scaling-"))
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return [*words[:-1], str(folder / path.name)]


def nodes(address: str) -> list[Resources]:
    """What each node of a cluster has in all, in use or not. Raises ValueError where none answers."""
    if address == "local":  # as it will be when it is started
        return [_own()]
    return [node["Resources"] for node in connect(address).nodes() if node["Alive"]]


def connect(address: str) -> types.ModuleType:
    """The module `ray`, connected to a cluster. Raises ValueError where Ray is not installed, or none answers."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"the launcher ray needs Ray ({error}): pip install 'scaling[ray]'") from error
    if ray.is_initialized():
        return ray
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = _own()
        ray.init(
            "local",
            num_cpus=int(own["CPU"]),
            num_gpus=int(own.get("GPU", 0)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return ray
    try:
        _reach(os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, SystemExit) as error:  # Ray itself ends the process where an address answers and is none of Ray's
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head`, on other machines "
            "`ray start --address=HOST:PORT`, and give --cluster address=HOST:PORT; address=local tries it out here"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray would try for more than a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), REACH_SECONDS).close()


def _own() -> Resources:
    """What a cluster that is started here has."""
    gpus = [one for one in environments.find_accelerators() if one]
    return {
        "CPU": float(len(devices.cores())),
        "memory": memory.available(),
        **({"GPU": float(len(gpus))} if gpus else {}),
    }


def _memory(shape: WorkerShape, cluster: Sequence[Resources]) -> float | None:
    """Bytes for the arrays of one process on the CPU: its cores' share of the memory of a node; the least, where known.

    The same everywhere, so that all workers compute with the same microbatch.
    """
    cpus = shape.resources["CPU"]
    shares = [node["memory"] * cpus / node["CPU"] for node in cluster if shape.held(node) and "memory" in node]
    return max(0.0, min(shares) - memory.PROCESS_BYTES) if shares else None


def _kinds(node: Resources) -> list[str]:
    return [name.removeprefix(ACCELERATOR) for name in node if name.startswith(ACCELERATOR)]


def _inventory(cluster: Sequence[Resources]) -> str:
    """`3 nodes: 2 × CPU 32, GPU 8, H100; CPU 4`."""
    counted = collections.Counter(
        ", ".join([*(f"{name} {node[name]:g}" for name in ("CPU", "GPU") if node.get(name)), *_kinds(node)])
        or "nothing"
        for node in cluster
    )
    each = "; ".join(f"{count} × {words}" if count > 1 else words for words, count in counted.items())
    return f"{len(cluster)} node{'s' * (len(cluster) != 1)}: {each}"


def in_words(resources: Resources) -> str:
    """`CPU 8, GPU 8`."""
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())


def _quote(value: str) -> str:
    return value if value.startswith(("(", "<")) else shlex.quote(value)
