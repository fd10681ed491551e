"""What `--launcher tpu` renders for one sweep, recorded: read a difference before you record it again.

`GOLDEN=write pytest tests/launch` records.
"""

import os
from pathlib import Path

from scaling import config
from scaling.launch import launcher
from scaling.launch.launchers import tpu
from scaling.launch.launchers.tpu import vm

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "sweep.py"
JOB = launcher.Job(
    store_path="gs://my-bucket/scaling",
    sweep_name="isoflop.v2",
    mesh=config.Mesh(fsdp=4),
    runs=12,
    workers=2,
    config_path=CONFIG,
    secrets=("WANDB_API_KEY",),
)
GKE = tpu.Tpu(
    system="gke",
    accelerator="v5litepod-16",
    service_account="scaling",
    secret="wandb",
    text="gs://my-bucket/text",
    image="europe-docker.pkg.dev/my-project/scaling/scaling:tpu",
    queue="tpu-queue",
    namespace="research",
)
VM = tpu.Tpu(
    system="vm",
    accelerator="v5litepod-16",
    service_account="scaling@my-project.iam.gserviceaccount.com",
    secret="wandb",
    text="gs://my-bucket/text",
    project="my-project",
    zone="us-west4-a",
)


def compare(name: str, text: str) -> None:
    """Fail where a text is not the recorded one, wherever this checkout is."""
    text = text.replace(str(vm.CHECKOUT), "/checkout")
    if os.environ.get("GOLDEN") == "write":
        (FOLDER / name).write_text(text, "utf-8")
    assert text == (FOLDER / name).read_text("utf-8")
