"""A real Slurm cluster of two nodes on this machine, in a folder: munge, a controller, and two slurmd of one CPU each.

It needs Debian's slurm-wlm and munge (`install.sh`), no system services and no accounting database. To try things:

    python -m tests.engines.slurm_cluster bash      # a shell in which sinfo, sbatch and `scaling sweep` see the cluster

There are two partitions over both nodes. Jobs of `high` preempt those of `low`, which are requeued after GRACE_SECONDS.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("node1", "node2")
GRACE_SECONDS = 60
START_SECONDS = 30.0
# Where Debian puts daemons, which is not in everyone's path.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
# Neither control groups nor cores of their own are asked of the machine; processes are told apart by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Which daemons are not installed here, as text; None where all are."""
    lacking = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(lacking)} not installed; run tests/engines/install.sh" if lacking else None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands and submitit see the cluster, which runs while the body does.

    `folder`, new or empty, holds its config, state and logs. Raises RuntimeError with the logs where it does not start.
    """
    folder.chmod(0o755)  # munge's socket must not be behind a closed door
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    _write_config(folder)
    with contextlib.ExitStack() as started:

        def start(name: str, *command: str) -> None:
            log = started.enter_context(open(folder / f"{name}.log", "wb"))
            daemon = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            started.callback(_end, daemon)

        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={folder}/munge.{end}" for option, end in places.items()]
        start("munged", "munged", "--foreground", "--force", *files)
        _wait_until((folder / "munge.socket").exists, folder, "munge's socket")
        start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            start(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        _wait_until(lambda: _states(environment) == ["idle"] * len(NODES), folder, "idle nodes")
        try:
            yield environment
        finally:
            _cancel_all(environment, folder)


def _write_config(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    text = CONFIG.format(
        host=host, user=getpass.getuser(), folder=folder, controller_port=ports[0], nodes=nodes, grace=GRACE_SECONDS
    )
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _states(environment: dict[str, str]) -> list[str]:
    """The state of each node; none while the controller does not answer."""
    command = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%t"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()


def _wait_until(condition: Callable[[], bool], folder: Path, what: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > end:
            logs = "".join(f"\n== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
            raise RuntimeError(f"waited {START_SECONDS:.0f} s for {what}{logs}")
        time.sleep(0.1)


def _cancel_all(environment: dict[str, str], folder: Path) -> None:
    """End every job, so that no process of one is left."""

    def left() -> bool:
        return bool(subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True).stdout)

    for options in (["--full", "--signal=KILL"], []):
        subprocess.run(["scancel", "--user", getpass.getuser(), *options], env=environment, check=True)
    _wait_until(lambda: not left(), folder, "the end of all jobs")


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def main(command: list[str]) -> int:
    """Run a command while the cluster does; gives its exit code. SIGTERM ends the cluster, too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, running(Path(folder)) as environment:
        return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["bash"]))
