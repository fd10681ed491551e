"""What gc removes and what it leaves: nothing that a run could still need, also when workers come by meanwhile."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import config, store
from scaling.config import grids
from scaling.planning import plan, registering
from scaling.storage import host
from scaling.store import gc
from scaling.store import lease as leases
from scaling.worker import main, signals
from tests import command, s3

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]
WSD = {"kind": "wsd", "cooldown": 0.25, "warmup": {"kind": "tokens", "tokens": 64}}
ROW = {"status": "finished", "reason": None, "loss": 2.0}
LAST = 20  # steps of the runs of these tests
DROPS_LAST = config.Execution(keep_last_checkpoint=False)


def save(results: store.Store, run_id: str, attempt: int, *steps: int) -> None:
    """Checkpoints of one file."""
    for step in steps:
        place = results.folder(run_id) / "checkpoints" / f"{attempt:06d}" / str(step)
        place.mkdir(parents=True)
        np.savez(place / "state.npz", params=np.full(1000, float(step)))


def damage(results: store.Store, run_id: str, attempt: int, step: int) -> None:
    """Change one byte."""
    path = results.folder(run_id) / "checkpoints" / f"{attempt:06d}" / str(step) / "state.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def end(results: store.Store, run_id: str, **row: Any) -> None:
    lease = results.claim(run_id, "me")
    assert lease is not None
    assert lease.publish({**ROW, **row})


def begin(results: store.Store, run_id: str, attempts: int = 1) -> None:
    """Attempts that were stopped, each with its place."""
    for number in range(1, attempts + 1):
        lease = results.claim(run_id, "me", {"device": "cpu", "versions": {"jax": "1"}})
        assert lease is not None
        assert lease.attempt == number
        lease.step = 10 * number
        lease.release(f"asked to stop at step {10 * number}; resumes there", "preempted", microbatch=1)


def checkpoints(results: store.Store, run_id: str) -> list[str]:
    """`attempt/step` of what is there, of whatever name."""
    files = results.run(run_id).sub("checkpoints")
    return [f"{int(attempt)}/{name}" for attempt in files.names("") for name in files.names(attempt)]


def clean(results: store.Store) -> list[str]:
    """Collect; gives the keys of what went."""
    gone: list[str] = []
    gc.remove(results, gc.find(results), lambda removal: gone.append(removal.key))
    return gone


def tree(results: store.Store) -> dict[str, bytes]:
    root = Path(results.path)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Runs that ended


@pytest.mark.parametrize(
    ("sweeps", "status", "left"),
    [
        ([config.Execution()], "finished", ["1/20"]),
        ([DROPS_LAST], "finished", []),
        ([DROPS_LAST, config.Execution()], "finished", ["1/20"]),
        ([config.Execution()], "diverged", []),
        ([], "finished", ["1/20"]),
    ],
)
def test_of_a_run_that_ended_its_last_step_stays_where_a_sweep_keeps_it(
    results: store.Store, make_run: Make, fill: Fill, sweeps: list[config.Execution], status: str, left: list[str]
) -> None:
    for number, execution in enumerate(sweeps or [config.Execution()]):
        (run_id,) = fill(results, [make_run()], f"sweep-{number}", execution=execution)
    if not sweeps:
        shutil.rmtree(results.sweep_folder("sweep-0"))
    save(results, run_id, 1, 5, 10, LAST)
    end(results, run_id, status=status)
    before = {name: content for name, content in tree(results).items() if "/checkpoints/" not in name}
    gone = clean(results)
    assert checkpoints(results, run_id) == left
    assert len(gone) == 3 - len(left)
    assert {name: content for name, content in tree(results).items() if "/checkpoints/" not in name} == before
    assert (results.folder(run_id) / "checkpoints").exists() == bool(left)
    assert clean(results) == []


def test_of_several_copies_of_the_last_step_one_that_can_be_read_stays(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(2)])
    for run_id in run_ids:
        for attempt in (1, 2, 3):
            save(results, run_id, attempt, LAST)
        damage(results, run_id, 3, LAST)
        end(results, run_id)
    for attempt in (1, 2):
        damage(results, run_ids[1], attempt, LAST)
    clean(results)
    assert checkpoints(results, run_ids[0]) == ["2/20"]
    assert checkpoints(results, run_ids[1]) == ["1/20", "2/20", "3/20"]  # none is whole as far as is known


def test_a_trunk_keeps_what_branches_without_a_result_start_from(
    results: store.Store, make_run: Make, identity: Any
) -> None:
    axis = grids.Axis(field="tokens", values=tuple(32 * steps for steps in (20, 40, 80)))
    sweep = config.Sweep(name="small", base=make_run(schedule=WSD), grid=axis, execution=DROPS_LAST)
    resolved = plan.resolve(sweep, lambda data: identity, results)
    registering.register("small", sweep, resolved.trunks + resolved.runs, results)
    (trunk,), branches = [str(p.run_id) for p in resolved.trunks], [str(p.run_id) for p in resolved.runs]
    at = [20 - round(0.25 * 18), 40 - round(0.25 * 38), 80 - round(0.25 * 78)]
    assert at == [16, 30, 60]
    save(results, trunk, 1, 16, 30, 33)
    save(results, trunk, 2, 30, 50, 55)
    begin(results, trunk)
    clean(results)
    assert checkpoints(results, trunk) == ["1/16", "2/30", "2/50", "2/55"]  # the newest two steps, too
    save(results, trunk, 2, 60)
    end(results, trunk)
    end(results, branches[1])
    clean(results)
    assert checkpoints(results, trunk) == ["1/16", "2/60"]
    end(results, branches[0])
    end(results, branches[2], status="diverged")
    clean(results)
    assert checkpoints(results, trunk) == []


# Unfinished runs


def test_of_an_unfinished_run_the_newest_two_steps_that_can_be_read_stay(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    (run_id,) = fill(results, [make_run()])
    begin(results, run_id, 3)
    save(results, run_id, 1, 5, 8, 11)
    save(results, run_id, 2, 10, 11, 12)
    save(results, run_id, 3, 9, 13)
    damage(results, run_id, 3, 13)
    damage(results, run_id, 2, 11)
    status = results.status(run_id)
    gone = clean(results)
    # 13 stays too: nothing later supersedes it, and it is not for gc to say that it is lost.
    assert checkpoints(results, run_id) == ["1/11", "2/12", "3/13"]
    assert {key.partition("checkpoints/")[2] for key in gone} == {
        "000001/5", "000001/8", "000002/10", "000002/11", "000003/9",
    }  # fmt: skip
    assert {**results.status(run_id), "attempt": 3, "owner": "me", "heartbeat": 0} == {**status, "heartbeat": 0}
    lease = results.claim(run_id, "next")
    assert lease is not None
    assert (lease.attempt, lease.microbatch) == (5, 1)


def test_runs_of_which_nothing_is_to_go_are_not_taken(results: store.Store, make_run: Make, fill: Fill) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    begin(results, run_ids[0])
    save(results, run_ids[0], 1, 5, 10)
    begin(results, run_ids[1])
    before = tree(results)
    assert clean(results) == []
    assert tree(results) == before


def test_what_was_half_written_goes_and_finished_ones_of_orbax_stay(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    import jax.numpy as jnp

    from scaling.training import checkpoint

    run_ids = fill(results, [make_run(seed=seed) for seed in range(2)])
    for run_id in run_ids:
        begin(results, run_id)
        folder = results.folder(run_id) / "checkpoints" / "000001"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "SMALL_BYTES", 0)
            saved = checkpoint.Checkpoints([folder], run_id)
            for step in (10, LAST):
                saved.save(step, {"a": jnp.ones(3)}, {})
            saved.close()
        for name in ("15.draft", "5.dropped", "16.orbax-checkpoint-tmp", "17.orbax-checkpoint-tmp-99", "18", "mine"):
            shutil.copytree(folder / str(LAST), folder / name)
        (folder / "18" / "_CHECKPOINT_METADATA").unlink()
    end(results, run_ids[1])
    clean(results)
    assert checkpoints(results, run_ids[0]) == ["1/10", "1/20", "1/mine"]
    assert checkpoints(results, run_ids[1]) == ["1/20", "1/mine"]
    assert gc.KEPT == checkpoint.KEPT


def test_nothing_of_a_run_that_is_trained_or_failed_goes(results: store.Store, make_run: Make, fill: Fill) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    for run_id in run_ids:
        save(results, run_id, 1, 1, 2, 3, 4)
        (results.folder(run_id) / "checkpoints" / "000001" / "5.draft").mkdir()
    held = [results.claim(run_id, "worker") for run_id in run_ids]
    assert held[1] is not None
    held[1].fail("planted", "")
    folder = results.folder(run_ids[2])
    for number in range(1, leases.SUSPECT + 2):  # the first saved checkpoints, the others vanish without any
        assert number == 1 or results.claim(run_ids[2], "worker")
        os.utime(folder / leases.key_of(number), (0, 0))
    before = tree(results)
    removable = gc.find(results)
    assert removable.removals() == []
    assert sorted(removable.left.values()) == [1, 1, 1]
    assert clean(results) == []
    assert tree(results) == before


def test_a_run_that_a_worker_takes_meanwhile_is_left_to_it(results: store.Store, make_run: Make, fill: Fill) -> None:
    (run_id,) = fill(results, [make_run()])
    begin(results, run_id)
    save(results, run_id, 1, 1, 2, 3)
    removable = gc.find(results)
    assert len(removable.unfinished[run_id]) == 1
    taken = results.claim(run_id, "worker")
    assert taken is not None
    before = tree(results)
    gc.remove(results, removable, lambda removal: pytest.fail("removed from under a worker"))
    assert tree(results) == before
    assert not taken.lost


def test_no_worker_can_take_a_run_while_it_is_cleaned(results: store.Store, make_run: Make, fill: Fill) -> None:
    (run_id,) = fill(results, [make_run()])
    begin(results, run_id)
    save(results, run_id, 1, 1, 2, 3, 4)
    claims: list[leases.Lease | None] = []
    gc.remove(results, gc.find(results), lambda removal: claims.append(results.claim(run_id, "worker")))
    assert claims == [None, None]
    assert results.claim(run_id, "worker") is not None


def test_a_gc_that_lost_its_lease_removes_no_more(results: store.Store, make_run: Make, fill: Fill) -> None:
    """It was stopped for longer than the lease after its first removal."""
    (run_id,) = fill(results, [make_run()])
    begin(results, run_id)
    save(results, run_id, 1, 1, 2, 3, 4)
    gone: list[str] = []

    def lose(removal: gc.Removal) -> None:
        gone.append(removal.key)
        os.utime(results.folder(run_id) / leases.key_of(2), (0, 0))
        assert results.claim(run_id, "worker") is not None

    gc.remove(results, gc.find(results), lose)
    assert len(gone) == 1
    assert len(checkpoints(results, run_id)) == 3
    assert results.status(run_id)["owner"] == "worker"


# What dead writers left


def test_temporary_files_of_the_dead_go_at_once_and_others_when_they_are_old(
    results: store.Store, make_run: Make, fill: Fill
) -> None:
    (run_id,) = fill(results, [make_run()])
    program = (
        "import os, signal, sys; from scaling import store\n"
        f"store.Store(sys.argv[1]).claim({run_id!r}, 'victim'); print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, results.path], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    folder, here = results.folder(run_id), host.tag()
    dead, other = f"{int(killed.stdout)}-{here}-01234567", f"{os.getpid()}-{here}-01234567"
    elsewhere = f"{int(killed.stdout)}-fedcba98-01234567"  # a process of another host, which may live
    names = [folder / "leases" / ".000001.json", folder / "leases" / ".000002.json", folder / ".status.json"]
    files = [path.with_name(f"{path.name}.{writer}") for path in names for writer in (dead, other, elsewhere)]
    files += [results.sweep_folder("small") / f".sweep.json.{other}", Path(results.path) / f".clock.{other}"]
    for path in files:
        path.write_text("{")
    mine = Path(results.path) / ".mine.json"
    mine.write_text("{")
    doctor = Path(results.path) / f".doctor.{other}"
    doctor.mkdir()
    (doctor / "whole").write_text("of a doctor that was killed")
    clean(results)
    assert [path.name for path in files if path.exists()] == [p.name for p in files if dead not in p.name]
    for path in (*files, mine, doctor):
        if path.exists():
            os.utime(path, (0, 0))
    clean(results)
    assert not any(path.exists() for path in files)
    assert sorted(os.listdir(results.path)) == [".mine.json", "runs", "sweeps"]
    lease = results.claim(run_id, "next")
    assert lease is not None
    assert lease.attempt == 2


# Refusals


@pytest.mark.parametrize("newer", ["sweep", "run"])
def test_a_store_of_a_newer_version_is_refused_before_anything_is_removed(
    results: store.Store, make_run: Make, fill: Fill, newer: str
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    for run_id in run_ids:
        save(results, run_id, 1, 5, LAST)
        end(results, run_id)
    place = results.sweep_folder("small") / "sweep.json"
    if newer == "run":
        place = results.folder(max(run_ids)) / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "format": store.FORMAT + 1}))
    before = tree(results)
    with pytest.raises(ValueError, match="has format 2 and this version reads format 1"):
        clean(results)
    assert tree(results) == before


@pytest.mark.parametrize("linked", ["checkpoints", "checkpoints/000001", "checkpoints/000001/5"])
def test_nothing_outside_the_store_is_removed(
    results: store.Store, make_run: Make, fill: Fill, tmp_path: Path, linked: str
) -> None:
    (run_id,) = fill(results, [make_run()])
    save(results, run_id, 1, 5, LAST)
    end(results, run_id)
    place = results.folder(run_id) / linked
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a symbolic link, and only what lies in the store is removed"):
        clean(results)
    assert (tmp_path / "elsewhere").exists()


# The command


def test_the_command_says_what_goes_and_a_dry_run_removes_nothing(
    results: store.Store, make_run: Make, fill: Fill, tmp_path: Path
) -> None:
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    save(results, run_ids[0], 1, 5, LAST)
    end(results, run_ids[0])
    begin(results, run_ids[1])
    save(results, run_ids[1], 1, 1, 2, 3)
    held = results.claim(run_ids[2], "worker")
    assert held is not None
    size = (results.folder(run_ids[0]) / "checkpoints" / "000001" / "5" / "state.npz").stat().st_size
    before = tree(results)
    shown = command.here("gc", results.path, "--dry-run", cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    expected = [
        f"runs/{run_ids[0]}/checkpoints/000001/5 (0.0 MB): the run has ended",
        f"runs/{run_ids[1]}/checkpoints/000001/1 (0.0 MB): later steps are there",
        "1 runs are being trained: left as they are",
    ]
    assert shown.out.splitlines() == [*expected, f"would remove 2 checkpoints and files, {2 * size / 1e6:.1f} MB"]
    assert tree(results) == before
    shown = command.here("gc", results.path, cwd=tmp_path)
    assert shown.out.splitlines() == [*expected, f"removed 2 checkpoints and files, {2 * size / 1e6:.1f} MB"]
    assert [checkpoints(results, run_id) for run_id in run_ids] == [["1/20"], ["1/2", "1/3"], []]
    assert not held.lost


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    shown = command.here("gc", tmp_path / "none", cwd=tmp_path)
    assert shown.code == 2
    assert "there is no store at" in shown.err
    assert not (tmp_path / "none").exists()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[store.Store]:
    with s3.server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield store.Store(f"s3://{s3.BUCKET}/results")


def test_a_bucket_is_cleaned_like_a_folder(bucket: store.Store, make_run: Make, fill: Fill) -> None:
    results = bucket
    run_ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    for run_id in run_ids:
        run = results.run(run_id)
        for attempt, steps in ((1, (5, 10)), (2, (10, 15, LAST))):
            for step in steps:
                run.replace(f"checkpoints/{attempt:06d}/{step}/state.npz", "x" * 100)
    end(results, run_ids[0])
    begin(results, run_ids[1])
    assert results.claim(run_ids[2], "worker") is not None
    removable = gc.find(results)
    assert {removal.size for removal in removable.removals()} == {100}
    gone = clean(results)
    assert sorted(gone) == sorted(removal.key for removal in removable.removals())
    assert [checkpoints(results, run_id) for run_id in run_ids] == [
        ["2/20"], ["2/15", "2/20"], ["1/10", "1/5", "2/10", "2/15", "2/20"],
    ]  # fmt: skip
    assert clean(results) == []


# A sweep that goes on


class KilledError(BaseException):
    """A worker that is gone from one line to the next."""


@contextlib.contextmanager
def interrupted(rng: random.Random, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker ends somewhere in the body: asked to, or as if it were killed."""
    left, kill = rng.randint(1, 14), rng.random() < 0.5

    def metrics(lease: leases.Lease, rows: Any, keep: Any = leases.Lease.metrics) -> None:
        nonlocal left
        left -= 1
        if kill and left <= 0:
            raise KilledError
        keep(lease, rows)

    def asked(stop: signals.Stop) -> bool:
        if not kill and left <= 0:
            stop.signal = signal.SIGTERM
        return stop.signal is not None

    with patch.context() as inner:
        inner.setattr(leases.Lease, "metrics", metrics)
        inner.setattr(signals.Stop, "__call__", asked)
        with contextlib.suppress(KilledError):
            yield


class Damage:
    """Damages newest checkpoints, where no branch starts, of runs that have others."""

    def __init__(self, results: store.Store, rng: random.Random):
        self.results, self.rng = results, rng
        self.done: set[tuple[str, str]] = set()

    def whole(self, run_id: str) -> list[tuple[int, int]]:
        """Steps and attempts of undamaged checkpoints, the newest last."""
        found = [path for path in checkpoints(self.results, run_id) if (run_id, path) not in self.done]
        pairs = [path.split("/") for path in found if path[-1].isdecimal()]
        return sorted((int(step), int(attempt)) for attempt, step in pairs)

    def several(self) -> list[str]:
        """Unfinished runs with two whole steps or more."""
        left = (run_id for run_id in self.results.run_ids() if self.results.result(run_id) is None)
        return [run_id for run_id in left if len({step for step, _ in self.whole(run_id)}) > 1]

    def newest(self, run_ids: list[str]) -> None:
        for run_id in run_ids:
            newest = self.whole(run_id)[-1][0]
            for step, attempt in self.whole(run_id):
                if step == newest and step not in LEAVES:
                    damage(self.results, run_id, attempt, step)
                    self.done.add((run_id, f"{attempt}/{step}"))

    def drafts(self) -> None:
        """What a killed worker leaves."""
        for path in list(Path(self.results.path).glob("runs/*/checkpoints/*/*")):
            if path.name.isdecimal() and self.rng.random() < 0.3:
                shutil.copytree(path, path.with_name("99.draft"), dirs_exist_ok=True)


LEAVES = (12, 21)  # steps at which runs of 16 and 28 steps leave their trunk


def test_a_sweep_that_is_cleaned_midway_ends_with_the_same_results(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are stopped and killed at different places, everything that can go is removed, and then one more checkpoint
    of each is damaged."""
    from scaling.data import corpus

    lengths = grids.Axis(field="tokens", values=tuple(64 * steps for steps in (16, 28)))
    sweep = config.Sweep(
        name="mine",
        base=tiny(schedule=WSD),
        grid=grids.Product(parts=(grids.Axis(field="seed", values=(0, 1)), lengths)),
        execution=config.Execution(steps_per_dispatch=1, checkpoint_seconds=0.0),
    )
    rows, removed, rng = [], 0, random.Random(0)
    for name in ("undisturbed", "disturbed"):
        results = store.Store(tmp_path / name, lease_seconds=0.0)  # who was killed is gone at once
        resolved = plan.resolve(sweep, lambda data: corpus.prepare(data, lambda line: None), results)
        registering.register("mine", sweep, resolved.trunks + resolved.runs, results)
        spoil = Damage(results, rng)
        for _ in range(8 if name == "disturbed" else 0):
            with interrupted(rng, monkeypatch):
                assert main.work(results, "mine", log=lambda line: None).failed == 0
            spoil.drafts()
            if rng.random() < 0.5:
                spoil.newest(spoil.several())
            several = spoil.several()
            removed += len(clean(results))
            spoil.newest(several)
        assert main.work(results, "mine", log=lambda line: None).failed == 0
        clean(results)
        assert clean(results) == []
        found = results.results(results.run_ids())
        rows.append({run_id: {**row, "seconds": 0.0} for run_id, row in found.items()})
        assert all(len(checkpoints(results, run_id)) == 1 for run_id in found)
    assert len(rows[0]) == 6
    assert rows[1] == rows[0]  # also `flops_spent`: no trunk was lost, no branch trained from its seed
    assert removed > 15
