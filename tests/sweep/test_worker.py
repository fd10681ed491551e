"""The worker with a training that only pretends: what it stores of runs that finish, fail, stop or are lost."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scaling import config, store
from scaling.storage import atomic, host
from scaling.store import lease as leases
from scaling.training import loop
from scaling.worker import main, protocol
from tests import waiting
from tests.sweep import trainers

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]


@pytest.fixture
def log() -> list[str]:
    return []


def test_every_run_is_trained_the_largest_first(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    runs = [make_run(tokens=tokens) for tokens in (640, 2560, 1280)]
    run_ids = fill(results, runs)
    order: list[int] = []

    def train(run: config.Run, execution: Any, corpus: Any, *, checkpoints: Any, record: Any, stop: Any) -> Any:
        assert execution == config.Execution()
        assert checkpoints == [results.folder(run.run_id(corpus.data_sha256)) / "checkpoints" / "000001"]
        assert not stop()
        order.append(run.tokens)
        record([{"kind": "train", "step": 1, "tokens": 32, "flops": 1.0, "loss": 5.0}])
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    trainer = trainers.alone(train)
    tally = main.work(results, "small", trainer=trainer, log=log.append)
    assert order == [2560, 1280, 640]
    assert (tally.finished, tally.exit_code) == (3, 0)
    frame = results.runs("small")
    assert frame["status"].tolist() == ["finished"] * 3
    assert frame["loss"].tolist() == [2.0] * 3
    assert (frame["flops_spent"] == frame["flops"]).all()
    assert list(results.result(run_ids[0]) or ()) == list(store.COLUMNS)
    status = results.status(run_ids[0])
    assert {"jax", "flax", "optax"} <= set(status["versions"])
    assert status["device"]
    assert len(results.history(run_ids[0])) == 1
    assert main.work(results, "small", trainer=trainer, log=log.append) == main.Tally()


def test_a_run_that_raises_keeps_its_traceback_and_the_others_go_on(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    run_ids = fill(results, runs)
    broken = {1}

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        if run.seed in broken:
            raise ZeroDivisionError("planted")
        return trainers.outcome("finished", loss=2.0)

    trainer = trainers.alone(train)
    tally = main.work(results, "small", trainer=trainer, log=log.append)
    assert (tally.finished, tally.failed, tally.exit_code) == (2, 1, 0)
    status = results.status(run_ids[1])
    assert (status["status"], status["reason"]) == ("failed", "ZeroDivisionError: planted")
    assert "in train" in (status["traceback"] or "")
    assert results.runs("small")["status"].tolist() == ["finished", "failed", "finished"]

    assert main.work(results, "small", trainer=trainer, log=log.append) == main.Tally()
    assert main.work(results, "small", trainer=trainer, log=log.append, retry_failed=True).failed == 1
    broken.clear()
    assert main.work(results, "small", trainer=trainer, log=log.append, retry_failed=True).finished == 1
    assert results.status(run_ids[1])["status"] == "finished"


def test_a_diverged_run_is_a_row_without_a_loss(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    (run_id,) = fill(results, [make_run()])
    diverged = trainers.outcome("diverged", step=10, reason="training loss is nan at step 10")
    trainer = trainers.alone(lambda *_, **__: diverged)
    assert main.work(results, "small", trainer=trainer, log=log.append).diverged == 1
    row = results.result(run_id)
    assert row is not None
    assert (row["status"], row["reason"], row["loss"]) == ("diverged", "training loss is nan at step 10", None)
    assert row["flops_spent"] == row["flops"] / 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_releases_it(
    results: store.Store, make_run: Make, fill: Fill, log: list[str], number: int, code: int
) -> None:
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    started: list[int] = []

    def train(run: config.Run, *_: Any, stop: Callable[[], bool], **__: Any) -> Any:
        started.append(run.seed)
        os.kill(os.getpid(), number)
        assert stop()
        return trainers.outcome("stopped", step=7, reason="asked to stop")

    before = signal.getsignal(number)
    tally = main.work(results, "small", trainer=trainers.alone(train), log=log.append)
    assert signal.getsignal(number) == before
    assert (tally.stopped, tally.exit_code) == (1, code)
    assert started == [0]
    status = results.status(run_ids[0])
    assert (status["status"], status["reason"]) == ("planned", "asked to stop at step 7; resumes there")
    lease = results.claim(run_ids[0], "next")
    assert lease is not None
    assert lease.attempt == 2


def test_a_worker_whose_launcher_is_gone_stops(
    results: store.Store, make_run: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(results, [make_run()])
    monkeypatch.setenv(protocol.LAUNCHER, str(os.getppid()))

    def train(*_: Any, stop: Callable[[], bool], **__: Any) -> Any:
        assert not stop()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop()
        return trainers.outcome("stopped", reason="asked to stop")

    assert main.work(results, "small", trainer=trainers.alone(train), log=print).exit_code == 129


def test_a_worker_that_lost_its_run_stops_and_publishes_nothing(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    others: list[leases.Lease] = []

    def lose(run_id: str) -> None:
        path = results.folder(run_id) / leases.key_of(1)
        os.utime(path, (0, 0))
        other = results.claim(run_id, "other")
        assert other is not None
        others.append(other)

    def train(run: config.Run, *_: Any, stop: Callable[[], bool], **__: Any) -> Any:
        lose(run_ids[run.seed])
        if run.seed == 0:
            assert stop()
            return trainers.outcome("stopped", reason="asked to stop")
        if run.seed == 1:
            raise RuntimeError("in the way of the other")
        return trainers.outcome("finished", loss=2.0)

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).lost == 3
    assert [results.result(run_id) for run_id in run_ids] == [None] * 3
    assert [results.status(run_id)["owner"] for run_id in run_ids] == ["other"] * 3
    assert all(other.publish({"status": "finished", "reason": None}) for other in others)


@pytest.mark.parametrize(
    ("file", "content", "remedy"),
    [
        ("config.json", "{", "restore it from a copy"),
        ("config.json", "[]", "restore it from a copy"),
        ("config.json", '{"format": 1}', "has no 'run'"),
        ("config.json", '{"format": 9}', "use the version that wrote it"),
        ("config.json", None, "start the run's sweep again"),
        ("leases/000001.json", "{", "restore it from a copy"),
        ("leases/000001.json", '{"attempt": 1, "novelty": 1}', "use the version that wrote it"),
    ],
)
def test_a_damaged_run_is_skipped_and_logged_once(
    file: str, content: str | None, remedy: str, results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    """It is the longest run, and would be claimed first."""
    damaged, *others = fill(results, [make_run(tokens=2560), make_run(), make_run(seed=1)])
    path = results.folder(damaged) / file
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    trainer = trainers.alone(lambda *_, **__: trainers.outcome("finished", loss=2.0))
    for retry_failed in (False, True):
        tally = main.work(results, "small", trainer=trainer, log=log.append, retry_failed=retry_failed)
        assert (tally.finished, tally.exit_code) == (2, 0)
        (line,) = [line for line in log if "is damaged and skipped" in line]
        assert damaged in line
        assert remedy in line
        log.clear()
        for run_id in others:
            assert results.result(run_id)
            (results.folder(run_id) / "result.json").unlink()
            shutil.rmtree(results.folder(run_id) / "leases")


def test_a_sweep_of_which_no_run_is_readable_is_refused(results: store.Store, make_run: Make, fill: Fill) -> None:
    for run_id in fill(results, [make_run(), make_run(seed=1)]):
        (results.folder(run_id) / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not readable as JSON"):
        main.work(results, "small", log=print)


@pytest.mark.parametrize("changed", [{"data_sha256": "f" * 64}, {"tokenizer_id": "other"}, {"unique_tokens": 9}])
def test_data_that_changed_since_the_plan_fails_the_run_with_a_remedy(
    changed: dict[str, Any],
    results: store.Store,
    make_run: Make,
    fill: Fill,
    identity: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (run_id,) = fill(results, [make_run()])
    other = dataclasses.replace(trainers.Identity(), **changed)
    trainer = trainers.alone(lambda *_, **__: pytest.fail("trained on other data"), other)
    assert main.work(results, "small", trainer=trainer, log=print).failed == 1
    reason = results.status(run_id)["reason"]
    ((name, value),) = changed.items()
    assert f"has {name} {value} and was planned with" in reason
    assert "restore the data" in reason


def test_two_workers_share_a_sweep(results: store.Store, make_run: Make, fill: Fill, log: list[str]) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(12)])
    trained: list[int] = []
    both = threading.Barrier(2)

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        trained.append(run.seed)
        if len(trained) <= 2:
            both.wait(waiting.LIMIT_SECONDS)  # both have a run before either goes on
        return trainers.outcome("finished", loss=2.0)

    trainer = trainers.alone(train)
    threads = [
        threading.Thread(target=main.work, args=(results, "small"), kwargs={"trainer": trainer, "log": log.append})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == list(range(12))
    assert set(results.statuses("small").values()) == {"finished"}
    assert len(run_ids) == 12


def test_a_tracker_that_fails_warns_once_and_training_goes_on(results: store.Store, make_run: Make, fill: Fill) -> None:
    class Broken(config.Tracker):
        kind: str = "unreachable"

        def log(self, rows: Any) -> None:
            raise ConnectionError("no network")

    log: list[str] = []
    fill(results, [make_run(), make_run(seed=1)], trackers=(Broken(),))

    def train(*_: Any, record: Callable[..., None], **__: Any) -> Any:
        for step in range(3):
            record([{"kind": "train", "step": step, "tokens": 1, "flops": 1.0, "loss": 1.0}])
        return trainers.outcome("finished", loss=2.0)

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).finished == 2
    told = [line for line in log if "no network" in line]
    assert len(told) == 1
    assert "training goes on" in told[0]


# Faults


class XlaRuntimeError(RuntimeError):
    """Named as JAX's."""


def test_out_of_memory_is_tried_once_more_with_half_the_microbatch(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    good, bad = fill(results, [make_run(batch_size=4, tokens=1280), make_run(batch_size=4, tokens=1280, seed=1)])
    tried: list[tuple[int, Any]] = []

    def train(run: config.Run, execution: config.Execution, *_: Any, **__: Any) -> Any:
        tried.append((run.seed, execution.microbatch))
        if execution.microbatch == "auto" or run.seed == 1:
            raise XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    tally = main.work(results, "small", trainer=trainers.alone(train), log=log.append)
    assert (tally.finished, tally.failed, tally.exit_code) == (1, 1, 0)
    assert sorted(tried, key=str) == [(0, "auto"), (0, 1), (1, "auto"), (1, 1)] or sorted(tried, key=str) == [
        (0, 1), (0, "auto"), (1, 1), (1, "auto"),
    ]  # fmt: skip
    ended, failed = results.status(good), results.status(bad)
    assert (ended["status"], ended["microbatch"], ended["faults"]) == ("finished", 1, {"out_of_memory": 1})
    assert (failed["status"], failed["faults"]) == ("failed", {"out_of_memory": 2})
    assert "RESOURCE_EXHAUSTED" in failed["reason"]
    assert any("tried once more with microbatches of 1 sequences, not 2" in line for line in log)


def test_out_of_memory_before_there_is_a_program_is_tried_once_more_too(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    """The first run of a worker does not get as far as to know its microbatch: half the batch is tried."""
    (run_id,) = fill(results, [make_run(batch_size=4, tokens=1280)])

    def train(members: Any, execution: config.Execution, corpus: Any) -> list[Any]:
        return [loop.Outcome("finished", "", 20, 1.0, 2.0, 0.1, 2.0)]

    class Large(trainers.Fake):
        def program_of(self, run: config.Run, execution: config.Execution, members: int, corpus: Any) -> Any:
            if execution.microbatch == "auto":
                raise XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while compiling")
            return super().program_of(run, execution, members, corpus)

    assert main.work(results, "small", trainer=Large(train), log=log.append).finished == 1
    status = results.status(run_id)
    assert (status["microbatch"], status["faults"]) == (2, {"out_of_memory": 1})


def test_infrastructure_is_tried_again_as_often_as_it_takes(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    (run_id,) = fill(results, [make_run()])
    errors = [OSError(errno.ENOSPC, "No space left on device"), ConnectionResetError("server"), TimeoutError("server")]

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).finished == 1
    assert results.status(run_id)["faults"] == {"infrastructure": 3}
    assert sum("paused, and trying again until it passes" in line for line in log) == 1


def test_a_device_that_is_gone_ends_the_worker_to_be_started_again(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    """No training in this process can succeed: it claims nothing more."""
    first, second = fill(results, [make_run(tokens=1280), make_run()])

    def train(*_: Any, **__: Any) -> Any:
        raise XlaRuntimeError("UNAVAILABLE: the device is gone")

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).exit_code == protocol.AGAIN
    assert results.status(first)["reason"].endswith("the device is gone; it is tried again")
    assert results.status(second)["attempt"] == 0


def test_a_run_that_kills_its_workers_waits_for_all_others(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    """It is the longest, and would be first; it is tried when nothing else is left."""
    killer, _ = fill(results, [make_run(tokens=1280), make_run()])
    for number in range(leases.SUSPECT):
        lease = results.claim(killer, f"victim {number}")
        assert lease is not None
        os.utime(results.folder(killer) / leases.key_of(lease.attempt), (0, 0))
    order: list[int] = []

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        order.append(run.tokens)
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).finished == 2
    assert order == [640, 1280]
    assert results.status(killer)["faults"] == {"vanished": leases.SUSPECT}


def test_a_store_that_is_away_is_waited_for_and_nothing_is_lost(
    results: store.Store, make_run: Make, fill: Fill, log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The disk is full for a while in the middle of a run, for metrics, checkpoints and the result."""
    (run_id,) = fill(results, [make_run()])
    create, full = atomic.create, [0]

    def on_a_full_disk(*given: Any) -> Any:
        full[0] += 1
        if full[0] < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(*given)

    def train(run: config.Run, *_: Any, record: Any, **__: Any) -> Any:
        record([{"kind": "train", "step": 1, "loss": 5.0}])
        monkeypatch.setattr(atomic, "create", on_a_full_disk)
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).finished == 1
    assert results.status(run_id)["status"] == "finished"
    assert any("No space left on device" in line for line in log)
    assert any(line.startswith("going on after a pause of") for line in log)


def test_a_checkpoint_on_a_full_disk_is_written_when_there_is_room(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    fill(results, [make_run()])
    written: list[int] = []

    def train(members: Any, execution: Any, corpus: Any) -> list[Any]:
        def write() -> None:
            written.append(len(written))
            if len(written) < 3:
                raise OSError(errno.ENOSPC, "No space left on device")

        members[0].save(write)
        return [loop.Outcome("finished", "", 20, 1.0, 2.0, 0.1, 2.0)]

    assert main.work(results, "small", trainer=trainers.Fake(train), log=log.append).finished == 1
    assert written == [0, 1, 2]


def test_sigterm_while_the_store_is_away_ends_the_worker(
    results: store.Store, make_run: Make, fill: Fill, log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It cannot release its lease: that runs out, and the run goes on from its last checkpoint."""
    fill(results, [make_run()])

    def away(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        monkeypatch.setattr(atomic, "create", away)
        monkeypatch.setattr(atomic, "replace", away)
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    def note(line: str) -> None:
        log.append(line)
        if line.startswith("paused"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert main.work(results, "small", trainer=trainers.alone(train), log=note).exit_code == 143
    assert any("could not be released" in line for line in log)


def test_a_log_on_a_full_disk_stops_no_worker(
    results: store.Store, make_run: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_id,) = fill(results, [make_run()])
    trainer = trainers.alone(lambda *_, **__: trainers.outcome("finished", loss=2.0))
    with open("/dev/full", "w", buffering=1) as log:
        monkeypatch.setattr(sys, "stdout", log)
        assert main.main(results, "small", trainer=trainer) == 0
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), log.fileno())  # else what was never written fails here
    assert results.status(run_id)["status"] == "finished"


# What killed workers and late ones leave


def test_what_a_killed_worker_left_of_a_run_goes_when_the_run_has_ended(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    ended, open_still = map(results.folder, run_ids)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    name = f".000001.json.{child.pid}-{host.tag()}-01234567"

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        if run.seed == 1:
            raise ValueError("planted")
        for folder in (ended, open_still):
            (folder / "checkpoints" / "000001" / "5.draft").mkdir(parents=True)
            (folder / "leases" / name).write_text("{")
        return trainers.outcome("finished", step=run.steps, loss=2.0)

    (open_still / "leases").mkdir()
    assert main.work(results, "small", trainer=trainers.alone(train), log=log.append).finished == 1
    assert not (ended / "checkpoints").exists()
    assert sorted(os.listdir(ended / "leases")) == ["000001.json", "000002.json"]
    assert (open_still / "checkpoints" / "000001" / "5.draft").exists()  # the run may go on


def test_an_attempt_that_lost_its_run_writes_no_checkpoint(
    results: store.Store, make_run: Make, fill: Fill, log: list[str]
) -> None:
    (run_id,) = fill(results, [make_run()])
    written: list[str] = []

    def train(members: Any, execution: Any, corpus: Any) -> list[Any]:
        members[0].save(lambda: written.append("its own"))
        os.utime(results.folder(run_id) / leases.key_of(1), (0, 0))
        assert results.claim(run_id, "other") is not None
        members[0].save(lambda: written.append("late"))
        return [loop.Outcome("stopped", "asked to stop", 7, 1.0)]

    assert main.work(results, "small", trainer=trainers.Fake(train), log=log.append).lost == 1
    assert written == ["its own"]
