"""`scaling train`: one run in this process, watched: loss, speed, memory; a trace or a breakdown where asked for.

In a trace each dispatch is an event `dispatch` of the host, and the ops of the device bear the phases of `step` in
their names. On CPU an event shows its HLO op; which phase that is from stands in the program within xplane.pb.
"""

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
import rich.table

from scaling import config, counting, devices, human, memory
from scaling.config import loading
from scaling.launch import environments
from scaling.store import record

if TYPE_CHECKING:
    from scaling.data import corpus as corpora
    from scaling.training import breakdown, loop

LINES = 20  # of progress
TRACED = 3  # dispatches in a trace: enough to see that they are alike, few enough for a browser
WARM = 2  # dispatches before them
TRACED_STEPS = 4  # steps of a dispatch that is traced, at most


def show(
    path: Path,
    overrides: Sequence[str],
    steps: int | None,
    profile: Path | None,
    noise_scale: bool,
    breakdown: bool,
) -> int:
    """Train the run and say how it went; returns 1 where it diverged. Nothing is written but tokens and `profile`."""
    sweep = loading.load(path, overrides)
    run = shortened(sweep.base, steps)
    execution = prepared(run, sweep.execution, profile is not None, noise_scale)
    if profile is not None and profile.exists() and not profile.is_dir():
        raise ValueError(f"--profile {profile} is a file; name a folder, new or old")
    _as_a_worker(run, execution)
    from scaling.data import corpus as corpora

    corpus = corpora.prepare(run.data)
    print(record.describe(record.columns(run, corpus)) + f", {run.steps:,} steps of {run.batch_tokens:,} tokens")
    compiled(run, execution, corpus)
    if breakdown:
        _measure(run, execution, corpus)
    return _train(run, execution, corpus, profile)


def shortened(run: config.Run, steps: int | None) -> config.Run:
    """The run, or one of `steps` steps, whose schedule is as long. Raises ValueError for none or too many."""
    if steps is None:
        return run
    if not 0 < steps <= run.steps:
        raise ValueError(f"--steps {steps} is not from 1 to the {run.steps} of the run; set base.tokens for more")
    return run.edit({"tokens": steps * run.batch_tokens})


def prepared(run: config.Run, execution: config.Execution, traced: bool, noise_scale: bool) -> config.Execution:
    """The execution: no checkpoints, short dispatches for a trace. Raises ValueError where there is too little."""
    changes: dict[str, Any] = {"keep_last_checkpoint": False, "noise_scale": noise_scale or execution.noise_scale}
    if traced:
        needed = WARM + TRACED + 1
        if run.steps < needed:
            raise ValueError(f"--profile needs {needed} steps and the run has {run.steps}; train for more")
        changes["steps_per_dispatch"] = min(execution.steps_per_dispatch, TRACED_STEPS, run.steps // needed)
        changes["evaluations"] = 1
    edited = execution.edit(changes)
    edited.sequences(run.batch_size)
    return edited


def compiled(run: config.Run, execution: config.Execution, corpus: "corpora.Corpus") -> None:
    """Compile the program, and say where it runs."""
    import jax

    from scaling.training import loop

    before = time.perf_counter()
    loop.program_of(run, execution, 1, corpus)
    seconds = time.perf_counter() - before
    kind = jax.local_devices()[0].device_kind
    where = f"{len(devices.cores())} cores" if kind == "cpu" else f"{jax.device_count()} × {kind}"
    print(f"on {where}; {seconds:.1f} s to compile, or to load what was compiled before", flush=True)


def _train(run: config.Run, execution: config.Execution, corpus: "corpora.Corpus", profile: Path | None) -> int:
    from scaling.training import loop

    watch = Watch(run, profile)
    # Nothing is saved: the run is short or looked at, and `scaling sweep` is what keeps results.
    execution = execution.edit({"checkpoint_seconds": 1e9})
    with tempfile.TemporaryDirectory() as folder:
        member = loop.TrainingRun(run, [Path(folder) / "checkpoints"], watch.rows, lambda: False)
        (outcome,) = loop.train([member], execution, corpus)
    watch.finish()
    for line in summary(outcome, watch.speeds, counting.flops_per_token(run.model, run.vocabulary_size, run.context)):
        print(line)
    return 0 if outcome.status == "finished" else 1


class Watch:
    """Prints the rows of metrics as they come, keeps the speed of each dispatch, and traces a few where asked to."""

    def __init__(self, run: config.Run, profile: Path | None):
        self.run = run
        self.profile = profile
        self.speeds: list[float] = []
        self.dispatches = 0
        self.tracing = False
        self.next_line = 0.0

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Rows of one dispatch, or of a validation."""
        last = rows[-1]
        if last["kind"] == "validation":
            print(evaluated(last))
            return
        self.speeds.append(last["tokens_per_second"])
        if self.dispatches in (0, 1) or last["step"] >= self.next_line or last["step"] == self.run.steps:
            print(progress(last, self.run.steps), flush=True)
            self.next_line = last["step"] + self.run.steps / LINES
        self.dispatches += 1
        if self.profile is not None:
            self._trace(self.profile)

    def _trace(self, folder: Path) -> None:
        import jax

        if self.dispatches == WARM:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the interpreter's calls would hide the ops
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self.tracing = True
        elif self.dispatches == WARM + TRACED:
            self.finish()

    def finish(self) -> None:
        """Write the trace, unless it is written."""
        if self.tracing:
            import jax

            jax.profiler.stop_trace()
            self.tracing = False
            print(
                f"trace of {TRACED} dispatches in {self.profile}: `tensorboard --logdir {self.profile}` (with "
                "tensorboard-plugin-profile), or open perfetto_trace.json.gz at ui.perfetto.dev"
            )


def progress(row: Mapping[str, Any], steps: int) -> str:
    """A training step in a line."""
    share = f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
    return (
        f"step {row['step']:>{len(str(steps))},} of {steps:,}  loss {row['loss']:.4f}  |g| {row['gradient_norm']:.3g}  "
        f"lr {row['learning_rate']:.3g}  {human.count(row['tokens_per_second'])} tokens/s  "
        f"{row['flops_per_second'] / 1e9:,.1f} GFLOP/s{share}"
    )


def evaluated(row: Mapping[str, Any]) -> str:
    """A validation in a line, with the noise scale where it was measured."""
    line = f"validation at step {row['step']:,}: loss {human.measured(row['loss'], row['loss_se'])}"
    if "noise_scale_steps" not in row:
        return line
    over = f"over {row['noise_scale_steps']} steps"
    if row["noise_scale_tokens"] is None:
        return f"{line}; gradient noise scale not measurable {over}: the estimate of |G|² is not positive"
    error = row["noise_scale_tokens_se"]
    spread = "" if error is None else f" ± {human.count(error)}"
    return f"{line}; gradient noise scale {human.count(row['noise_scale_tokens'])}{spread} tokens {over}"


def summary(outcome: "loop.Outcome", speeds: Sequence[float], flops_per_token: float) -> list[str]:
    """What there is to say after a run: result, speed with its share of the peak, and memory."""
    import jax

    device = jax.local_devices()[0]
    lines = [f"{outcome.status} {outcome.reason}".rstrip() + f" at step {outcome.step:,} in {outcome.seconds:.1f} s"]
    if outcome.loss is not None:
        lines[0] += f": loss {human.measured(outcome.loss, outcome.loss_se)}"
        if outcome.bits_per_byte is not None:
            lines[0] += f", {outcome.bits_per_byte:.4f} bits a byte"
    steady = speeds[1:] or speeds  # the first dispatch warms up
    if steady:
        rate = statistics.median(steady) * flops_per_token
        peak = devices.peak_flops(device.device_kind)
        of_what = "of a matrix product by NumPy here" if peak is None else "of the peak in bf16 (MFU)"
        peak = devices.measured_cpu_flops() if peak is None else peak * jax.device_count()
        lines.append(
            f"median of {len(steady)} dispatches: {statistics.median(steady):,.0f} tokens/s, "
            f"{rate / 1e9:,.1f} GFLOP/s, {rate / peak:.1%} {of_what}"
        )
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if used is not None:
        lines.append(f"memory: at most {used / 1e9:.2f} GB on a device")
    else:
        lines.append(f"memory: at most {memory.resident_peak() / 1e9:.2f} GB resident")
    return lines


def _measure(run: config.Run, execution: config.Execution, corpus: "corpora.Corpus") -> None:
    from scaling.training import breakdown

    timed = breakdown.measure(run, execution, corpus)
    console = rich.console.Console(width=None if rich.get_console().is_terminal else 200)
    console.print(table(timed))
    console.print(
        f"medians of {timed.rounds} rounds of {timed.steps} steps. Forward and forward with backward are programs of "
        "their own; backward and optimizer are what each program takes more than the one before. The optimizer's part "
        "holds clipping, norms and reading the batch; data is the host's work, done while the device computes. FLOPs "
        f"are exact, the peak is {timed.peak / 1e9:,.0f} GFLOP/s."
    )


def table(timed: "breakdown.Breakdown") -> rich.table.Table:
    """A breakdown as a table."""
    shown = rich.table.Table(title="one step", title_justify="left", box=None, pad_edge=False)
    for name in ("part", "ms", "of the step", "FLOPs", "of the peak"):
        shown.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for part in (*timed.parts, timed.step, timed.data):
        rate = part.flops / part.seconds if part.flops is not None and part.seconds > 0 else None
        shown.add_row(
            part.name,
            f"{part.seconds * 1e3:,.3f}",
            f"{part.seconds / timed.step.seconds:.0%}" + (" beside it" if part is timed.data else ""),
            f"{part.flops:.3g}" if part.flops is not None else "–",
            "–" if rate is None else f"{rate / timed.peak:.1%}",
        )
    return shown


def _as_a_worker(run: config.Run, execution: config.Execution) -> None:
    """Start this process over with the environment that workers have, unless it has it: speed is to be as theirs."""
    wanted = {**environments.compiled_programs(), "GLIBC_TUNABLES": environments.worker()["GLIBC_TUNABLES"]}
    changed = {name: value for name, value in wanted.items() if name not in os.environ}
    if not environments.find_accelerators():
        changed |= environments.host_devices(host_devices(run, execution, len(devices.cores()), memory.available()))
    if changed:
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **changed})


def host_devices(run: config.Run, execution: config.Execution, cores: int, available: float) -> int:
    """Devices that the CPU is divided into for one run: those of the mesh, or with none stated one a core.

    One a core is 1.05 to 1.6 times as fast as one of two cores (`benchmarks.train_step`). Each holds all weights: they
    are only so many as divide the sequences and as memory is `available` for, in bytes.
    """
    if execution.mesh != config.Mesh():
        return execution.mesh.least
    most = math.gcd(execution.sequences(run.batch_size), cores)
    for count in range(most, 1, -1):
        if most % count == 0:
            sizes = memory.microbatches(run, execution, count)
            if count * memory.needed(run, execution, sizes[-1], cpu=True, devices=count) <= available:
                return count
    return 1
