"""What processes that compute together tell each other, and what becomes of all where one of them fails; over loopback.

Each case is a function of this module that all processes call; what it returns comes back as JSON.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import config, memory
from scaling.training import mesh, processes, programs
from tests import conftest, on_devices

pytestmark = pytest.mark.engines  # several processes that compute together

ROOT = Path(__file__).parents[1]


def kind(error: Exception) -> str:
    return "out_of_memory" if isinstance(error, MemoryError) else "bug"


def telling() -> Any:
    """Values that differ by process, told in each of the ways."""
    me, waited = processes.index(), []

    def broken() -> None:
        raise ValueError(f"in process {me}")

    found = [processes.gather({"from": me, "some": [me] * 2}), processes.broadcast({"of": me})]
    if processes.is_leader():
        time.sleep(2.5)
    found += [processes.broadcast([me], meanwhile=lambda: waited.append(1)), processes.by_leader(lambda: f"by {me}")]
    try:
        processes.by_leader(broken)
    except (ValueError, processes.LeaderError) as error:
        found.append(processes.describe(error))
    processes.announce(10 + me)
    processes.gather(None)
    return [*found, sorted(processes.announced()), processes.least(5 - me if me else None), len(waited)]


def failing() -> Any:
    """Work that all do, that fails in all, and, at last, in process 1 alone while process 0 waits for it in vain."""
    me = processes.index()

    def fail() -> None:
        raise MemoryError(f"no room in {me}")

    def fail_or_wait() -> Any:
        if me:
            raise MemoryError("none left")
        return processes.gather("for ever")

    found: list[Any] = [processes.together(lambda: me, kind)]
    for work in (fail, fail_or_wait):
        try:
            found.append(processes.together(work, kind))
        except Exception as error:
            found.append([processes.describe(error), getattr(error, "kind", None)])
            found.append(processes.gather(me) if work is fail else "apart")
    return found


def splitting() -> Any:
    """Which rows of a batch of 8 each process of two devices has, and what arrays of them hold."""
    found = []
    for settings in ({}, {"fsdp": 4}, {"tensor": 2}, {"tensor": 4}, {"data": 2, "tensor": 2}):
        made = mesh.make(config.Mesh(**settings))
        rows = mesh.rows(made, 8)
        batch = mesh.put(made, np.arange(8)[rows], ("batch",))
        found.append(
            [rows.tolist(), np.asarray(jax.jit(lambda x: x, out_shardings=mesh.replicated(made))(batch)).tolist()]
        )
    return found


def asking() -> Any:
    """Whether anyone says so: process 1 does, at the third of five times, and to the second of two questions."""
    anyone = mesh.AnyReduce(mesh.make(config.Mesh()))
    answers = [anyone.poll([False, bool(processes.index()) and time == 2]) for time in range(5)]
    anyone.poll([True, True])
    anyone.reset()
    return [*answers, anyone.poll([False, False])]


def fitting() -> Any:
    """The microbatch that is chosen where process 1 has far less memory than process 0."""
    run = config.Run.model_validate(conftest.TINY).edit({"batch_size": 64, "tokens": 64 * 16 * 20})
    auto = config.Execution(microbatch="auto")
    needs = {size: memory.needed(run, auto, size, cpu=True, devices=2) for size in (64, 16)}
    limit = needs[16] * 1.3 if processes.index() else 100 * needs[64]
    os.environ[memory.LIMIT] = str(limit)
    return programs.program(run, auto).microbatch


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    """What each case returns in each of two processes of two devices; what parts them comes last."""
    names = [case.__name__ for case in (telling, splitting, asking, fitting, failing)]
    code = (
        "import json, os, sys, jax; from tests import test_processes as cases; from scaling.training import processes\n"
        "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
        "processes.MEETING_SECONDS = 3.0\n"
        f"print(json.dumps([getattr(cases, name)() for name in {names}]), flush=True)\n"
        "cases.time.sleep(0 if processes.index() else 5)\n"  # the first keeps what they are told
        "os._exit(0)"  # where processes are apart none may wait for another's end
    )
    address = on_devices.address()
    flags = f"--xla_force_host_platform_device_count=2 {conftest.FAST_COMPILE}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(number)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        for number in range(2)
    ]  # fmt: skip
    ended = [on_devices.results(process) for process in started]
    return dict(zip(names, map(list, zip(*ended, strict=True)), strict=True))


def test_processes_tell_each_other_small_values(found: dict[str, list[Any]]) -> None:
    first, second = found["telling"]
    for told in (first, second):
        assert told[:4] == [[{"from": 0, "some": [0, 0]}, {"from": 1, "some": [1, 1]}], {"of": 0}, [0], "by 0"]
        assert told[5:7] == [[10, 11], 4]
    assert first[4] == "ValueError: in process 0"
    assert second[4] == "LeaderError: process 0: ValueError: in process 0"
    assert (first[7], second[7] in (1, 2, 3)) == (0, True)


def test_all_fail_by_themselves_or_part(found: dict[str, list[Any]]) -> None:
    """Where all fail they are at the same place again; where one does, the others cannot know where it is."""
    first, second = found["failing"]
    assert first[:3] == [0, ["MemoryError: no room in 0", None], [0, 1]]
    assert second[:3] == [1, ["MemoryError: no room in 1", None], [0, 1]]
    parted = "PartedError: 1 of 2 processes failed by themselves (process 1: MemoryError: none left)"
    assert first[3:] == second[3:] == [[parted, "out_of_memory"], "apart"]


def test_a_process_has_the_rows_of_its_devices_whatever_the_mesh(found: dict[str, list[Any]]) -> None:
    """Two processes of two devices: 4 shards, or 2 where weights are split in two, or all rows on every device."""
    whole = list(range(8))
    for number, rows in enumerate(found["splitting"]):
        half = whole[4 * number : 4 * number + 4]
        assert rows == [[half, whole], [half, whole], [half, whole], [whole, whole], [half, whole]]


def test_what_one_process_says_all_hear_the_time_after(found: dict[str, list[Any]]) -> None:
    silent = [False, False]
    expected = [silent, silent, silent, [False, True], silent, silent]
    assert found["asking"] == [expected, expected]


def test_a_process_alone_is_answered_at_once() -> None:
    anyone = mesh.AnyReduce(mesh.make(config.Mesh()))
    assert [anyone.poll([True, False]), anyone.poll([False, True])] == [[True, False], [False, True]]
    assert processes.gather(3) == [3]
    assert processes.broadcast("x") == "x"
    assert processes.by_leader(lambda: 4) == 4
    assert processes.together(lambda: 5, kind) == 5
    assert processes.announced() == []
    assert processes.least(None) is None


def test_processes_choose_the_microbatch_that_fits_all_of_them(found: dict[str, list[Any]]) -> None:
    first, second = found["fitting"]
    assert first == second
    assert first <= 32
