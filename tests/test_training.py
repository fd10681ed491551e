"""`scaling train`: what it shows of a run, its trace as the viewers read it, and its breakdown of a step."""

import gzip
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from scaling import config, counting, memory
from scaling.commands import training
from scaling.data import corpus as corpora
from scaling.training import breakdown, loop
from tests import command

Make = Callable[..., config.Run]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tiny: Make, tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "sweep.json"
    path.parent.mkdir()
    path.write_text(config.Sweep(name="mine", base=tiny(tokens=64 * 40)).to_json())
    return path


def test_a_run_is_shown_with_its_trace_and_nothing_else_is_written(file: Path) -> None:
    """One command does all of it, in the environment of a worker, which it has to start over for."""
    shown = ("--profile", "trace", "--noise-scale", "--breakdown")
    ended = command.process("train", file, "--steps", 36, *shown, cwd=file.parent)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert any(line.startswith("transformer 11.3k params 2.3k tokens, 36 steps of 64 tokens") for line in lines)
    assert any(line.startswith("step 36 of 36  loss ") and "GFLOP/s" in line for line in lines)
    assert any(line.startswith("validation at step 36: loss ") and "over 36 steps" in line for line in lines)
    assert any(line.startswith("finished at step 36 in ") for line in lines)
    assert any("of a matrix product by NumPy here" in line for line in lines)
    assert any(re.match(r"memory: at most [012]\.\d+ GB", line) for line in lines)
    parts = [line.split()[0] for line in lines if line.startswith(("forward ", "backward ", "optimizer ", "step  "))]
    assert parts[:3] == ["forward", "backward", "optimizer"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["sweep.json", "trace"]

    (proto,) = (file.parent / "trace").rglob("*.xplane.pb")  # what TensorBoard reads
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(proto)).planes
        for line in plane.lines
        for event in line.events
    ]
    assert sum(event.name == "dispatch" for event in events) == training.TRACED
    modules = {value for event in events for key, value in event.stats if key == "hlo_module"}
    assert "jit_train" in modules
    raw = proto.read_bytes()
    for phase in (b"jvp(forward)", b"jvp(loss)", b"transpose(jvp(forward))", b"optimizer/"):
        assert phase in raw, phase
    (packed,) = (file.parent / "trace").rglob("perfetto_trace.json.gz")  # what Perfetto reads
    traced = [event for event in json.loads(gzip.decompress(packed.read_bytes()))["traceEvents"] if event.get("dur")]
    steps = [int(event["args"]["step_num"]) for event in traced if event["name"] == "dispatch"]
    assert steps == [steps[0] + 4 * i for i in range(training.TRACED)]
    assert steps[0] >= 4 * training.WARM
    ops = [event for event in traced if event.get("args", {}).get("hlo_module") == "jit_train"]
    assert len(ops) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "--steps 0 is not from 1 to the 40 of the run"),
        (("--steps", 41), "set base.tokens for more"),
        (("--steps", 5, "--profile", "t"), "--profile needs 6 steps and the run has 5"),
        (("--profile", "sweep.json"), "--profile sweep.json is a file"),
        (("--noise-scale", "--set", "base.batch_size=1"), "batch_size 1 is odd"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_before_anything_is_read(
    file: Path, arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    steps, profile = options.get("--steps"), options.get("--profile")
    with pytest.raises(ValueError, match=message):
        training.show(
            file,
            ("base.batch_size=1",) if "--noise-scale" in arguments else (),
            int(str(steps)) if steps is not None else None,
            Path(str(profile)) if profile else None,
            "--noise-scale" in arguments,
            False,
        )


def test_the_config_of_a_run_is_trained_as_it_is(tiny: Make) -> None:
    run = tiny(schedule__warmup__fraction=0.5)
    assert training.shortened(run, None) is run
    short = training.shortened(run, 4)
    assert (short.steps, short.schedule.warmup_steps(short.steps, short.batch_tokens)) == (4, 2)


def test_a_breakdown_adds_up_and_counts_each_flop_once(tiny: Make) -> None:
    run = tiny(model__width=64, batch_size=8, tokens=8 * 16 * 20)
    measured = breakdown.measure(
        run, config.Execution(steps_per_dispatch=10), corpora.prepare(run.data, lambda line: None), rounds=3
    )
    assert [part.name for part in measured.parts] == ["forward", "backward", "optimizer"]
    assert sum(part.seconds for part in measured.parts) == pytest.approx(measured.step.seconds)
    assert measured.step.flops == counting.flops(run.model, 256, 16, run.batch_tokens)
    assert sum(part.flops or 0.0 for part in measured.parts) == pytest.approx(measured.step.flops)
    assert measured.parts[0].seconds > 0
    assert measured.data.seconds > 0
    shown = training.table(measured)
    assert shown.row_count == 5


def test_rows_are_told_in_the_units_they_are_in() -> None:
    row = {"step": 5, "loss": 1.0, "loss_se": 0.1, "noise_scale_steps": 5, "noise_scale_tokens": 12345.0}
    assert "scale 12.3k ± 200 tokens over 5 steps" in training.evaluated({**row, "noise_scale_tokens_se": 200.0})
    assert training.evaluated({"step": 5, "loss": 1.0, "loss_se": math.nan}) == "validation at step 5: loss 1.0000"
    assert "not measurable over 5 steps" in training.evaluated({**row, "noise_scale_tokens": None})
    told = training.summary(loop.Outcome("diverged", "loss is inf", 7, 2.0), [100.0, 400.0, 600.0], 1e6)
    assert told[0] == "diverged loss is inf at step 7 in 2.0 s"
    assert told[1].startswith("median of 2 dispatches: 500 tokens/s, 0.5 GFLOP/s, ")


def test_a_run_alone_has_a_device_a_core_where_its_sequences_divide_and_memory_allows(tiny: Make) -> None:
    run, execution = tiny(batch_size=8), config.Execution()
    assert [training.host_devices(run, execution, cores, 1e12) for cores in (1, 2, 3, 12, 64)] == [1, 2, 1, 4, 8]
    need = 8 * memory.needed(run, execution, 8, cpu=True, devices=8)
    assert training.host_devices(run, execution, 64, need) == 8
    assert training.host_devices(run, execution, 64, need - 1) == 4
    assert training.host_devices(run, execution, 64, 0.0) == 1
    assert training.host_devices(run, execution.edit({"mesh.fsdp": 2}), 64, 1e12) == 2


def test_the_peak_of_memory_is_this_process_own(tmp_path: Path) -> None:
    """Not of the process that started it."""
    held = bytearray(2**29)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    code = "from scaling import memory; print(memory.resident_peak())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 5e6 < int(ended.stdout) < 2**29
