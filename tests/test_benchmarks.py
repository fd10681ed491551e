"""Benchmarks: the parts that measure nothing. PyTorch is never needed here."""

import collections
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import anatomy, gpt2_scaling, gpu, one_run, startup, sweep, train_step
from benchmarks import memory as memory_benchmark
from configs import demo
from scaling import counting, memory
from scaling.config import loading


@pytest.mark.parametrize("target", train_step.SIZES)
def test_sizes_are_near_their_names(target: float) -> None:
    size = train_step.size_of(target, vocabulary=256, context=256)
    assert abs(size.params_non_embedding / target - 1) < 0.15
    width, depth, _ = train_step.SIZES[target]
    assert size.params_non_embedding == depth * (12 * width**2 + 13 * width) + 2 * width  # GPT-2 by hand
    assert size.params == size.params_non_embedding + (256 + 256) * width


def test_a_size_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no size of 3 million parameters; choose from 0\.1, 0\.4, 1\.6, 6, 25"):
        train_step.size_of(3e6, 256, 256)


def test_medians_and_ratios_are_taken_round_by_round() -> None:
    rounds = [
        {"ours": 100.0, "torch compiled": 50.0, "torch eager": 10.0},
        {"ours": 30.0, "torch compiled": 10.0, "torch eager": 20.0},  # a slow round for all: the ratio stays
        {"ours": 90.0, "torch compiled": 100.0, "torch eager": 10.0},
    ]
    result = train_step.compare(rounds)
    assert result.medians == {"ours": 90.0, "torch compiled": 50.0, "torch eager": 10.0}
    assert (result.lowest, result.ratio, result.highest) == (0.9, 1.5, 2.0)
    with pytest.raises(ValueError, match="measure at least 1"):
        train_step.compare([])


def test_every_round_measures_every_contender_and_rounds_alternate() -> None:
    for number, settling in ((0, True), (0, False), (1, True), (2, True)):
        assert {name for name, _ in train_step.order(number, settling)} == set(train_step.CONTENDERS)
    assert train_step.order(1, False) == train_step.order(2, False)[::-1]
    assert set(train_step.order(0, True)) == {(name, s) for name in train_step.CONTENDERS for s in (True, False)}
    assert len(train_step.order(0, False)) == 3


def test_the_default_takes_under_half_an_hour_and_quick_under_three_minutes() -> None:
    peak = 2e11  # of two cores with AVX2, in FLOP/s
    for settings, minutes in ((train_step.Settings(), 30), (train_step.Settings(quick=True), 3)):
        settled = train_step.settle(settings)
        sizes = [train_step.size_of(round(n * 1e6), 256, t) for n in settled.sizes for t in settled.context]
        assert train_step.predicted_seconds(settled, sizes, peak) < 60 * minutes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"context": ()}, r"context is \(\)"),
        ({"rest": -1.0}, "rest is -1"),
        ({"vocabulary": 100}, "at least 258"),
    ],
)
def test_settings_that_measure_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_step.settle(dataclasses.replace(train_step.Settings(), **change))


def test_both_sides_are_told_the_same() -> None:
    settings = train_step.settle(train_step.Settings(batch=4, vocabulary=512))
    size = train_step.size_of(0.4e6, 512, 128)
    spec = train_step.spec_of(settings, size, "torch eager", "float32")
    run = gpt2_scaling.run_of(spec)
    assert (run.model, run.context, run.batch_size, run.vocabulary_size) == (size.model, 128, 4, 512)
    assert counting.params(run.model, run.vocabulary_size, run.context) == size.params
    assert math.isclose(run.optimizer.decay(spec["learning_rate"]), spec["learning_rate"] * spec["weight_decay"])


@pytest.mark.parametrize("fused", [True, False])
def test_products_are_those_of_the_exact_count(fused: bool) -> None:
    for target in train_step.SIZES:
        size = train_step.size_of(target, 256, 128)
        spec = train_step.spec_of(train_step.Settings(), size, "ours", "float32")
        weights = sum(inputs * outputs * times for inputs, outputs, times in anatomy.products(spec, fused))
        width, depth = size.model.width, size.model.depth
        assert weights == 12 * width**2 * depth + 256 * width  # GPT-2 by hand
        attention = 3 * 4 * depth * width * (128 + 1) / 2  # scores and mixture, forward and twice backward
        flops = anatomy.matmul_flops(spec) / (16 * 128)
        assert flops == pytest.approx(size.flops_per_token - attention)


def test_what_is_neither_matmul_nor_attention_is_the_rest() -> None:
    spec = train_step.spec_of(train_step.Settings(), train_step.size_of(0.4e6, 256, 128), "ours", "float32")
    tokens = 16 * 128
    found = anatomy.anatomy(spec, tokens / 0.2, {"matmul_seconds": 0.1, "attention_seconds": 0.04})
    assert found.step == pytest.approx(0.2)
    assert found.rest == pytest.approx(0.3)
    line = anatomy.table([("0.4M", 128, found, found)], peak=anatomy.matmul_flops(spec) / 0.05).splitlines()[-1]
    assert line.count("(50%)") == line.count("20%") == line.count("30%") == 2


def test_a_python_without_torch_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install torch"):
        train_step.torch_version(tmp_path / "no-python")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')  # no site-packages
    bare.chmod(0o755)
    with pytest.raises(ValueError, match=r"No module named 'numpy'|No module named 'torch'"):
        train_step.torch_version(bare)


# sweep


def grid_items(settings: sweep.Settings = sweep.Settings()) -> list[sweep.Item]:
    points = sweep.sweep_of(settings).points()
    return [sweep.Item(point.run, f"{n:016x}", float(point.run.tokens)) for n, point in enumerate(points)]


def baseline_of(item: sweep.Item, rest: float = 10.0) -> sweep.Measured:
    """As if a step took a microsecond a unit of width, and each process `rest` seconds beside."""
    training = item.run.steps * item.size[0] * 1e-6
    return sweep.Measured(item.run_id, item.size, item.run.steps, rest + training, training, 2.0)


def test_the_grid_has_96_runs_whose_budgets_share_their_beginning() -> None:
    items = grid_items(sweep.Settings(steps=1000))
    assert len(items) == 96
    assert len({item.size for item in items}) == len({item.budget for item in items}) == 4
    assert sum(item.budget for item in items) == pytest.approx(24 * (1 + 2 + 4 + 8) * 512_000)
    alike = [item.run for item in items if item.size == (16, 2)][:4]
    rates = [run.schedule.values(run.optimizer.learning_rate, run.steps, run.batch_tokens) for run in alike]
    assert [len(values) for values in rates] == [1000, 2000, 4000, 8000]
    stable = 100 + round(0.8 * 900)  # the warm-up, and what the shortest run's cooldown leaves of the rest
    for values in rates[1:]:
        np.testing.assert_array_equal(values[:stable], rates[0][:stable])
    assert rates[0][stable + 1] < rates[1][stable + 1]


def test_the_demo_is_the_demo() -> None:
    assert sweep.sweep_of(sweep.Settings(grid="demo")) == demo.sweep()


@pytest.mark.parametrize("count", [4, 16, 23])
def test_a_sample_holds_every_size_and_budget_as_often_as_can_be(count: int) -> None:
    chosen = sweep.sampled(grid_items(), count)
    assert len({item.run_id for item in chosen}) == count
    for mark in (lambda item: item.size, lambda item: item.budget):
        often = collections.Counter(map(mark, chosen)).values()
        assert len(often) == 4
        assert max(often) - min(often) <= 1
    if count >= 16:
        assert len({(item.size, item.budget) for item in chosen}) == 16
        assert {item.run.seed for item in chosen} == {0, 1}
        assert len({item.run.optimizer.learning_rate for item in chosen}) == 3


@pytest.mark.parametrize("count", [0, 3, 97])
def test_a_sample_that_cannot_stand_for_the_grid_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"a sample of {count} of 96 runs .* take 4 to 96"):
        sweep.sampled(grid_items(), count)


def test_the_estimate_is_exact_where_steps_cost_what_their_size_says() -> None:
    items = grid_items()
    everything = [baseline_of(item) for item in items]
    exact = sum(one.seconds for one in everything)
    for count in (4, 16, 96):
        found = sweep.estimate(items, [baseline_of(item) for item in sweep.sampled(items, count)])
        assert found.seconds == pytest.approx(exact)
        assert found.training == pytest.approx(exact - 96 * 10)
        assert (found.measured, found.runs) == (count, 96)
    with pytest.raises(ValueError, match=r"no run of size \(16, 2\) was measured"):
        sweep.estimate(items, [one for one in everything if one.size != (16, 2)])


def test_losses_are_compared_run_by_run() -> None:
    ones = [dataclasses.replace(baseline_of(item), loss=2.0 + n) for n, item in enumerate(grid_items()[:3])]
    ours = {ones[0].run_id: 2.01, ones[1].run_id: 2.95, "another": 7.0}
    assert sweep.largest_difference(ones, ours) == (pytest.approx(0.05), 2)
    assert sweep.largest_difference(ones, {ones[0].run_id: None})[0] == math.inf  # diverged on one side alone
    both = dataclasses.replace(ones[0], loss=None)
    assert sweep.largest_difference([both], {both.run_id: None}) == (0.0, 1)


def test_a_sweep_that_measures_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 5"):
        sweep.settle(sweep.Settings(steps=5))
    with pytest.raises(ValueError, match="leave out --grid demo"):
        sweep.settle(sweep.Settings(grid="demo", quick=True))
    assert len(grid_items(sweep.settle(sweep.Settings(quick=True)))) == 8


def test_validation_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 7.0, 11.0, 12.5])
    monkeypatch.setattr(one_run.time, "perf_counter", lambda: next(now))
    record = one_run.Record(tmp_path / "metrics.jsonl")
    for kind in ("train", "validation", "train", "validation"):
        record([{"kind": kind, "step": 1}])
    assert record.validating == 2.0 + 1.5
    assert [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][
        1
    ] == "validation"


# startup


def test_what_a_start_tells_is_read() -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:       116 |        216 |   jax._src.pallas",
        "import time:      1000 |       1216 | jax",
        "Finished tracing train for jit in 0.668000000 sec",
        "Finished jaxpr to MLIR module conversion jit(train) in 0.231000000 sec",
        "Finished XLA compilation of jit(train) in 0.338000000 sec",
        "Finished XLA compilation of jit(<lambda>) in 1.500000000 sec",
    ]
    assert startup.imports(lines) == {"jax": pytest.approx(1116e-6)}
    assert startup.compiling(lines) == {
        ("train", "trace"): 0.668, ("train", "lower"): 0.231, ("train", "compile or load"): 0.338,
        ("<lambda>", "compile or load"): 1.5,
    }  # fmt: skip


def test_programs_are_counted_by_their_names(tmp_path: Path) -> None:
    for name in ("jit_train-0ab1-cache", "jit__lambda-2c-cache", "jit_train-0ab1-atime", "jit_train-9f-cache"):
        (tmp_path / name).touch()
    assert startup.programs(tmp_path) == ["_lambda", "train", "train"]


def test_a_start_is_of_two_short_runs_of_the_demos_model() -> None:
    points = loading.load(startup.CONFIG, startup.OVERRIDES).points()
    assert [point.run.seed for point in points] == [0, 1]
    assert {(point.run.model, point.run.steps) for point in points} == {(demo.sweep().base.model, 4)}


def test_marks_are_read_from_the_store(tmp_path: Path) -> None:
    assert not any(startup.marks_of(tmp_path).values())
    for number in range(2):
        log = tmp_path / "sweeps" / startup.NAME / "logs" / f"host-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    segment = tmp_path / "runs" / "0" / "metrics" / "000001.jsonl"
    segment.parent.mkdir(parents=True)
    segment.touch()
    assert [mark for mark, there in startup.marks_of(tmp_path).items() if there] == ["worker started"]
    segment.write_text("{}\n")
    assert [mark for mark, there in startup.marks_of(tmp_path).items() if there] == ["worker started", "first step"]


def test_memory_is_compared_where_the_allocators_own_is_small() -> None:
    assert len(memory_benchmark.CONFIGURATIONS) == 6
    for name in memory_benchmark.CONFIGURATIONS:
        assert 1.5e8 < memory.needed(*memory_benchmark.run_of(name), cpu=True) < 8e8, name
    found = {"plan": 115e6, "compiled": 100e6, "measured": 110e6}
    assert memory_benchmark.spread(found) == 1.15
    assert "NOT MET" in memory_benchmark.line("x", {**found, "measured": 120e6})


# gpu


@pytest.mark.parametrize(("name", "batch"), [("350M", 32), ("124M", 64), ("1.3B", 16)])
def test_both_sides_take_the_largest_batch_that_half_an_h200_is_thought_to_hold(name: str, batch: int) -> None:
    shape = next(one for one in gpu.GPU.shapes if one.name == name)
    params = {"350M": 355e6, "124M": 124e6, "1.3B": 1.3e9}[name]
    assert gpu.batch_of(round(params), shape, gpu.GPU, 0.45 * 140 * 2**30) == batch
    assert gpu.batch_of(round(params), shape, gpu.GPU, 0.0) == 1


def test_the_shapes_are_what_their_names_say() -> None:
    for shape, params in zip(gpu.GPU.shapes, (355e6, 124e6, 1.316e9), strict=True):
        run = gpt2_scaling.run_of(gpu.specification(shape, gpu.GPU, "ours", batch=1))
        assert counting.params(run.model, 50_304, 1024) == pytest.approx(params, rel=0.01)
    for shape, _ in gpu.GPU.packs:
        run = gpt2_scaling.run_of(gpu.specification(shape, gpu.GPU, "ours", batch=1))
        assert counting.params_non_embedding(run.model, 256, 256) == pytest.approx(
            float(shape.name[:-1]) * 1e6, rel=0.1
        )


def test_its_parts_fit_the_time_and_what_does_not_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plan = gpu.GPU
    needed = plan.check_seconds + len(plan.shapes) * plan.shape_seconds + len(plan.packs) * plan.pack_seconds
    assert needed < plan.limit < 600
    bench = gpu.Bench(plan, "python", "NVIDIA H200", 1.0, None, tmp_path)
    assert bench.part("quick", 1.0, lambda: 7) == 7
    assert bench.part("long", plan.limit + 1, lambda: 7) is None
    assert "long: left out" in capsys.readouterr().out


def test_a_contender_that_ends_says_why(tmp_path: Path) -> None:
    bench = gpu.Bench(gpu.SMALL, str(tmp_path / "torch"), "CPU", 1.0, None, tmp_path)
    for line, error in (("torch.OutOfMemoryError: 80 GiB", gpu.OutOfMemoryError), ("no such thing", RuntimeError)):
        (tmp_path / "torch").write_text(f"#!/bin/sh\necho '{line}' >&2\nexit 3\n")
        (tmp_path / "torch").chmod(0o755)
        contender = bench.start(gpu.specification(gpu.SMALL.shapes[0], gpu.SMALL, "torch eager", batch=1))
        with pytest.raises(error, match="torch eager at width 32"):
            contender.ask()
        contender.close()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no NVIDIA GPU here .*; run this where there is one, or --small on the CPU"):
        gpu.gpu()
