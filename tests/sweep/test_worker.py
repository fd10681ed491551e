"""The worker with a training that only pretends: what it stores of runs that finish, fail, stop or are lost."""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scaling import config
from scaling.sweep import lease as leases
from scaling.sweep import outages, store, worker

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]


@pytest.fixture
def log() -> list[str]:
    return []


def test_every_run_is_trained_the_largest_first(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str]
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
        return outcome("finished", step=run.steps, loss=2.0)

    pretend(train)
    tally = worker.work(results, "small", log=log.append)
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
    assert worker.work(results, "small", log=log.append) == worker.Tally()


def test_a_run_that_raises_keeps_its_traceback_and_the_others_go_on(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str]
) -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    run_ids = fill(results, runs)
    broken = {1}

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        if run.seed in broken:
            raise ZeroDivisionError("planted")
        return outcome("finished", loss=2.0)

    pretend(train)
    tally = worker.work(results, "small", log=log.append)
    assert (tally.finished, tally.failed, tally.exit_code) == (2, 1, 0)
    status = results.status(run_ids[1])
    assert (status["status"], status["reason"]) == ("failed", "ZeroDivisionError: planted")
    assert "in train" in (status["traceback"] or "")
    assert results.runs("small")["status"].tolist() == ["finished", "failed", "finished"]

    assert worker.work(results, "small", log=log.append) == worker.Tally()
    assert worker.work(results, "small", log=log.append, retry_failed=True).failed == 1
    broken.clear()
    assert worker.work(results, "small", log=log.append, retry_failed=True).finished == 1
    assert results.status(run_ids[1])["status"] == "finished"


def test_a_diverged_run_is_a_row_without_a_loss(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str]
) -> None:
    (run_id,) = fill(results, [make_run()])
    pretend(lambda *_, **__: outcome("diverged", step=10, reason="training loss is nan at step 10"))
    assert worker.work(results, "small", log=log.append).diverged == 1
    row = results.result(run_id)
    assert row is not None
    assert (row["status"], row["reason"], row["loss"]) == ("diverged", "training loss is nan at step 10", None)
    assert row["flops_spent"] == row["flops"] / 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_releases_it(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str], number: int, code: int
) -> None:
    run_ids = fill(results, [make_run(), make_run(seed=1)])
    started: list[int] = []

    def train(run: config.Run, *_: Any, stop: Callable[[], bool], **__: Any) -> Any:
        started.append(run.seed)
        os.kill(os.getpid(), number)
        assert stop()
        return outcome("stopped", step=7, reason="asked to stop")

    before = signal.getsignal(number)
    pretend(train)
    tally = worker.work(results, "small", log=log.append)
    assert signal.getsignal(number) == before
    assert (tally.stopped, tally.exit_code) == (1, code)
    assert started == [0]
    status = results.status(run_ids[0])
    assert (status["status"], status["reason"]) == ("planned", "asked to stop at step 7; resumes there")
    lease = results.claim(run_ids[0], "next")
    assert lease is not None
    assert lease.attempt == 2


def test_a_worker_whose_launcher_is_gone_stops(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(results, [make_run()])
    monkeypatch.setenv(outages.LAUNCHER, str(os.getppid()))

    def train(*_: Any, stop: Callable[[], bool], **__: Any) -> Any:
        assert not stop()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop()
        return outcome("stopped", reason="asked to stop")

    pretend(train)
    assert worker.work(results, "small", log=print).exit_code == 129


def test_a_worker_that_lost_its_run_stops_and_publishes_nothing(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str]
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
            return outcome("stopped", reason="asked to stop")
        if run.seed == 1:
            raise RuntimeError("in the way of the other")
        return outcome("finished", loss=2.0)

    pretend(train)
    assert worker.work(results, "small", log=log.append).lost == 3
    assert [results.result(run_id) for run_id in run_ids] == [None] * 3
    assert [results.status(run_id)["owner"] for run_id in run_ids] == ["other"] * 3
    assert all(other.publish({"status": "finished", "reason": None}) for other in others)


@pytest.mark.parametrize("changed", [{"data_sha256": "f" * 64}, {"tokenizer_id": "other"}, {"unique_tokens": 9}])
def test_data_that_changed_since_the_plan_fails_the_run_with_a_remedy(
    changed: dict[str, Any],
    results: store.Store,
    make_run: Make,
    fill: Fill,
    pretend: Any,
    identity: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scaling.data import corpus

    (run_id,) = fill(results, [make_run()])
    pretend(lambda *_, **__: pytest.fail("trained on other data"))
    monkeypatch.setattr(corpus, "prepare", lambda data, log: dataclasses.replace(identity, **changed))
    assert worker.work(results, "small", log=print).failed == 1
    reason = results.status(run_id)["reason"]
    ((name, value),) = changed.items()
    assert f"has {name} {value} and was planned with" in reason
    assert "restore the data" in reason


def test_two_workers_share_a_sweep(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, log: list[str]
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(12)])
    trained: list[int] = []
    both = threading.Barrier(2)

    def train(run: config.Run, *_: Any, **__: Any) -> Any:
        trained.append(run.seed)
        if len(trained) <= 2:
            both.wait(10)  # both have a run before either goes on
        return outcome("finished", loss=2.0)

    pretend(train)
    threads = [
        threading.Thread(target=worker.work, args=(results, "small"), kwargs={"log": log.append}) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == list(range(12))
    assert set(results.statuses("small").values()) == {"finished"}
    assert len(run_ids) == 12


def test_a_tracker_that_fails_warns_once_and_training_goes_on(
    results: store.Store, make_run: Make, fill: Fill, pretend: Any, outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaling import tracking

    class Broken(tracking.Nothing):
        def log(self, rows: Any) -> None:
            raise ConnectionError("no network")

    log: list[str] = []
    fill(results, [make_run(), make_run(seed=1)])
    monkeypatch.setattr(tracking, "build", lambda settings, warn: tracking.Guarded(Broken(), warn))

    def train(*_: Any, record: Callable[..., None], **__: Any) -> Any:
        for step in range(3):
            record([{"kind": "train", "step": step, "tokens": 1, "flops": 1.0, "loss": 1.0}])
        return outcome("finished", loss=2.0)

    pretend(train)
    assert worker.work(results, "small", log=log.append).finished == 2
    told = [line for line in log if "no network" in line]
    assert len(told) == 1
    assert "training goes on" in told[0]
