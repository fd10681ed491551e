"""`gcloud`, as far as run.sh uses it, in a folder: queued resources that step through their states, and hosts.

A host is a folder with a home, where `ssh` runs commands for real and `scp` copies to. On it, `python3 -m pip install`
brings a `uv` that makes a virtual environment whose Python is `worker` below. CLOUD names the folder; it holds
calls.jsonl, a line a call, and outcomes, a line a worker to come: an exit code, "preempted" or "until stopped".
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
HOSTS = 2
TO_BE_ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def record(what: str, **more: object) -> None:
    with open(CLOUD / "calls.jsonl", "a") as calls:
        calls.write(json.dumps({"what": what, **more}) + "\n")


def take(name: str) -> str | None:
    """The first line of a file, which is removed from it; None where there is none left."""
    with open(CLOUD / name, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        first, *rest = [*file.read().splitlines(), None]
        file.seek(0)
        file.truncate()
        file.write("".join(f"{line}\n" for line in rest if line is not None))
        return first


def flag(name: str, arguments: list[str]) -> str:
    return next(each.partition("=")[2] for each in arguments if each.startswith(f"--{name}="))


def state_file(name: str) -> Path:
    return CLOUD / "queued" / name


def gcloud(arguments: list[str]) -> int:
    assert {"--project=my-project", "--zone=us-west4-a", "--quiet"} <= set(arguments), arguments
    verb, *rest = arguments[3:]
    if (CLOUD / "no-login").exists():
        print("ERROR: (gcloud) You do not currently have an active account selected.", file=sys.stderr)
        return 1
    if verb == "list":
        name = flag("filter", rest).removeprefix("name ~ /").removesuffix("$")
        states = state_file(name).read_text().split() if state_file(name).exists() else []
        if len(states) > 1:
            state_file(name).write_text(" ".join(states[1:]))
        print(states[0] if states else "")
        return 0
    target = rest[0] if verb != "scp" else next(each for each in rest if ":" in each)
    record(verb if verb != "ssh" else flag("command", rest), name=target.partition(":")[0], arguments=rest)
    return {"create": create, "delete": delete, "describe": lambda *_: 0, "ssh": ssh, "scp": scp}[verb](rest)


def create(rest: list[str]) -> int:
    assert not state_file(rest[0]).exists()
    state_file(rest[0]).write_text(take("futures") or " ".join(TO_BE_ACTIVE))
    for number in range(HOSTS):
        (CLOUD / "hosts" / rest[0] / str(number)).mkdir(parents=True)
    return 0


def delete(rest: list[str]) -> int:
    assert "--force" in rest
    state_file(rest[0]).unlink()
    subprocess.run(["rm", "-r", str(CLOUD / "hosts" / rest[0])], check=True)
    return 0


def scp(rest: list[str]) -> int:
    *files, target = [each for each in rest if not each.startswith("--")]
    name, _, folder = target.partition(":")
    for number in range(HOSTS):
        subprocess.run(["cp", "-r", *files, str(CLOUD / "hosts" / name / str(number) / folder)], check=True)
    return 0


def ssh(rest: list[str]) -> int:
    """The first code that is not 0, in order of hosts, as gcloud ends (command_lib/compute/tpus/tpu_vm/ssh.py)."""
    name, command = rest[0], flag("command", rest)
    assert "--worker=all" in rest
    if not state_file(name).exists() or state_file(name).read_text() != "ACTIVE":
        print(f"ERROR: (gcloud) {name} is in an unusable state", file=sys.stderr)
        return 1
    homes = [CLOUD / "hosts" / name / str(number) for number in range(HOSTS)]
    shells = [
        subprocess.Popen(["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)}) for home in homes
    ]
    codes = [shell.wait() for shell in shells]
    if state_file(name).read_text() != "ACTIVE":
        return 255  # the connections broke
    return next((code for code in codes if code), 0)


def worker(arguments: list[str]) -> int:
    """What `venv/bin/python -m scaling.cli worker …` does on a host; host 0 says what, the others mirror it."""
    home = Path(os.environ["HOME"])
    name, number = home.parent.name, home.name
    if arguments[1] == "scaling.launch.fetch":
        record("fetch", name=name, arguments=arguments)
        return 0
    variables = {key: value for key, value in os.environ.items() if key.startswith(("JAX_", "SCALING_", "WANDB_"))}
    record("worker", name=name, host=int(number), arguments=arguments, environment=variables)
    print(f"hello from host {number}", flush=True)
    ordered = home.parent / "outcome"
    if number == "0":
        ordered.write_text(take("outcomes") or "0")
        outcome = ordered.read_text()
    else:
        while not ordered.exists() or not ordered.read_text():
            time.sleep(0.01)
        outcome = ordered.read_text()
    if outcome == "preempted":
        state_file(name).write_text("SUSPENDING SUSPENDED")
        return 143
    if outcome == "until stopped":
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        while not stopped:
            time.sleep(0.01)
        print("saved", flush=True)
        return 143
    if number == "1":
        ordered.unlink()
    return int(outcome)


def python3(arguments: list[str]) -> int:
    """A host's own Python: it can install uv."""
    assert arguments[:3] == ["-m", "pip", "install"]
    assert arguments[-1] == "uv"
    write_script(Path(os.environ["HOME"]) / ".local" / "bin" / "uv", "uv")
    return 0


def uv(arguments: list[str]) -> int:
    record(f"uv {arguments[0]}", name=Path(os.environ["HOME"]).parent.name, arguments=arguments)
    if arguments[0] == "venv":
        write_script(Path(arguments[-1]) / "bin" / "python", "worker")
    return 0


def secrets(arguments: list[str]) -> int:
    """`gcloud secrets` on a host."""
    assert arguments == ["secrets", "versions", "access", "latest", "--secret=wandb", "--project=my-project"]
    print("very-secret")
    return 0


def write_script(path: Path, role: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {role} "$@"\n')
    path.chmod(0o755)


def install(folder: Path) -> None:
    """Make the commands in a folder of PATH; `sleep` is short."""
    for name in ("gcloud", "python3"):
        write_script(folder / name, name)
    (folder / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.02\n")
    (folder / "sleep").chmod(0o755)
    for name in ("queued", "hosts"):
        (CLOUD / name).mkdir()


def main() -> int:
    role, *arguments = sys.argv[1:]
    if role == "gcloud" and arguments[0] == "secrets":
        return secrets(arguments)
    if role == "install":
        install(Path(arguments[0]))
        return 0
    return {"gcloud": gcloud, "worker": worker, "python3": python3, "uv": uv}[role](arguments)


if __name__ == "__main__":
    sys.exit(main())
