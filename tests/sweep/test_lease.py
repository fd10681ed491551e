"""Leases: whatever happens in whatever order, one owner, one result, never rewritten."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st

from scaling import store
from scaling.storage import backends, host
from scaling.store import lease as leases
from tests import waiting

RUN = "0123456789abcdef"
RECORD = {"format": 1, "run_id": RUN, "run": {"data": {}}, "data": {}}


@pytest.fixture
def results(tmp_path: Path) -> store.Store:
    filled = store.Store(tmp_path / "store")
    filled.add_run(RUN, RECORD)
    return filled


def claim(results: store.Store, owner: str = "me") -> leases.Lease:
    lease = results.claim(RUN, owner)
    assert lease is not None
    return lease


def age(results: store.Store, seconds: float) -> None:
    """Make the newest lease older than it is."""
    newest = leases.newest(results.run(RUN))
    assert newest is not None
    path = results.folder(RUN) / leases.key_of(newest.attempt)
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def row(loss: float) -> dict[str, Any]:
    return {"status": "finished", "reason": None, "loss": loss}


class AnyOrder(stateful.RuleBasedStateMachine):
    """Workers that claim, beat, sleep past their lease, crash, finish, fail and release in any order."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.results = store.Store(Path(self.place.name) / "store")
        self.results.add_run(RUN, RECORD)
        self.held: list[leases.Lease] = []
        self.published: bytes | None = None
        self.clock = 0.0

    def teardown(self) -> None:
        self.place.cleanup()

    def result_file(self) -> Path:
        return self.results.folder(RUN) / "result.json"

    @stateful.rule()
    def claim(self) -> None:
        lease = self.results.claim(RUN, f"owner {len(self.held)}")
        if lease is not None:
            assert self.published is None
            assert all(other.lost or other._ended for other in self.held)
            self.held.append(lease)

    @stateful.rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        if leases.newest(self.results.run(RUN)) is not None:
            age(self.results, seconds)

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.held)).heartbeat()

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(data=st.data(), loss=st.floats(0, 10))
    def publish(self, data: st.DataObject, loss: float) -> None:
        lease = data.draw(st.sampled_from(self.held))
        stale = lease.lost or lease._ended
        assert lease.publish(row(loss)) is not stale
        if not stale:
            self.published = self.result_file().read_bytes()

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(data=st.data(), loss=st.floats(0, 10))
    def die_while_publishing(self, data: st.DataObject, loss: float) -> None:
        lease = data.draw(st.sampled_from(self.held))
        if lease.publish(row(loss)):
            self.published = self.result_file().read_bytes()
            self.result_file().unlink()  # as if the process had ended between the two steps
            assert self.results.result(RUN) == row(loss)
            assert self.results.claim(RUN, "heir") is None

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(data=st.data(), fails=st.booleans())
    def give_up(self, data: st.DataObject, fails: bool) -> None:
        lease = data.draw(st.sampled_from(self.held))
        if fails:
            lease.fail("ValueError: no", "Traceback …")
        else:
            lease.release("asked to stop")

    @stateful.rule()
    def retry(self) -> None:
        self.results.retry(RUN)

    @stateful.invariant()
    def one_owner_and_one_result(self) -> None:
        assert sum(not lease.lost and not lease._ended for lease in self.held) <= 1
        assert self.result_file().exists() is (self.published is not None)
        if self.published is not None:
            assert self.result_file().read_bytes() == self.published
        status = self.results.status(RUN)["status"]
        assert (status == "finished") is (self.published is not None)
        strays = list(self.results.folder(RUN).parent.rglob(".*"))
        assert strays == []


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestAnyOrder = AnyOrder.TestCase


def test_a_held_run_is_not_claimed_and_a_released_one_is(results: store.Store) -> None:
    first = claim(results)
    assert results.claim(RUN, "you") is None
    first.release("asked to stop")
    assert claim(results, "you").attempt == 2


def test_a_lease_expires_by_the_clock_of_the_files(results: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(results)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # a host whose clock is far ahead takes nothing
    assert results.claim(RUN, "you") is None
    monkeypatch.undo()
    age(results, 61)
    assert claim(results, "you").attempt == 2


def test_an_owner_that_lost_its_lease_notices_and_cannot_publish(results: store.Store) -> None:
    slow = claim(results, "slow")
    age(results, 61)
    quick = claim(results, "quick")
    assert slow.lost
    assert not quick.lost
    slow.heartbeat()
    slow.fail("late", "late")
    assert results.status(RUN)["owner"] == "quick"
    assert not slow.publish(row(1.0))
    assert quick.publish(row(2.0))
    assert not slow.publish(row(1.0))
    assert results.result(RUN) == row(2.0)


@pytest.mark.parametrize("late", ["heartbeat", "release", "fail"])
def test_what_a_late_owner_still_says_is_told_anew_as_it_is(
    results: store.Store, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """It is paused between its last look at the leases and what it writes."""
    slow = claim(results, "slow")
    replace = backends.Folder.replace

    def paused(self: backends.Folder, key: str, text: str) -> None:
        monkeypatch.undo()
        age(results, 61)
        assert claim(results, "quick").publish(row(2.0))
        replace(self, key, text)

    monkeypatch.setattr(backends.Folder, "replace", paused)
    {"heartbeat": slow.heartbeat, "release": lambda: slow.release("x"), "fail": lambda: slow.fail("x", "x")}[late]()
    for status in (results.status(RUN), results.run(RUN).read_json("status.json")):
        found = {name: status[name] for name in ("status", "reason", "owner", "attempt", "faults")}
        assert found == {
            "status": "finished", "reason": "", "owner": "quick", "attempt": 2, "faults": {"vanished": 1},
        }  # fmt: skip


def test_a_result_that_was_sealed_and_not_written_is_written_by_the_next(
    results: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, create = claim(results), backends.Folder.create

    def killed(self: backends.Folder, key: str, text: str) -> bool:
        created = create(self, key, text)
        if key == leases.key_of(2):
            raise KeyboardInterrupt
        return created

    monkeypatch.setattr(backends.Folder, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        mine.publish(row(2.0))
    monkeypatch.undo()
    assert results.run(RUN).read_json("status.json")["status"] == "running"
    assert results.claim(RUN, "next") is None
    assert results.run(RUN).read_json("result.json") == row(2.0)
    told = results.run(RUN).read_json("status.json")
    assert (told["status"], told["attempt"], told["owner"]) == ("finished", 1, "me")


def test_a_paused_owner_that_nobody_replaced_goes_on(results: store.Store) -> None:
    mine = claim(results)
    age(results, 1000)
    assert results.status(RUN)["status"] == "planned"
    assert not mine.lost
    mine.heartbeat()
    assert results.claim(RUN, "you") is None
    assert mine.publish(row(2.0))


def test_a_dead_process_of_this_host_is_replaced_at_once(results: store.Store) -> None:
    program = f"from scaling import store; assert store.Store({str(results.path)!r}).claim({RUN!r}, 'dead')"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert results.status(RUN)["status"] == "planned"
    heir = claim(results)
    assert heir.attempt == 2
    assert [path.name for path in heir.checkpoints] == ["000001", "000002"]


@pytest.mark.parametrize(
    ("saved", "vanished"),
    [((), 3), ((3,), 0), ((2,), 1), ((1, 2, 3), 0)],
    ids=["none", "the last", "the one before", "all"],
)
def test_attempts_that_vanish_without_a_checkpoint_make_a_suspect(
    results: store.Store, saved: tuple[int, ...], vanished: int
) -> None:
    """An attempt that saved one made progress: the run does not kill its workers."""
    for number in range(1, leases.SUSPECT + 1):
        lease = claim(results)
        checkpoints = results.folder(RUN) / "checkpoints" / f"{number:06d}"
        (checkpoints / ("10" if number in saved else "10.draft")).mkdir(parents=True)
        assert lease.attempt == number
        age(results, 2 * results.lease_seconds)
    held = results.claim(RUN, "me", suspects=False)
    assert (held is None) == (vanished >= leases.SUSPECT)
    assert (held or claim(results))._mine.vanished == vanished
    assert results.status(RUN)["faults"] == {"vanished": leases.SUSPECT}


def test_a_process_that_was_killed_but_not_reaped_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert host.started(child.pid) > 0
    child.kill()
    waiting.until(lambda: host.started(child.pid) == 0)
    child.communicate()
    assert host.started(child.pid) == 0


def test_processes_that_claim_at_once_take_each_run_once(tmp_path: Path) -> None:
    results = store.Store(tmp_path / "store")
    run_ids = [f"{number:016x}" for number in range(40)]
    for run_id in run_ids:
        results.add_run(run_id, {**RECORD, "run_id": run_id})
    program = """
import sys
from scaling import store
results = store.Store(sys.argv[1])
print("ready", flush=True)
input()
held = [(run_id, results.claim(run_id, sys.argv[2])) for run_id in sorted(sys.argv[3:])]
print(*[run_id for run_id, lease in held if lease], flush=True)
input()
"""
    command = [sys.executable, "-c", program, str(results.path)]
    racers = [
        subprocess.Popen([*command, name, *run_ids], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    taken = [racer.stdout.readline().split() for racer in racers if racer.stdout]  # none ends before all have claimed
    for racer in racers:
        racer.communicate("\n")
        assert racer.returncode == 0
    assert sorted(run_id for names in taken for run_id in names) == run_ids


def test_beating_keeps_a_lease(tmp_path: Path) -> None:
    results = store.Store(tmp_path, heartbeat_seconds=0.05)
    results.add_run(RUN, RECORD)
    mine, path = claim(results), f"runs/{RUN}/{leases.key_of(1)}"
    with mine.beating(print):
        mine.metrics([{"kind": "train", "step": 7, "train_loss": 1.0}])
        for _ in range(2):
            age(results, 2 * results.lease_seconds)
            waiting.until(lambda: results.files.modified(path) > results.files.now() - results.lease_seconds)
        assert results.claim(RUN, "you") is None
        waiting.until(lambda: results.status(RUN)["step"] == 7)
    age(results, 2 * results.lease_seconds)
    assert claim(results, "you").attempt == 2


def test_a_heartbeat_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = store.Store(tmp_path, heartbeat_seconds=0.01)
    results.add_run(RUN, RECORD)
    mine = claim(results)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mine, "heartbeat", full)
    told: list[str] = []
    with mine.beating(told.append):
        waiting.until(lambda: told)
    assert "No space left on device" in told[0]


def test_metrics_are_whole_lines_of_valid_json(results: store.Store) -> None:
    mine = claim(results)
    mine.metrics(
        [{"kind": "train", "step": 1, "loss": float("nan")}, {"kind": "train", "step": 2, "loss": float("inf")}]
    )
    mine.metrics([])
    path = results.folder(RUN) / "metrics" / "000001.jsonl"
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [row["loss"] for row in rows] == [None, None]


def test_a_lease_of_another_version_is_refused_with_a_reason(results: store.Store) -> None:
    claim(results)
    path = results.folder(RUN) / leases.key_of(1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "novelty": 1}))
    with pytest.raises(ValueError, match=r"000001\.json.*novelty.*use the version"):
        results.claim(RUN, "you")
