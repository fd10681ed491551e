"""Packs, trunks and branches: each run comes out as if it were trained alone and from its start."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import config
from scaling.config import trunks
from scaling.data import corpus as corpora
from scaling.training import checkpoint, loop, programs, states

Make = Callable[..., config.Run]
SEVEN = config.Execution(steps_per_dispatch=7, checkpoint_seconds=3600.0)
# vmap multiplies a batch of matrices where a run alone multiplies one, so that sums are taken in another order: float32
# losses of order one then differ in their last bits (1e-7), and 20 steps of Adam carry that on.
ROUNDING = 1e-5
WSD = {"kind": "wsd", "cooldown": 0.25, "warmup": {"kind": "tokens", "tokens": 64 * 3}}


@dataclasses.dataclass
class Traced:
    """A member with the rows that it recorded."""

    run: config.Run
    folder: Path
    attempt: int = 1
    stop_at: int | None = None
    trunk: loop.Trunk | None = None
    branches: tuple[int, ...] = ()
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    outcome: Any = None

    def folders(self) -> list[Path]:
        return [self.folder / f"{number:06d}" for number in range(1, self.attempt + 1)]

    def member(self) -> loop.TrainingRun:
        def stop() -> bool:
            return self.stop_at is not None and len(self.rows) >= self.stop_at

        return loop.TrainingRun(self.run, self.folders(), self.rows.extend, stop, self.trunk, self.branches)

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if row["kind"] == "train"]


def train(*members: Traced, execution: config.Execution = SEVEN) -> None:
    corpus = corpora.prepare(members[0].run.data, lambda line: None)
    for member, outcome in zip(members, loop.train([m.member() for m in members], execution, corpus), strict=True):
        member.outcome = outcome


def sha(run: config.Run) -> str:
    return corpora.prepare(run.data, lambda line: None).data_sha256


def last_state(traced: Traced) -> states.State:
    shapes = programs.program(traced.run, SEVEN).shapes
    found = checkpoint.Checkpoints(traced.folders(), traced.run.run_id(sha(traced.run))).restore(shapes)
    assert found is not None
    return found[0]


def close(found: Traced, expected: Traced) -> None:
    assert len(found.losses()) == len(expected.losses()) > 10
    np.testing.assert_allclose(found.losses(), expected.losses(), rtol=ROUNDING)
    assert found.outcome.status == expected.outcome.status == "finished"
    assert found.outcome.step == expected.outcome.step
    assert found.outcome.loss == pytest.approx(expected.outcome.loss, rel=ROUNDING)
    assert found.outcome.loss_se == pytest.approx(expected.outcome.loss_se, rel=1e-3)


@pytest.fixture(scope="module")
def varied(tiny: Make) -> list[config.Run]:
    """Runs that differ in every number that one program takes as an argument."""
    return [
        tiny(),
        tiny(seed=1, optimizer__learning_rate=0.003, optimizer__weight_decay=0.1),
        tiny(clip=0.1, z_loss=1e-2, parametrization__init_scale=0.5),
        tiny(schedule={"kind": "cosine", "warmup": {"kind": "tokens", "tokens": 64}}, tokens=64 * 15),
    ]


@pytest.fixture(scope="module")
def alone(varied: list[config.Run], tmp_path_factory: pytest.TempPathFactory) -> list[Traced]:
    members = [Traced(run, tmp_path_factory.mktemp("alone")) for run in varied]
    for member in members:
        train(member)
    return members


# Packs


def test_a_pack_gives_each_member_what_it_gets_alone(
    varied: list[config.Run], alone: list[Traced], tmp_path: Path
) -> None:
    """Also with members of other lengths: one that has finished its steps is unchanged."""
    packed = [Traced(run, tmp_path / str(i)) for i, run in enumerate(varied)]
    train(*packed)
    for found, expected in zip(packed, alone, strict=True):
        close(found, expected)
    assert len({member.outcome.loss for member in packed}) == 4  # they are four different runs


def test_members_share_the_seconds_of_the_pack(varied: list[config.Run], tmp_path: Path) -> None:
    import time

    packed = [Traced(run, tmp_path / str(i)) for i, run in enumerate(varied)]
    start = time.perf_counter()
    train(*packed)
    assert 0 < sum(member.outcome.seconds for member in packed) < time.perf_counter() - start


def test_a_diverged_member_is_frozen_and_harms_no_other(tiny: Make, alone: list[Traced], tmp_path: Path) -> None:
    bad = tiny(optimizer__learning_rate=1e30, seed=3)
    packed = [Traced(run, tmp_path / str(i)) for i, run in enumerate((tiny(), bad))]
    train(*packed)
    close(packed[0], alone[0])
    assert packed[1].outcome.status == "diverged"
    assert "training loss is" in packed[1].outcome.reason
    assert packed[1].outcome.loss is None
    assert packed[1].outcome.step < 20
    assert not packed[1].folders()[0].exists()  # of a diverged run nothing is kept


def test_members_stop_and_go_on_alone_or_in_another_pack(
    varied: list[config.Run], alone: list[Traced], tmp_path: Path
) -> None:
    first = [Traced(run, tmp_path / str(i), stop_at=7) for i, run in enumerate(varied[:3])]
    train(*first)
    assert [member.outcome.status for member in first] == ["stopped"] * 3
    again = [Traced(member.run, member.folder, attempt=2) for member in first]
    train(again[0])
    train(again[1], Traced(varied[2].edit({"seed": 9}), tmp_path / "new"), again[2])  # one of them starts from its seed
    for i, (before, after) in enumerate(zip(first, again, strict=True)):
        after.rows = before.rows + after.rows
        close(after, alone[i])


def test_one_member_may_be_stopped_while_the_others_go_on(
    varied: list[config.Run], alone: list[Traced], tmp_path: Path
) -> None:
    packed = [Traced(varied[0], tmp_path / "0", stop_at=7), Traced(varied[1], tmp_path / "1")]
    train(*packed)
    assert packed[0].outcome.status == "stopped"
    close(packed[1], alone[1])
    resumed = Traced(varied[0], tmp_path / "0", attempt=2)
    train(resumed)
    assert resumed.outcome.loss == pytest.approx(alone[0].outcome.loss, rel=ROUNDING)


def test_tokens_on_the_device_or_sent_make_no_difference(
    tiny: Make, alone: list[Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same windows reach another program, whose fusions round otherwise."""
    monkeypatch.setattr(loop, "RESIDENT_BYTES", 0)
    sent = Traced(tiny(), tmp_path)
    train(sent)
    close(sent, alone[0])


def test_windows_on_the_device_run_over_the_end_of_the_ring(tiny: Make, tmp_path: Path) -> None:
    """Several epochs of few tokens: some windows begin near the end and go on at the start."""
    run = tiny(data__train_tokens=1_000, tokens=64 * 50)
    resident = Traced(run, tmp_path / "1")
    train(resident)
    assert resident.outcome.status == "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "RESIDENT_BYTES", 0)
        sent = Traced(run, tmp_path / "2")
        train(sent)
    close(sent, resident)


# Trunks and branches


def test_runs_that_differ_in_length_alone_share_a_trunk(tiny: Make) -> None:
    runs = [tiny(schedule=WSD, tokens=64 * steps, seed=seed) for seed in (0, 1) for steps in (20, 40)]
    single = tiny(schedule=WSD, tokens=64 * 20, clip=1.0)
    found = trunks.of([*runs, single])
    assert list(found.values()) == [tuple(runs[:2]), tuple(runs[2:])]
    for trunk, branches in found.items():
        assert trunk.schedule.kind == "constant"
        longest = branches[1]
        cooldown = round(0.25 * (40 - 3))
        assert trunk.steps == trunks.branch_step(longest) == 40 - cooldown
        rates = longest.schedule.values(0.01, 40, 64)
        held = trunk.schedule.values(0.01, trunk.steps, 64)
        np.testing.assert_array_equal(rates[: trunk.steps], held)
        assert (rates[trunk.steps + 1 :] < held[-1]).all()


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine", "warmup": WSD["warmup"]},
        {"kind": "linear", "warmup": WSD["warmup"]},
        {"kind": "wsd", "cooldown": 1.0, "warmup": WSD["warmup"]},
        {"kind": "wsd", "cooldown": 0.25, "warmup": {"kind": "fraction", "fraction": 0.2}},  # another warm-up each
    ],
)
def test_runs_that_differ_from_the_start_share_nothing(tiny: Make, schedule: dict[str, Any]) -> None:
    assert trunks.of([tiny(schedule=schedule, tokens=64 * steps) for steps in (20, 40)]) == {}


@pytest.fixture(scope="module")
def family(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Traced, list[Traced]]:
    """A trunk, trained in two attempts, and the two runs that it serves, trained from their starts."""
    runs = [tiny(schedule=WSD, tokens=64 * steps) for steps in (20, 40)]
    ((trunk, branches),) = trunks.of(runs).items()
    steps = tuple(trunks.branch_step(run) for run in branches)
    folder = tmp_path_factory.mktemp("trunk")
    first = Traced(trunk, folder, branches=steps, stop_at=21)
    train(first)
    assert (first.outcome.status, steps[0]) == ("stopped", 16)
    whole = Traced(trunk, folder, attempt=2, branches=steps)
    train(whole)
    assert whole.outcome.status == "finished"
    scratch = [Traced(run, tmp_path_factory.mktemp("scratch")) for run in runs]
    for one in scratch:
        train(one)
    return whole, scratch


def test_a_branch_is_bit_equal_to_the_run_from_its_start(family: tuple[Traced, list[Traced]], tmp_path: Path) -> None:
    """The same program on the same numbers: the trunk was stopped and resumed, and only the first saw one branch."""
    trunk, scratch = family
    for number, expected in enumerate(scratch):
        at = trunks.branch_step(expected.run)
        start = loop.Trunk(trunk.folders(), trunk.run.run_id(sha(trunk.run)), at)
        branch = Traced(expected.run, tmp_path / str(number), trunk=start)
        train(branch)
        assert branch.outcome.loss == expected.outcome.loss
        assert (branch.outcome.start, branch.outcome.step) == (at, expected.run.steps)
        assert branch.losses() == expected.losses()[at:]
        assert next(row["step"] for row in branch.rows if row["kind"] == "train") == at + 1
        jax.tree.map(np.testing.assert_array_equal, last_state(branch), last_state(expected))


def test_a_branch_that_was_stopped_goes_on_from_itself(family: tuple[Traced, list[Traced]], tmp_path: Path) -> None:
    trunk, scratch = family
    start = loop.Trunk(trunk.folders(), trunk.run.run_id(sha(trunk.run)), trunks.branch_step(scratch[1].run))
    first = Traced(scratch[1].run, tmp_path, trunk=start, stop_at=0)
    train(first)
    assert first.outcome.status == "stopped"
    second = Traced(scratch[1].run, tmp_path, attempt=2, trunk=start)
    train(second)
    assert first.losses() + second.losses() == scratch[1].losses()[start.step :]
    assert second.outcome.loss == scratch[1].outcome.loss
    assert second.outcome.start == start.step


def test_branches_train_in_a_pack(family: tuple[Traced, list[Traced]], tmp_path: Path) -> None:
    trunk, scratch = family
    packed = [
        Traced(
            one.run,
            tmp_path / str(i),
            trunk=loop.Trunk(trunk.folders(), trunk.run.run_id(sha(trunk.run)), trunks.branch_step(one.run)),
        )
        for i, one in enumerate(scratch)
    ]
    train(*packed)
    for found, expected in zip(packed, scratch, strict=True):
        assert found.outcome.loss == pytest.approx(expected.outcome.loss, rel=ROUNDING)


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_a_branch_whose_trunk_cannot_be_had_is_trained_from_its_seed(
    family: tuple[Traced, list[Traced]], tmp_path: Path, damage: str
) -> None:
    trunk, scratch = family
    at = trunks.branch_step(scratch[0].run)
    shutil.copytree(trunk.folder, tmp_path / "trunk")
    for place in (tmp_path / "trunk").glob(f"*/{at}"):
        shutil.rmtree(place)
        if damage == "cut short":
            place.mkdir()
    start = loop.Trunk(sorted((tmp_path / "trunk").iterdir()), trunk.run.run_id(sha(trunk.run)), at)
    branch = Traced(scratch[0].run, tmp_path / "branch", trunk=start)
    train(branch)
    assert branch.outcome.start == 0
    assert branch.losses() == scratch[0].losses()
    assert branch.outcome.loss == scratch[0].outcome.loss


def test_a_branch_that_goes_on_knows_where_it_began(family: tuple[Traced, list[Traced]], tmp_path: Path) -> None:
    """Also when its trunk is gone meanwhile, or has come back: what it cost follows from it."""
    trunk, scratch = family
    at = trunks.branch_step(scratch[1].run)
    start = loop.Trunk(trunk.folders(), trunk.run.run_id(sha(trunk.run)), at)
    for number, (first, second) in enumerate([(start, None), (None, start)]):
        train(Traced(scratch[1].run, tmp_path / str(number), trunk=first, stop_at=0))
        again = Traced(scratch[1].run, tmp_path / str(number), attempt=2, trunk=second)
        train(again)
        assert again.outcome.start == (at if first else 0)
        assert again.outcome.loss == scratch[1].outcome.loss


def test_rates_after_a_resume_are_those_of_the_steps_after_it(tiny: Make, tmp_path: Path) -> None:
    first = Traced(tiny(), tmp_path, stop_at=0)
    train(first)
    shapes = programs.program(tiny(), SEVEN).shapes
    saved = checkpoint.Checkpoints(first.folders(), tiny().run_id(sha(tiny())))
    found = saved.restore(shapes)
    assert found is not None
    state, _ = found
    shutil.rmtree(first.folders()[0])
    saved.save(7, state, {"seconds": 3600.0, "start": 0})  # as if the first steps had taken an hour
    saved.close()
    second = Traced(tiny(), tmp_path, attempt=2)
    train(second)
    assert second.outcome.seconds > 3600
    assert all(row["tokens_per_second"] > 7 * 64 / 60 for row in second.rows if row["kind"] == "train")
