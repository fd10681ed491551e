"""Workers as the tasks of a Slurm job array, which submitit submits: one a worker, or one a group of processes.

A group trains each run together, over the GPUs or nodes that the launcher's settings give it. What a job does when its
time is up or it is to make room is in `task`, how the launcher follows it in `queue`.
"""

import dataclasses
import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Self

import pydantic

from scaling import config, devices, memory
from scaling.launch import environments, launcher
from scaling.launch.launchers.slurm import queue, task
from scaling.storage import cache
from scaling.worker import protocol

WORKERS = 32  # at most so many, where nobody says how many
TIMEOUTS = 100  # requeues of one job because its time was up


class Slurm(launcher.Launcher):
    """Workers on a Slurm cluster: an array of jobs, each of `nodes` × `tasks_per_node` processes with `gpus_per_node`.

    One process is a worker; several train each run together. Lines of `setup` run before them, in the job's shell.
    A job is warned `save_seconds` before its `minutes` are up: then its run is saved, and it is requeued.
    `memory_gb` is for each node, `gpu` the kind of GPU ("H100"): with it, runs that do not fit are refused before they
    are queued, and times predicted. `folder` holds submitit's own files, which nodes read and execute, and the logs: a
    folder that all nodes see and only its owner may write, by default in the cache; never in the store.
    """

    kind: str = "slurm"
    minutes: pydantic.PositiveInt
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: pydantic.PositiveInt = 1
    tasks_per_node: pydantic.PositiveInt = 1
    gpus_per_node: pydantic.NonNegativeInt = 0
    cpus_per_task: pydantic.PositiveInt | None = None
    memory_gb: pydantic.PositiveFloat | None = None
    gpu: str | None = None
    save_seconds: pydantic.PositiveInt = 120
    setup: tuple[str, ...] = ()
    folder: Path | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus_per_node % self.tasks_per_node:
            raise ValueError(
                f"gpus_per_node {self.gpus_per_node} do not divide among tasks_per_node {self.tasks_per_node}; each "
                "process has as many GPUs as the next"
            )
        if self.gpu is not None and not self.gpus_per_node:
            raise ValueError(f"gpu {self.gpu!r} names a device and no job has one; set gpus_per_node")
        if self.save_seconds >= 60 * self.minutes:
            raise ValueError(
                f"save_seconds {self.save_seconds} leave nothing of {self.minutes} minutes to train in; set fewer"
            )
        return self

    @property
    def processes(self) -> int:
        """How many processes train each run together."""
        return self.nodes * self.tasks_per_node

    def device(self, job: launcher.Job) -> tuple[str, float | None]:
        """See `launcher.Launcher`. Raises ValueError where the mesh of a run is not what a job has."""
        each = self._devices(job.mesh)
        if self.gpus_per_node:
            return self.gpu or "GPU", None if self.gpu is None else devices.memory_bytes(self.gpu)
        limit = self._memory()
        return "cpu", None if limit is None else limit / each

    def describe(self, job: launcher.Job) -> str:
        """The script that submitit gives to `sbatch`, and what each process that it starts runs."""
        if not job.runs:
            return "nothing: every run has a result"
        described = self._task(job)
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in described.environment.items())
        together = f", {self.processes} of which train each run together" if self.processes > 1 else ""
        return (
            f"{self._script(job)}\n# what each process starts{together}:\n# {settings} {shlex.join(described.command)}"
        )

    def start(self, job: launcher.Job) -> queue.SlurmWorkers:
        """Submit an array of jobs. Raises ValueError where it is refused, or where this is no machine of a cluster."""
        if shutil.which("sbatch") is None:
            raise ValueError("there is no sbatch here; start the sweep on a machine from which jobs are submitted")

        def submit(count: int) -> dict[str, Path]:
            return self._submit(dataclasses.replace(job, workers=count))

        return queue.SlurmWorkers(job.results(), job.sweep_name, self._name(job), submit, self._count(job))

    def _count(self, job: launcher.Job) -> int:
        return min(job.workers or WORKERS, job.runs)

    def _name(self, job: launcher.Job) -> str:
        return f"scaling-{job.sweep_name}"

    def _devices(self, mesh: config.Mesh) -> int:
        """The devices of each process. Raises ValueError where all of a job's are not those of a run."""
        per_row = mesh.fsdp * mesh.tensor
        if self.gpus_per_node:
            have = self.nodes * self.gpus_per_node
            if have % per_row or mesh.data not in (None, have // per_row):
                data = "any" if mesh.data is None else mesh.data
                raise ValueError(
                    f"execution.mesh (data {data} × fsdp {mesh.fsdp} × tensor {mesh.tensor}) takes another number of "
                    f"devices than the {have} of a job, nodes {self.nodes} × gpus_per_node {self.gpus_per_node}; make "
                    "them equal"
                )
            return self.gpus_per_node // self.tasks_per_node
        if mesh.data is None and self.processes % per_row == 0:
            return 1
        if mesh.least % self.processes:
            raise ValueError(
                f"the {mesh.least} devices of execution.mesh do not divide among {self.processes} processes, nodes "
                f"{self.nodes} × tasks_per_node {self.tasks_per_node}; change one of them"
            )
        return mesh.least // self.processes

    def _memory(self) -> float | None:
        """Bytes for the arrays of a process on the CPU, where that is known."""
        if self.memory_gb is None:
            return None
        return max(0.0, self.memory_gb * 1e9 / self.tasks_per_node - memory.PROCESS_BYTES)

    def _task(self, job: launcher.Job) -> task.SlurmTask:
        each, limit = self._devices(job.mesh), self._memory()
        settings = {protocol.WORKERS: str(self._count(job))}
        if not self.gpus_per_node:
            settings |= environments.host_devices(each)
            settings |= {} if limit is None else {memory.LIMIT: f"{limit:.0f}"}
        return task.SlurmTask(tuple(job.worker_command()), settings, each if self.gpus_per_node else 0)

    def _parameters(self, job: launcher.Job) -> dict[str, Any]:
        """The arguments of `submitit.SlurmExecutor.update_parameters`, most of them named as options of `sbatch`."""
        memory_mb = None if self.memory_gb is None else f"{self.memory_gb * 1000:.0f}M"
        # Sites may choose otherwise: a job comes back after preemption, its first process decides when it ends, and
        # tasks get the CPUs that the job was given, which `srun` has not passed on by itself since Slurm 22.05.
        arguments = ["--kill-on-bad-exit=0", "--wait=0"]
        if self.cpus_per_task is not None:
            arguments.append(f"--cpus-per-task={self.cpus_per_task}")
        return {
            "job_name": self._name(job), "time": self.minutes, "partition": self.partition, "account": self.account,
            "qos": self.qos, "constraint": self.constraint, "nodes": self.nodes, "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None, "cpus_per_task": self.cpus_per_task, "mem": memory_mb,
            "signal_delay_s": self.save_seconds, "setup": list(self.setup) or None, "srun_args": arguments,
            "additional_parameters": {"requeue": True},
        }  # fmt: skip

    def _script(self, job: launcher.Job) -> str:
        """What `_submit` gives to `sbatch`, written by submitit's own function, which asks for no cluster here."""
        _require_submitit()
        from submitit.slurm import slurm as submitit_slurm

        folder, count = self._folder(job), self._count(job)
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        array: dict[str, Any] = {} if count == 1 else {"map_count": count}
        return submitit_slurm._make_sbatch_string(command, folder, **array, **self._parameters(job))

    def _submit(self, job: launcher.Job) -> dict[str, Path]:
        """Submit; gives the log of each job, by its id. Raises ValueError with what `sbatch` says against it."""
        _require_submitit()
        import submitit
        from submitit.core import utils as submitit_errors

        folder = self._folder(job)
        _make_private(folder)
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(**self._parameters(job))
        tasks = [self._task(job) for _ in range(self._count(job))]
        try:
            submitted: list[submitit.Job[None]] = executor.submit_array(tasks)
        except submitit_errors.FailedJobError as error:
            raise ValueError(f"the jobs were not submitted: {error}; see the settings with --dry-run") from error
        return {one.job_id: one.paths.stdout for one in submitted}

    def _folder(self, job: launcher.Job) -> Path:
        """The folder of submitit's files. Raises ValueError where it is part of the store, in which nothing is code."""
        folder = self.folder or cache.root() / "slurm" / job.sweep_name
        folder = folder.expanduser().absolute()
        if folder.resolve().is_relative_to(Path(job.store_path).resolve()):
            raise ValueError(
                f"folder {folder} lies in the store {job.store_path}, and nodes execute what lies in it; name another"
            )
        return folder


def _require_submitit() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(
            "the slurm launcher submits its jobs by submitit, which is not here: pip install 'scaling[slurm]'"
        )


def _make_private(folder: Path) -> None:
    """Make a folder for code. Raises ValueError where someone else may write to it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise ValueError(
            f"others may write to folder {folder}, and nodes execute what lies in it; chmod go-w, or name your own"
        )
