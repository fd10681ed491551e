"""Weights & Biases: a run of ours is one of theirs under the same id, a sweep is a group, the result the summary."""

import netrc
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import config

SERVER = "https://api.wandb.ai"
IMPORT_SECONDS = 120.0


def build(settings: config.Wandb) -> "WandbRecorder":
    """What follows one run at a time. Imports nothing of theirs yet."""
    return WandbRecorder(settings)


class WandbRecorder:
    """Their files go to WANDB_DIR, or else beside the run's in the store. A key is taken from the environment only."""

    def __init__(self, settings: config.Wandb):
        self.settings = settings
        self._run: Any = None

    def start(self, run_id: str, name: str, group: str, settings: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            mode=self.settings.mode,
            project=self.settings.project,
            entity=self.settings.entity,
            id=run_id,
            name=name,
            group=group,
            config=dict(settings),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            resume="allow" if self.settings.mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
            reinit="create_new",  # members of a pack are followed at once
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            values = {f"{row['kind']}/{name}": value for name, value in row.items() if name not in ("kind", "step")}
            self._run.log({"step": row["step"], **values})

    def finish(self, row: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(row))
        self._run.finish(exit_code=0 if row["status"] in ("finished", "diverged") else 1)


def examine(settings: config.Wandb, environment: Mapping[str, str], home: Path) -> str:
    """Whether wandb can be imported, and has a key where it sends; no key is shown. Raises ValueError where not."""
    version = _imported()
    if settings.mode == "offline":
        return f"wandb {version}, offline: it needs no key"
    host = urllib.parse.urlsplit(environment.get("WANDB_BASE_URL", SERVER)).netloc
    place, problem = _key(host, environment, home)
    if not place:
        raise ValueError(
            f"wandb {version}, online: no key for {host}{problem}; set WANDB_API_KEY in the workers' environment, or "
            "`wandb login` where their home is this one"
        )
    return f"wandb {version}, online: a key for {host} is in {place}"


def _imported() -> str:
    """The version of wandb, asked in a process of its own. Raises ValueError with the error of importing it."""
    program = "import wandb; print(wandb.__version__)"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        problem = f"no answer within {IMPORT_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        problem = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
    else:
        return asked.stdout.strip()
    raise ValueError(f"wandb cannot be imported: {problem}; pip install --upgrade wandb")


def _key(host: str, environment: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Where a key for a host is, or why there is none. Its content is not looked at."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environment.get(name, "").strip():
            return name, ""
    named = environment.get("NETRC")
    places = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        return "", " (neither WANDB_API_KEY nor a netrc file)"
    try:
        entry = netrc.netrc(str(file)).authenticators(host)
    except netrc.NetrcParseError as error:  # whose message may hold what it could not read: a key
        return "", f" ({file} cannot be read, line {error.lineno})"
    except OSError as error:
        return "", f" ({file} cannot be read: {error.strerror})"
    return (str(file), "") if entry and entry[2] else ("", f" (no entry for it in {file})")
