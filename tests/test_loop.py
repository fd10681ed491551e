"""Training end to end on a source of known entropy: what it reaches, how it resumes, how it ends."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import config, counting
from scaling.data import batches
from scaling.data import corpus as corpora
from scaling.data.sources import synthetic
from scaling.training import checkpoint, evaluation, loop, programs, runs, states

Make = Callable[..., config.Run]
SEVEN = config.Execution(steps_per_dispatch=7, checkpoint_seconds=3600.0)


@dataclasses.dataclass
class Trained:
    """One training: its outcome, its rows, and where its checkpoints lie."""

    outcome: loop.Outcome
    rows: list[dict[str, Any]]
    folder: Path

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]


def train(
    run: config.Run,
    folder: Path,
    execution: config.Execution = SEVEN,
    attempt: int = 1,
    stop_at: int | None = None,
) -> Trained:
    """An attempt at a run; `stop_at` asks it to stop once that many steps are recorded or dispatched."""
    rows: list[dict[str, Any]] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return stop_at is not None and asked * execution.steps_per_dispatch >= stop_at

    corpus = corpora.prepare(run.data, lambda line: None)
    folders = [folder / f"{number:06d}" for number in range(1, attempt + 1)]
    outcome = loop.train([loop.TrainingRun(run, folders, rows.extend, stop)], execution, corpus)[0]
    return Trained(outcome, rows, folder)


def saved(run: config.Run, folder: Path, execution: config.Execution = SEVEN) -> tuple[states.State, dict[str, Any]]:
    """The newest state in a run's checkpoints."""
    shapes = programs.program(run, execution).shapes
    corpus = corpora.prepare(run.data, lambda line: None)
    found = checkpoint.Checkpoints(sorted(folder.iterdir()), run.run_id(corpus.data_sha256)).restore(shapes)
    assert found is not None
    return found


def nats_of(program: programs.Program, params: Any, windows: np.ndarray) -> np.ndarray:
    """Of every token of a batch, of the first member."""
    return np.asarray(program.evaluate(params, {"tokens": windows}, None)["loss"][0])[0]


def bit_equal(one: Any, other: Any) -> None:
    left, right = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(left) == len(right) > 5
    for a, b in zip(left, right, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="session")
def whole(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The tiny run, 20 steps in dispatches of seven, uninterrupted."""
    return train(tiny(), tmp_path_factory.mktemp("whole"))


def test_a_trained_model_approaches_the_entropy_rate_from_above(tiny: Make, tmp_path: Path) -> None:
    """A chain of order one needs only the last token: within 0.05 nats of the truth, and never better than it."""
    run = tiny(tokens=64 * 600, data__validation_tokens=4_096)
    trained = train(run, tmp_path, config.Execution(steps_per_dispatch=7, evaluations=4))
    source: Any = run.data.source
    truth, outcome = synthetic.entropy_rate(source), trained.outcome
    assert outcome.status == "finished"
    assert outcome.loss is not None
    assert outcome.loss_se is not None
    losses = [row["loss"] for row in trained.kind("validation")]
    assert losses[0] > losses[-1]
    assert truth - 3 * outcome.loss_se < outcome.loss < truth + 0.05 + 3 * outcome.loss_se
    assert 1.0 < truth < math.log(8)  # neither given away nor noise


@pytest.mark.parametrize("resident", [True, False])
def test_nothing_is_sent_to_or_from_the_device_unasked(
    tiny: Make, whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    """From the seed to the last checkpoint, with tokens on the device and with batches that are sent to it."""
    if not resident:
        monkeypatch.setattr(loop, "RESIDENT_BYTES", 0)
    with jax.transfer_guard("disallow"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.float32(1.0))  # the guard guards
        found = train(tiny(), tmp_path)
    # the same batches; another program, where they are sent, may round sums another way
    losses, expected = ([row["loss"] for row in trained.kind("train")] for trained in (found, whole))
    assert losses == pytest.approx(expected, rel=0 if resident else 1e-5)


def test_rows_count_steps_tokens_and_flops(whole: Trained, tiny: Make) -> None:
    run = tiny()
    rows = whole.kind("train")
    per_token = counting.flops_per_token(run.model, 256, 16)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["tokens"] for row in rows] == [64 * (i + 1) for i in range(20)]
    assert [row["flops"] for row in rows] == [64 * (i + 1) * per_token for i in range(20)]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 / 3, 0.02 / 3] + [0.01] * 18)
    assert all(row["flops_per_second"] == pytest.approx(row["tokens_per_second"] * per_token) for row in rows)
    assert "mfu" not in rows[0]  # no peak is known for a CPU
    assert rows[0]["loss"] == pytest.approx(math.log(256), abs=1.0)
    assert all(row["gradient_norm"] > 0 and row["param_norm"] > 0 and 0 < row["update_ratio"] < 1 for row in rows)
    json.dumps(whole.rows, allow_nan=False)


def test_losses_are_those_of_the_batches_of_each_step(whole: Trained, tiny: Make) -> None:
    """The metrics are read a chunk late: the row of a step must still be of its own batch."""
    run = tiny()
    corpus = corpora.prepare(run.data, lambda line: None)
    data = batches.Batches(corpus.train_examples(run.context), run.batch_size, run.seed)
    program = programs.program(run, SEVEN)
    start = program.stack([program.init(np.uint32(0), np.float32(1.0))])
    nats = np.asarray(program.evaluate(start.params, data.at(0), None)["loss"][0])
    assert whole.kind("train")[0]["loss"] == pytest.approx(nats.mean(), rel=1e-5)


def test_validation_is_over_every_token_with_its_error_and_bits(whole: Trained, tiny: Make) -> None:
    run = tiny()
    corpus = corpora.prepare(run.data, lambda line: None)
    state, _ = saved(run, whole.folder)
    program = programs.program(run, SEVEN)
    windows = corpus.validation_examples(run.context)["tokens"]
    assert windows.shape == (32, 17)
    packed = program.stack([state]).params
    nats = np.concatenate([nats_of(program, packed, windows[i : i + 4]) for i in range(0, 32, 4)])
    means = nats.astype(np.float64).mean(axis=1)
    outcome = whole.outcome
    assert outcome.loss == pytest.approx(means.mean(), rel=1e-6)
    assert outcome.loss_se == pytest.approx(means.std(ddof=1) / math.sqrt(32), rel=1e-5)
    assert outcome.bits_per_byte == pytest.approx(means.mean() / math.log(2), rel=1e-6)  # a byte a token
    (row,) = whole.kind("validation")
    assert (row["step"], row["tokens"], row["loss"]) == (20, 1280, outcome.loss)


def test_bits_per_byte_count_the_bytes_of_the_targets(whole: Trained, tiny: Make) -> None:
    """Where tokens stand for two bytes the bits of each halve; ends of documents stand for none."""
    run = tiny()
    corpus = corpora.prepare(run.data, lambda line: None)
    double = dataclasses.replace(corpus, token_bytes=2 * corpus.token_bytes)
    program = programs.program(run, SEVEN)
    params = program.stack([saved(run, whole.folder)[0]]).params
    one, two = (evaluation.validate(program, params, run, each)[0] for each in (corpus, double))
    assert two.bits_per_byte == pytest.approx(one.bits_per_byte / 2)
    assert two.loss == one.loss


def test_a_last_validation_batch_that_is_not_full_counts_as_it_is(whole: Trained, tiny: Make) -> None:
    run = tiny(data__validation_tokens=16 * 6)  # six windows, batches of four
    corpus = corpora.prepare(run.data, lambda line: None)
    program = programs.program(tiny(), SEVEN)
    params = program.stack([saved(tiny(), whole.folder)[0]]).params
    windows = corpus.validation_examples(16)["tokens"]
    by_hand = [nats_of(program, params, np.repeat(w[None], 4, 0))[0].mean() for w in windows]
    assert evaluation.validate(program, params, run, corpus)[0].loss == pytest.approx(np.mean(by_hand), rel=1e-6)


@pytest.mark.parametrize(
    ("evaluations", "steps"), [(1, [20]), (4, [5, 10, 15, 20]), (3, [7, 13, 20]), (50, list(range(1, 21)))]
)
def test_evaluations_are_spaced_equally_and_end_at_the_end(evaluations: int, steps: list[int]) -> None:
    assert runs.evaluation_steps(20, evaluations) == steps


def test_evaluations_change_nothing_of_the_training(whole: Trained, tiny: Make, tmp_path: Path) -> None:
    trained = train(tiny(), tmp_path, SEVEN.edit({"evaluations": 3}))
    assert [row["step"] for row in trained.kind("validation")] == [7, 13, 20]
    assert [row["loss"] for row in trained.kind("train")] == [row["loss"] for row in whole.kind("train")]
    bit_equal(saved(tiny(), tmp_path)[0], saved(tiny(), whole.folder)[0])


# Resuming


@pytest.mark.parametrize("stop_at", [[1], [14], [1, 1]])
def test_stopped_and_resumed_is_bit_equal_to_uninterrupted(
    whole: Trained, tiny: Make, tmp_path: Path, stop_at: list[int]
) -> None:
    rows = []
    for attempt, at in enumerate(stop_at, 1):
        stopped = train(tiny(), tmp_path, attempt=attempt, stop_at=at)
        assert (stopped.outcome.status, stopped.outcome.loss) == ("stopped", None)
        rows += stopped.kind("train")
    before = saved(tiny(), tmp_path)[1]["seconds"]
    resumed = train(tiny(), tmp_path, attempt=len(stop_at) + 1)
    rows += resumed.kind("train")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole.kind("train")]
    assert resumed.outcome.loss == whole.outcome.loss
    assert resumed.outcome.loss_se == whole.outcome.loss_se
    bit_equal(saved(tiny(), tmp_path)[0], saved(tiny(), whole.folder)[0])
    assert resumed.outcome.seconds > before > 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{len(stop_at) + 1:06d}"]  # older attempts are removed


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from scaling.data.sources import synthetic
from scaling import config
from scaling.training import loop
from scaling.data import corpus
run = config.Run.from_json({run!r})
def record(rows):
    if rows[-1]["step"] >= 14: os.kill(os.getpid(), signal.SIGKILL)
member = loop.TrainingRun(run, [Path({folder!r}) / "000001"], record, lambda: False)
loop.train([member], config.Execution(steps_per_dispatch=7, checkpoint_seconds=0.0), corpus.prepare(run.data))
"""


def test_a_process_killed_while_it_trains_loses_no_more_than_a_dispatch(
    whole: Trained, tiny: Make, tmp_path: Path
) -> None:
    """SIGKILL while checkpoints are written in the background; the next attempt ends bit-equal."""
    code = KILLED.format(root=str(Path(__file__).parents[1]), run=tiny().to_json(), folder=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "000001").is_dir()
    resumed = train(tiny(), tmp_path, attempt=2)
    assert resumed.kind("train")[0]["step"] in (1, 8)  # the checkpoint of step 7 may not have been whole yet
    assert resumed.outcome.loss == whole.outcome.loss
    bit_equal(saved(tiny(), tmp_path)[0], saved(tiny(), whole.folder)[0])


def test_a_run_that_ended_before_its_result_was_stored_ends_the_same_again(
    whole: Trained, tiny: Make, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    again = train(tiny(), tmp_path, attempt=2)
    assert again.kind("train") == []
    assert (again.outcome.status, again.outcome.step) == ("finished", 20)
    assert again.outcome.loss == whole.outcome.loss


# Other ends


@pytest.fixture(scope="module")
def exploding(tiny: Make) -> config.Run:
    return tiny(optimizer={"kind": "sgd", "learning_rate": 1e6, "momentum": 0.0}, schedule__warmup__fraction=0.0)


def test_a_run_that_explodes_ends_as_diverged_with_the_step(exploding: config.Run, tmp_path: Path) -> None:
    trained = train(exploding.edit({"tokens": 64 * 70}), tmp_path)
    outcome = trained.outcome
    assert (outcome.status, outcome.loss, outcome.loss_se) == ("diverged", None, None)
    assert outcome.step < 70
    rows = trained.kind("train")
    bad = next(row["step"] for row in rows if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])))
    assert outcome.reason.endswith(f"at step {bad}")
    assert "nan" in outcome.reason or "inf" in outcome.reason
    assert trained.kind("validation") == []


@pytest.mark.parametrize("steps", [7, 20])  # 7: the divergence is seen at the last step
def test_a_diverged_run_that_lost_its_result_does_not_come_back_as_finished(
    exploding: config.Run, tmp_path: Path, steps: int
) -> None:
    run = exploding.edit({"tokens": 64 * steps})
    first = train(run, tmp_path)
    assert first.outcome.status == "diverged"
    again = train(run, tmp_path, attempt=2)
    assert (again.outcome.status, again.outcome.loss) == ("diverged", None)
    assert again.outcome.reason == first.outcome.reason
    assert list(tmp_path.glob("*/*")) == []


def test_a_checkpoint_of_another_config_is_refused(whole: Trained, tiny: Make, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"is a checkpoint of another config .*; remove the folder or run the config"):
        train(tiny(seed=1), tmp_path, attempt=2)


def test_a_full_disk_is_refused_before_training(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpora.prepare(tiny().data, lambda line: None)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"checkpoints of this run need .* GB .* has 1e-06 GB free; free some space"):
        train(tiny(), tmp_path / "new")
    pack = [
        loop.TrainingRun(tiny(seed=seed), [tmp_path / str(seed)], lambda rows: None, lambda: False, branches=kept)
        for seed, kept in enumerate([(), (3, 5)])
    ]
    with pytest.raises(OSError, match=rf"\({checkpoint.KEPT + 3} × "):
        loop.train(pack, SEVEN, corpus)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_can_be_dropped_at_the_end(tiny: Make, tmp_path: Path) -> None:
    execution = SEVEN.edit({"keep_last_checkpoint": False, "checkpoint_seconds": 0.0})
    assert train(tiny(), tmp_path, execution).outcome.status == "finished"
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_as_long_as_the_run_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a warm-up of 20 steps does not end within a run of 20 steps"):
        train(tiny(schedule__warmup__fraction=1.0), tmp_path)


def test_a_corpus_shorter_than_a_batch_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than a batch of 4; use more tokens"):
        train(tiny(data__train_tokens=50), tmp_path)


def test_a_request_to_stop_need_not_wait_for_long_dispatches(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatch takes about ten seconds where a step takes long, and all steps that it may where it does not."""
    monkeypatch.setattr(loop.devices, "cores", lambda: [0, 1])
    small, large = tiny(), tiny(model__width=2048, model__depth=24, batch_size=32, tokens=32 * tiny().context * 100)
    work = large.batch_tokens * loop.counting.flops_per_token(large.model, large.vocabulary_size, large.context)
    assert loop.at_once(small, 1, 32) == loop.at_once(small, 8, 32) == 32
    assert loop.at_once(large, 1, 32) == max(1, int(10 * 2 * loop.CPU_FLOPS / work)) < 32
    monkeypatch.setattr(loop.devices, "peak_flops", lambda kind: 1e15)
    assert loop.at_once(large, 1, 32) == 32
    monkeypatch.setattr(loop.devices, "peak_flops", lambda kind: work)
    assert loop.at_once(large, 1, 32) == 3
    assert loop.at_once(large, 8, 32) == 1
