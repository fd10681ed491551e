"""What a worker claims: trunks before their branches, packs of runs that share a program; with a pretended training."""

import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, store
from scaling.config import grids
from scaling.planning import packing, plan
from scaling.storage import retry
from scaling.training import loop
from scaling.worker import context, main, precompile, protocol, queue, signals
from tests import waiting
from tests.sweep import trainers

Make = Callable[..., config.Run]
WSD = {"kind": "wsd", "cooldown": 0.25, "warmup": {"kind": "tokens", "tokens": 64}}
STEP = 32  # tokens of a step of these runs


@pytest.fixture
def planned(results: store.Store, make_run: Make, identity: Any) -> Callable[..., plan.Plan]:
    """Registers a sweep over two seeds and two lengths, 20 and 40 steps, with a trunk for each seed."""

    def register(more: tuple[int, ...] = (), **execution: Any) -> plan.Plan:
        base = make_run(schedule=WSD)
        lengths = tuple(steps * STEP for steps in (20, 40, *more))
        axes = (grids.Axis(field="seed", values=(0, 1)), grids.Axis(field="tokens", values=lengths))
        sweep = config.Sweep(
            name="small", base=base, grid=grids.Product(parts=axes), execution=config.Execution(**execution)
        )
        found: Callable[[config.Data], Any] = lambda data: identity  # noqa: E731
        resolved = plan.resolve(sweep, found, results)
        plan.register("small", sweep, resolved.trunks + resolved.runs, results)
        return resolved

    return register


def train(results: store.Store, order: list[list[tuple[int, int]]], saves: bool = True) -> Callable[..., list[Any]]:
    """A training that notes (seed, steps) of each pack and leaves the checkpoints that branches need."""

    def pretend(members: Any, execution: Any, corpus: Any) -> list[Any]:
        order.append([(m.run.seed, m.run.steps) for m in members])
        ended = []
        for m in members:
            for step in m.branches if saves else ():
                (m.checkpoints[-1] / str(step)).mkdir(parents=True)
            start = m.trunk.step if m.trunk is not None else 0
            ended.append(loop.Outcome("finished", "", m.run.steps, 1.0, 2.0, 0.1, 2.0, start))
        return ended

    return pretend


def test_trunks_come_first_and_each_run_pays_for_its_own_steps(results: store.Store, planned: Any) -> None:
    resolved = planned()
    order: list[list[tuple[int, int]]] = []
    trainer = trainers.Fake(train(results, order))
    assert main.work(results, "small", trainer=trainer, log=lambda line: None).finished == 6
    cooldown = round(0.25 * 38)
    trunk = 40 - cooldown
    assert order == [[(0, trunk)], [(1, trunk)], [(0, 40)], [(1, 40)], [(0, 20)], [(1, 20)]]
    rows = results.runs("small").set_index("run_id")
    assert rows["role"].tolist() == ["trunk"] * 2 + ["branch"] * 4
    for one in resolved.runs:
        row = rows.loc[one.run_id]
        assert row["parent_run_id"] == resolved.trunks[one.run.seed].run_id
        own = cooldown if one.run.steps == 40 else round(0.25 * 18)
        assert row["flops_spent"] == pytest.approx(row["flops"] * own / one.run.steps)
        assert row["flops"] == pytest.approx(rows.loc[row["parent_run_id"], "flops"] * one.run.steps / trunk)
    assert rows["flops_spent"].sum() == pytest.approx(sum(plan.flops_spent(p) for p in resolved.all))


def test_without_trunks_every_run_is_trained_from_its_start(results: store.Store, planned: Any) -> None:
    resolved = planned(trunks="off")
    assert resolved.trunks == ()
    order: list[list[tuple[int, int]]] = []
    trainer = trainers.Fake(train(results, order))
    assert main.work(results, "small", trainer=trainer, log=lambda line: None).finished == 4
    frame = results.runs("small")
    assert (frame["flops_spent"] == frame["flops"]).all()
    assert set(frame["role"]) == {"single"}
    again = planned()  # all runs have their results, by the same names: no trunk is of any use
    assert again.trunks == ()
    assert [p.run_id for p in again.runs] == [p.run_id for p in resolved.runs]


def test_branches_wait_for_a_trunk_that_another_worker_trains(
    results: store.Store, planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = planned()
    held = [results.claim(str(trunk.run_id), "other") for trunk in resolved.trunks]
    runs = queue.Queue(results, "small", print)
    assert [run.trunk for run in runs.left()] == [None, None] + [p.run_id for p in _by_cost(resolved)]
    assert not any(runs.ready(run) for run in runs.left() if run.trunk)
    log: list[str] = []
    waiting_again, slept = threading.Event(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 1:
            waiting_again.set()
        threading.Event().wait(0.02)

    monkeypatch.setattr(queue, "time", types.SimpleNamespace(sleep=sleep))
    order: list[list[tuple[int, int]]] = []
    trainer = trainers.Fake(train(results, order))
    thread = threading.Thread(target=main.work, args=(results, "small"), kwargs={"trainer": trainer, "log": log.append})
    thread.start()
    waiting_again.wait(waiting.LIMIT_SECONDS)
    assert order == []
    assert thread.is_alive()
    for lease, trunk in zip(held, resolved.trunks, strict=True):
        assert lease is not None
        for step in (20 - round(0.25 * 18), trunk.run.steps):
            (lease.checkpoints[-1] / str(step)).mkdir(parents=True)
        lease.release("done with")
    thread.join(waiting.LIMIT_SECONDS)
    assert log.count("waiting for trunks that other workers train") == 1
    assert sorted(order) == sorted([[(s, n)] for s in (0, 1) for n in (20, 40, 30)])


def _by_cost(resolved: plan.Plan) -> list[plan.Planned]:
    """The trunks of the branches in the order of their cost."""
    trunks = {trunk.run.seed: trunk for trunk in resolved.trunks}
    return [trunks[p.run.seed] for p in sorted(resolved.runs, key=lambda p: p.run.tokens, reverse=True)]


def test_branches_of_a_diverged_trunk_diverge_with_it(results: store.Store, planned: Any) -> None:
    planned()
    trained = []

    def diverge(members: Any, execution: Any, corpus: Any) -> list[Any]:
        trained.extend(m.run.steps for m in members)
        return [loop.Outcome("diverged", "training loss is nan at step 3", 3, 1.0) for m in members]

    assert main.work(results, "small", trainer=trainers.Fake(diverge), log=lambda line: None).diverged == 6
    assert trained == [30, 30]
    frame = results.runs("small")
    branches = frame[frame["role"] == "branch"]
    assert branches["reason"].str.contains(r"its trunk [0-9a-f]{16} diverged: training loss is nan at step 3").all()
    assert (branches["flops_spent"] == 0).all()


def test_branches_that_leave_before_the_trunk_diverged_are_trained(results: store.Store, planned: Any) -> None:
    """The trunk ended at step 25 of 30 without the checkpoint of step 16, which no branch wanted then, say."""
    planned()
    trained = []

    def diverge(members: Any, execution: Any, corpus: Any) -> list[Any]:
        trained.extend(m.run.steps for m in members)
        if members[0].branches:
            return [loop.Outcome("diverged", "training loss is nan at step 25", 25, 1.0) for m in members]
        return [loop.Outcome("finished", "", m.run.steps, 1.0, 2.0, 0.1, 2.0) for m in members]

    tally = main.work(results, "small", trainer=trainers.Fake(diverge), log=lambda line: None)
    assert (tally.diverged, tally.finished) == (4, 2)
    assert trained == [30, 30, 20, 20]


def test_a_sweep_may_grow_or_go_on_without_its_trunks(results: store.Store, planned: Any) -> None:
    """Trunks are no runs that a sweep could lose: another longest run has another trunk."""
    before = {p.run_id for p in planned().trunks}
    assert planned(trunks="off").trunks == ()
    grown = planned(more=(80,))
    assert len(grown.runs) == 6
    assert before.isdisjoint(p.run_id for p in grown.trunks)
    assert len(results.sweep("small")["members"]) == 8


def test_no_trunk_is_trained_for_one_short_run(results: store.Store, planned: Any) -> None:
    planned(trunks="off")
    main.work(results, "small", trainer=trainers.Fake(train(results, [])), log=lambda line: None)
    grown = planned(more=(30,))
    assert grown.trunks == ()
    assert sum(results.result(str(p.run_id)) is None for p in grown.runs) == 2


def test_branches_of_a_trunk_that_cannot_be_had_are_trained_from_their_start(
    results: store.Store, planned: Any
) -> None:
    """Its checkpoints were removed, say: the runs are the same without it."""
    planned()
    order: list[list[tuple[int, int]]] = []
    trainer = trainers.Fake(train(results, order, saves=False))
    assert main.work(results, "small", trainer=trainer, log=lambda line: None).finished == 6
    frame = results.runs("small")
    assert (frame["flops_spent"] == frame["flops"]).all()


def test_runs_of_one_program_and_length_are_claimed_together(results: store.Store, planned: Any) -> None:
    planned(pack=8)
    order: list[list[tuple[int, int]]] = []
    trainer = trainers.Fake(train(results, order))
    assert main.work(results, "small", trainer=trainer, log=lambda line: None).finished == 6
    assert order == [[(0, 30), (1, 30)], [(0, 40), (1, 40)], [(0, 20), (1, 20)]]


def test_workers_leave_each_other_their_share_of_a_pack(
    results: store.Store, planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(protocol.WORKERS, "2")
    planned(pack=8)
    order: list[list[tuple[int, int]]] = []
    main.work(results, "small", trainer=trainers.Fake(train(results, order)), log=lambda line: None)
    assert [len(pack) for pack in order] == [1] * 6


def test_a_pack_that_fails_is_tried_run_by_run(results: store.Store, planned: Any) -> None:
    resolved = planned(pack=8, trunks="off")
    order: list[list[tuple[int, int]]] = []
    good = train(results, order)

    def fail(members: Any, execution: Any, corpus: Any) -> list[Any]:
        if any(m.run.seed == 1 for m in members):
            order.append([(m.run.seed, m.run.steps) for m in members])
            raise RuntimeError("planted")
        return good(members, execution, corpus)

    tally = main.work(results, "small", trainer=trainers.Fake(fail), log=lambda line: None)
    assert (tally.finished, tally.failed) == (2, 2)
    assert order == [[(0, 40), (1, 40)], [(0, 40)], [(1, 40)], [(0, 20), (1, 20)], [(0, 20)], [(1, 20)]]
    for one in resolved.runs:
        assert results.statuses("small")[str(one.run_id)] == ("failed" if one.run.seed else "finished")


def test_the_next_program_is_compiled_while_runs_train(
    results: store.Store, make_run: Make, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is a core to spare, and not for runs that share the present program."""
    fill(results, [make_run(), make_run(seed=1), make_run(model__width=4)])
    compiled: list[tuple[int, int]] = []
    cores = {0, 1}
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)

    class Compiling(trainers.Fake):
        def program_of(self, run: config.Run, execution: config.Execution, members: int, corpus: Any) -> None:
            compiled.append((run.model.width, members))

    stop = signals.Stop()
    work = context.Work(
        results=results,
        sweep_name="small",
        settings=config.Sweep(name="small", base=make_run()),
        runs=queue.Queue(results, "small", print),
        trainer=Compiling(lambda *_: []),
        about={},
        stop=stop,
        waiter=retry.Waiter(stop, print),
        log=print,
    )
    claims, precompiler = next(work.runs.claims("me", {}, work.most, lambda: False)), precompile.Precompiler(work)
    thread = precompiler.start_next(claims)
    assert thread is not None
    thread.join()
    assert (claims[0].run.run.model.width, compiled) == (8, [(4, 1)])
    cores = {0}
    assert precompiler.start_next(claims) is None


def test_what_a_trunk_left_is_removed_with_its_last_branch(results: store.Store, planned: Any) -> None:
    resolved = planned()
    main.work(results, "small", trainer=trainers.Fake(train(results, [])), log=lambda line: None)
    for trunk in resolved.trunks:
        (folder,) = results.checkpoints(str(trunk.run_id))
        assert [path.name for path in folder.iterdir()] == [str(trunk.run.steps)]  # the last one is kept


def test_small_models_are_packed_on_accelerators_and_not_on_the_cpu(make_run: Make) -> None:
    small, large = make_run(), make_run(model__width=4096, model__depth=8, batch_size=64, tokens=64 * 16 * 20)
    auto = config.Execution()
    assert packing.most(small, auto, "cpu", 1e6, None) == 1
    assert packing.most(small, auto, "NVIDIA H200", 1e6, 1e11) == packing.MOST
    assert packing.most(small, auto, "NVIDIA H200", 1e10, 1e11) == 8  # as many as fit
    assert packing.most(large, auto, "NVIDIA H200", 1e9, 1e11) == 1
    assert packing.most(small, config.Execution(pack=3), "cpu", 1e6, None) == 3


def test_a_checkpoint_is_found_by_its_step(results: store.Store, make_run: Make, fill: Any, tmp_path: Path) -> None:
    (run_id,) = fill(results, [make_run()])
    assert not results.has_checkpoint(run_id)
    (results.folder(run_id) / "checkpoints" / "000001" / "5.orbax-checkpoint-tmp").mkdir(parents=True)  # unfinished
    assert not results.has_checkpoint(run_id)
    (results.folder(run_id) / "checkpoints" / "000002" / "5").mkdir(parents=True)
    assert results.has_checkpoint(run_id)
    assert results.has_checkpoint(run_id, 5)
    assert not results.has_checkpoint(run_id, 4)


def test_the_longest_runs_come_first_by_what_was_predicted_and_else_by_flops(
    results: store.Store, make_run: Make, fill: Any
) -> None:
    small, large = make_run(tokens=640), make_run(model__width=16, tokens=640)
    ids = fill(results, [small, large])
    assert [run.run_id for run in queue.Queue(results, "small", print).left()] == [ids[1], ids[0]]
    members = results.sweep("small")["members"]
    for member, seconds in zip(members, (9.0, 5.0), strict=True):
        member["labels"]["predicted_seconds"] = seconds
    results.add_sweep("small", results.sweep("small")["config"], members)
    assert [run.run_id for run in queue.Queue(results, "small", print).left()] == ids
