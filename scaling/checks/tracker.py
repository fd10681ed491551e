"""Checks of the tracker: whether wandb can be imported, and has a key where it sends. No key is ever shown."""

import netrc
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from scaling.checks import finding

Mode = Literal["disabled", "offline", "online"]  # as `config.Tracking.wandb`

SERVER = "https://api.wandb.ai"
IMPORT_SECONDS = 120.0


def tracker(mode: Mode, environment: Mapping[str, str], home: Path) -> list[finding.Finding]:
    """What the tracker needs for `mode`; nothing where it is disabled."""
    check = "tracker"
    if mode == "disabled":
        return [finding.ok(check, "disabled: metrics are in the store alone")]
    version, error = imported()
    if error:
        return [finding.wrong(check, f"wandb cannot be imported: {error}", "pip install --upgrade wandb")]
    if mode == "offline":
        return [finding.ok(check, f"wandb {version}, offline: it needs no key")]
    server = environment.get("WANDB_BASE_URL", SERVER)
    host = urllib.parse.urlsplit(server).netloc
    place, problem = key(host, environment, home)
    if place:
        return [finding.ok(check, f"wandb {version}, online: a key for {host} is in {place}")]
    remedy = "set WANDB_API_KEY in the workers' environment, or `wandb login` where their home is this one"
    return [finding.wrong(check, f"wandb {version}, online: no key for {host}{problem}", remedy)]


def imported() -> tuple[str, str]:
    """The version of wandb, or the error that importing it ends with."""
    program = "import wandb; print(wandb.__version__)"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {IMPORT_SECONDS:.0f} s"
    if asked.returncode:
        return "", (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    return asked.stdout.strip(), ""


def key(host: str, environment: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Where a key for a host is, or why there is none. Its content is not looked at."""
    if environment.get("WANDB_API_KEY", "").strip():
        return "WANDB_API_KEY", ""
    if environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "WANDB_IDENTITY_TOKEN_FILE", ""
    named = environment.get("NETRC")
    places = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        return "", " (neither WANDB_API_KEY nor a netrc file)"
    try:
        found = netrc.netrc(str(file)).authenticators(host)
    except netrc.NetrcParseError as error:  # whose message may hold what it could not read: a key
        return "", f" ({file} cannot be read, line {error.lineno})"
    except OSError as error:
        return "", f" ({file} cannot be read: {error.strerror})"
    return (str(file), "") if found and found[2] else ("", f" (no entry for it in {file})")
