"""Workers on TPU slices, one slice a worker. Writes what starts them, as files, and starts nothing: a person does.

On GKE that is a JobSet a slice (`gke`), on Cloud TPU VMs a script (`vm`). Either starts
workers again where the infrastructure fails, and leaves them ended where they end with 0 (nothing left to claim) or 2
(refused). docs/first-tpu-pod-sweep.md goes from an empty project to a finished sweep.
"""

import re
import shlex
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import pydantic

from scaling import devices
from scaling.launch import launcher
from scaling.launch.launchers.tpu import gke, slices, vm

BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^\x00-\x1f\x7f]*)?")
KUBERNETES = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
SYSTEMS = {"gke": ("image", "queue", "namespace"), "vm": ("project", "zone", "runtime")}  # settings of one alone
MOST_WORKERS = 1000

Label = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]  # a name of Kubernetes
Word = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,252}$")]  # a name of Google Cloud


class Tpu(launcher.Launcher):
    """Slices of one `accelerator` (Cloud TPU's name, as v5litepod-16), each with a worker; 1 where nobody says more.

    `spot` slices are cheap and are taken away at any time, which costs a sweep at most what it trained since its last
    checkpoint. `service_account` may write to the store: one of Kubernetes on GKE, an address of Google Cloud on VMs.
    `secret` holds what the sweep's trackers need, as the key of Weights & Biases online: a secret of Kubernetes with
    the key WANDB_API_KEY, or one of Secret Manager. `text` is a folder of a bucket that workers find as the folder
    "text" where they run: a source of files "text/…" reads it. Files go to `out`, in a folder of the sweep's name.

    On GKE: `image`, the container (see Dockerfile); `queue`, a LocalQueue of Kueue; `namespace`. On VMs: `project`,
    `zone`, and `runtime`, the software version, where it is not the generation's usual one.
    """

    manual: ClassVar[bool] = True

    kind: str = "tpu"
    system: Literal["gke", "vm"]
    accelerator: str
    spot: bool = True
    service_account: Word | None = None
    secret: Word | None = None
    text: Annotated[str, pydantic.Field(pattern=f"^{BUCKET.pattern}$")] | None = None
    out: Path = Path("launch")
    image: Annotated[str, pydantic.Field(pattern=r"^[^\s\x00-\x1f\x7f]+$")] | None = None
    queue: Label | None = None
    namespace: Label = "default"
    project: Word | None = None
    zone: Word | None = None
    runtime: Word | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        slices.find(self.accelerator)
        for system, names in SYSTEMS.items():
            given = [name for name in names if name in self.model_fields_set]
            if given and system != self.system:
                raise ValueError(f"{', '.join(given)} is of system {system} and system is {self.system}; leave it out")
        needed = {"gke": ("image",), "vm": ("project", "zone")}[self.system]
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(
                f"system {self.system} needs {' and '.join(lacking)}; say --cluster {lacking[0]}=… as well (and see "
                "docs/first-tpu-pod-sweep.md)"
            )
        for name in ("service_account", "secret"):
            value = getattr(self, name)
            if self.system == "gke" and value is not None and not KUBERNETES.fullmatch(value):
                raise ValueError(
                    f"{name} {value!r} is no name of Kubernetes (lower-case letters, digits, '-' and '.'); on GKE give "
                    "the name of the Kubernetes object, not that of Google Cloud"
                )
        return self

    @property
    def slice(self) -> slices.TpuSlice:
        """What a worker trains on."""
        return slices.find(self.accelerator)

    def device(self, job: launcher.Job) -> tuple[str, float | None]:
        """See `launcher.Launcher`. Raises ValueError where the slices cannot train this job, before it is planned."""
        self.check(job)
        name = self.slice.generation.device
        return name, devices.memory_bytes(name)

    def check(self, job: launcher.Job) -> None:
        """Raises ValueError for a store that slices do not see, a mesh that they have not, or secrets that lack."""
        if not BUCKET.fullmatch(job.store_path):
            raise ValueError(
                f"the store {job.store_path} is no bucket, and no machine of a TPU slice sees a folder of this one; "
                "give --store gs://BUCKET/FOLDER"
            )
        slices.check_mesh(self.slice, job.mesh)
        if job.secrets and self.secret is None:
            raise ValueError(
                f"the sweep's trackers need {' and '.join(job.secrets)}, which is never written to a file; store it as "
                "a secret and say --cluster secret=NAME, or set wandb's mode to offline"
            )
        if self.system == "vm" and len(job.secrets) > 1:
            raise ValueError(
                f"the sweep's trackers need {' and '.join(job.secrets)}, and a secret of Secret Manager holds one "
                "value; leave a tracker out"
            )
        if (job.workers or 1) > MOST_WORKERS:
            raise ValueError(f"{job.workers} workers are more slices than can be named; ask for {MOST_WORKERS} or less")

    def describe(self, job: launcher.Job) -> str:
        """The files that `start` would write, one after the other, each after a line with its name."""
        if not job.runs:
            return "nothing: every run has a result"
        return "\n".join(f"# ==> {self.folder(job) / name}\n{text}" for name, text in self.files(job).items())

    def start(self, job: launcher.Job) -> None:
        """Write the files and print the commands that start, watch and end the workers."""
        folder = self.folder(job)
        for name, text in self.files(job).items():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(text, "utf-8")
        status = shlex.join(["scaling", "status", job.sweep_name, "--store", job.store_path, "--follow"])
        if self.system == "gke":
            manifest = shlex.quote(str(folder / "jobset.yaml"))
            print(f"start the workers:            kubectl apply -f {manifest}")
            print(f"watch them:                   {status}")
            print(f"end them, or start them again: kubectl delete -f {manifest}")
        else:
            print(f"start the workers:  bash {shlex.quote(str(folder / 'run.sh'))}")
            print(f"watch them:         {status}")
            print("end them:           Ctrl-C, once; the slices are deleted when it returns")

    def folder(self, job: launcher.Job) -> Path:
        """Where the files of a sweep go."""
        return self.out / job.sweep_name

    def files(self, job: launcher.Job) -> dict[str, str]:
        """The files of a job by name. Raises ValueError as `check` does."""
        self.check(job)
        return gke.files(self, job) if self.system == "gke" else vm.files(self, job)
