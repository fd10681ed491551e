"""A damaged store is still a store: a run with a file that cannot be read is one row, and the printed remedy works."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, store
from scaling.config import grids
from scaling.launch import watch
from scaling.planning import plan, registering
from scaling.storage import errors
from scaling.store import gc, lease, record
from scaling.worker import queue

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]
CUT = '{"format": 1, "run'


def finish(results: store.Store, run_id: str, loss: float, *, sealed: bool = True) -> None:
    """Publish a result as a worker does; stores of which the seal was lost have the row in result.json alone."""
    held = results.claim(run_id, "me", {"device": "cpu"})
    assert held is not None
    run, stored = record.read(results.config(run_id))
    ended = {"run_id": run_id, "sweep": "small", "device": "cpu", "status": "finished", "reason": None}
    measured = {"loss": loss, "loss_se": 0.1, "bits_per_byte": 1.0, "seconds": 1.0, **ended}
    held.metrics([{"kind": "validation", "step": 20, "tokens": 640, "flops": 1.0, "loss": loss}])
    assert held.publish(record.result_row(record.columns(run, stored), {"role": "single"}, measured))
    if not sealed:
        (results.folder(run_id) / lease.key_of(2)).unlink()


def remove_folder(run: Path) -> None:
    shutil.rmtree(run)


def cut(name: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / name).write_text(CUT)

    return write


def edited(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))


def later_lease(run: Path) -> None:
    (run / "leases" / "000001.json").write_text('{"attempt": 1, "of_a_later_version": true}')


# What was done to an open run or to a finished one, what the row says, and the remedy as a command of a person.
AGAIN, ANEW = "start the run's sweep again", "remove the run's folder"
CASES: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "a missing folder": ("open", remove_folder, r"config\.json is missing", AGAIN),
    "an unreadable config": ("open", cut("config.json"), r"config\.json is not readable", AGAIN),
    "an edited config": ("open", edited, r"config\.json of run \w+ now has the id", AGAIN),
    "an unreadable status": ("open", cut("status.json"), r"status\.json is not readable", "remove it"),
    "an unreadable lease": ("open", cut("leases/000001.json"), r"000001\.json is not readable", ANEW),
    "a lease of another version": ("open", later_lease, r"000001\.json is no lease of this version", ""),
    "a result cut short": ("finished", cut("result.json"), r"result\.json is not readable.*leases/000002", "remove it"),
    "a result without its seal": ("unsealed", cut("result.json"), r"result\.json is not", ANEW),
    "the config of a finished run": ("finished", cut("config.json"), r"config\.json is not", AGAIN),
}


@pytest.fixture
def swept(results: store.Store, make_run: Make, identity: Any) -> Callable[[], str]:
    """A sweep of two runs, of seeds 0 and 1; starting it again registers the same plan."""
    sweep = config.Sweep(name="small", base=make_run(), grid=grids.Axis(field="seed", values=(0, 1)))

    def start() -> str:
        resolved = plan.resolve(sweep, lambda data: identity, results)
        plan.check_memory(resolved.all, sweep.execution, 1e12, "cpu", results)
        assert registering.register("small", sweep, resolved.all, results) == ""
        return str(resolved.runs[0].run_id)

    return start


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_run_is_one_row_and_its_remedy_works(
    results: store.Store, swept: Callable[[], str], case: str, tmp_path: Path
) -> None:
    state, damage, told, remedy = CASES[case]
    first = swept()
    (other,) = set(results.run_ids()) - {first}
    if state == "open":
        held = results.claim(first, "me")
        assert held is not None
        held.release("stopped")
    else:
        finish(results, first, 2.0, sealed=state == "finished")
    finish(results, other, 3.0)
    damage(Path(results.path) / "runs" / first)

    results = store.Store(results.path)
    frame = results.runs("small").set_index("run_id")
    assert dict(frame["status"]) == {first: "damaged", other: "finished"}
    assert re.search(told, frame["reason"][first])
    assert remedy in frame["reason"][first]
    assert frame["loss"][other] == 3.0
    measured = case == "the config of a finished run"
    status = "finished" if measured else "damaged"
    assert results.statuses("small") == {first: status, other: "finished"}
    assert (frame["loss"][first] == 2.0) == measured  # what can be read is kept
    assert results.curves("small")["run_id"].nunique() == (2 if state == "finished" else 1) + (state == "unsealed")
    assert watch.table(results, "small").row_count == 2
    taken: list[list[queue.Claim]] = []
    if (state == "open" and first in results.settings.damaged) or case == "an edited config":
        with pytest.raises(errors.UnreadableError, match=told):  # no other run is open: a worker could only skip all
            queue.Queue(results, "small", print)
    else:
        runs = queue.Queue(results, "small", print)
        assert {run.run_id for run in runs.left()} <= {first}
        taken = list(runs.claims("me", {}, lambda item: 1, lambda: False))
    assert bool(taken) == (case == "an unreadable status")  # which the owner writes again
    for (claim,) in taken:
        claim.lease.release("stopped")
        damage(Path(results.path) / "runs" / first)
    gc.remove(results, gc.find(results), lambda removal: None)  # nothing is lost by it, and nothing raised

    if remedy == "remove it":
        named = re.search(r"(\S+\.json) is not readable", frame["reason"][first])
        assert named is not None
        Path(named[1]).unlink()
    elif remedy == "remove the run's folder":
        shutil.rmtree(Path(results.path) / "runs" / first)
    if not remedy:
        return
    swept()
    results = store.Store(results.path)
    status = "finished" if state == "finished" else "planned"
    assert dict(results.runs("small").set_index("run_id")["status"]) == {first: status, other: "finished"}
    if state == "finished":
        assert dict(results.runs("small").set_index("run_id")["loss"]) == {first: 2.0, other: 3.0}
    else:
        assert [item.run_id for item in queue.Queue(results, "small", print).left()] == [first]
        finish(results, first, 2.0)


def test_a_curve_that_cannot_be_read_is_left_out_with_a_warning(results: store.Store, swept: Callable[[], str]) -> None:
    first = swept()
    (other,) = set(results.run_ids()) - {first}
    for run_id in (first, other):
        finish(results, run_id, 2.0)
    path = Path(results.path) / "runs" / first / "metrics" / "000001.jsonl"
    path.write_text("cut\n")
    assert results.runs("small")["status"].tolist() == ["finished"] * 2
    with pytest.warns(UserWarning, match=rf"run {first} is left out of the curves: .*the run's result stays"):
        assert results.curves("small")["run_id"].tolist() == [other]
    path.unlink()
    assert results.curves("small")["run_id"].tolist() == [other]


def test_gc_leaves_damaged_runs_and_the_trunks_of_damaged_branches(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    trunk, branch = fill(results, [make_run(), make_run(seed=1)])
    members = results.sweep("small")["members"]
    members[1]["labels"] |= {"role": "branch", "parent_run_id": trunk}
    results.add_sweep("small", results.sweep("small")["config"], members)
    for step in ("1", "2", "3"):
        folder = results.folder(trunk) / "checkpoints" / "000001" / step
        folder.mkdir(parents=True)
        (folder / gc.FINISHED).touch()
    assert sum(len(removals) for removals in gc.find(results).unfinished.values()) == 1
    (results.folder(branch) / "config.json").write_text(CUT)
    removable = gc.find(results)
    assert removable.removals() == []
    assert sum(removable.left.values()) == 2
    assert all("damaged" in why for why in removable.left)


def test_a_result_that_cannot_be_read_is_no_result(results: store.Store, make_run: Make, fill: Fill) -> None:
    (run_id,) = fill(results, [make_run()])
    (results.folder(run_id) / "result.json").write_text("[]")
    with pytest.raises(errors.UnreadableError, match="holds list, not an object"):
        results.result(run_id)
    assert results.readable_result(run_id) is None
    assert not results.begun(run_id)
    assert results.status(run_id)["status"] == store.DAMAGED
