"""TPU slices of Cloud TPU VMs: a script that asks for them, trains on them, asks again where they are taken away.

Two scripts are rendered: run.sh, which a person runs on a machine that stays on, and worker.sh, which it copies to
every host. Each is a head of settings, made here, and a body that is the same for all sweeps (vm_run.sh, vm_worker.sh).
"""

import importlib.resources
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.launch import launcher
from scaling.launch.launchers.tpu import slices

if TYPE_CHECKING:
    from scaling.launch.launchers.tpu import Tpu

CHECKOUT = Path(__file__).parents[4]
CODE = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scaling", "analysis", "experiments", "configs")
CONFIG = "sweep"  # the folder of the sweep's Python file and of what it imports from beside it


def files(settings: "Tpu", job: launcher.Job) -> dict[str, str]:
    """The two scripts, and the sweep's Python file with what it imports. Raises ValueError outside a checkout."""
    if lacking := [name for name in CODE if not (CHECKOUT / name).exists()]:
        raise ValueError(
            f"{CHECKOUT} lacks {lacking[0]}, and system vm copies the code of a checkout to the slices; run from one"
        )
    texts = {"run.sh": _run(settings, job), "worker.sh": _worker(settings, job)}
    return texts | {f"{CONFIG}/{path}": text for path, text in job.sources().items()}


def _run(settings: "Tpu", job: launcher.Job) -> str:
    generation = settings.slice.generation
    create = [
        f"--accelerator-type={settings.accelerator}",
        f"--runtime-version={settings.runtime or generation.runtime}",
    ]
    if settings.spot:
        create.append("--spot")
    if settings.service_account is not None:
        create.append(f"--service-account={settings.service_account}")
    sent = ["worker.sh", "code.tgz", *([] if job.config_path is None else [CONFIG])]
    head: dict[str, str | int | list[str]] = {
        "project": str(settings.project),
        "zone": str(settings.zone),
        "name": slices.base_name(job),
        "slices": slices.workers(job),
        "create": create,
        "checkout": str(CHECKOUT),
        "code": list(CODE),
        "sent": sent,
        "resumed": [str(code) for code in slices.RESUMED],
        "refused": launcher.REFUSED,
        "restarts": launcher.RESTARTS,
    }
    return _script("vm_run.sh", head, {})


def _worker(settings: "Tpu", job: launcher.Job) -> str:
    head: dict[str, str | int | list[str]] = {
        "command": job.worker_command("venv/bin/python", CONFIG),
        "fetch": [] if settings.text is None else slices.fetch_command(settings.text, "venv/bin/python"),
        "secret": str(settings.secret) if job.secrets else "",
        "secret_variable": "".join(job.secrets),
        "project": str(settings.project),
    }
    return _script("vm_worker.sh", head, slices.environment(job))


def _script(body: str, head: dict[str, str | int | list[str]], exports: dict[str, str]) -> str:
    """A script of settings and a body. Every value is quoted, so that none of it is read as a command."""
    lines = ["#!/usr/bin/env bash", "# Written by `scaling sweep --launcher tpu`; change the sweep, not this file."]
    for name, value in head.items():
        text = f"({shlex.join(value)})" if isinstance(value, list) else shlex.quote(str(value))
        lines.append(f"{name}={text}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    return "\n".join(lines) + "\n\n" + (importlib.resources.files(__package__) / body).read_text("utf-8")
