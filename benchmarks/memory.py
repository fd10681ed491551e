"""Memory of a training step three ways: closed form, compiled program, and what a process really takes.

    python -m benchmarks.memory            # six configurations, each in a process of its own; some minutes on a core
    python -m benchmarks.memory --only lstm

- plan: `scaling.memory.needed`, from the config alone;
- compiled: `scaling.memory.compiled`, arguments + results − aliased + temporary buffers of the training program;
- measured: on CPU the growth of the resident set's high-water mark (VmHWM, reset by writing 5 to
  /proc/self/clear_refs) from compiled, with nothing allocated, to some dispatches later; else the device's
  `peak_bytes_in_use`, which counts only what XLA allocates.

The libraries that XLA calls for matmuls pack operands in memory of their own, which only the last number holds: up to
about what one layer's attention scores take. Each process runs on one core, as workers do; more cores pack more.

To reach: the largest of the three at most 15% above the smallest. Linux only, for /proc.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scaling import config, memory
from scaling.config import families
from scaling.launch import environments

WITHIN = 1.15
DISPATCHES = 3

GPT2, MODERN = families.Transformer.gpt2, families.Transformer.modern
# name: model, context, batch, vocabulary, other fields of the run, execution.
CONFIGURATIONS: dict[str, tuple[families.Family, int, int, int, dict[str, Any], dict[str, Any]]] = {
    "gpt2": (GPT2(192, 6, 6), 256, 6, 256, {"clip": 1.0}, {}),
    "modern-512": (MODERN(256, 6, 8), 512, 2, 256, {"clip": 1.0}, {}),
    "vocabulary-8k": (GPT2(256, 3, 4), 128, 16, 8192, {}, {}),
    "lstm": (families.Lstm(width=256, depth=4), 128, 32, 256, {"clip": 1.0}, {}),
    "bf16-microbatch": (MODERN(256, 8, 4), 128, 32, 256, {"precision.compute": "bfloat16"}, {"microbatch": 8}),
    "remat": (MODERN(384, 6, 6), 256, 8, 512, {"clip": 1.0}, {"remat": "full"}),
}


def run_of(name: str) -> tuple[config.Run, config.Execution]:
    """The run of a configuration, of a few steps on synthetic tokens, and its execution."""
    model, context, batch, vocabulary, fields, execution = CONFIGURATIONS[name]
    run = config.Run.model_validate(
        {
            "model": model,
            "parametrization": {"kind": "standard"},
            "data": {
                "source": {"kind": "synthetic", "alphabet": 8, "exponent": 1.5, "train_symbols": 2, "seed": 0,
                           "validation_symbols": 2},
                "tokenizer": {"kind": "bytes"} if vocabulary == 256 else {"kind": "bpe", "vocabulary_size": vocabulary},
                "validation_tokens": context,
            },
            "context": context,
            "batch_size": batch,
            "tokens": context * batch * 2 * DISPATCHES,
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
            "schedule": {"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.0}},
            "precision": {"compute": "float32"},
        }
    )  # fmt: skip
    return run.edit(fields), config.Execution(steps_per_dispatch=2, microbatch=None).edit(execution)


def measure(name: str) -> dict[str, float]:
    """The three numbers in bytes, in this process, which must not have trained anything before."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from scaling.training import programs, states, steps

    run, execution = run_of(name)
    cpu = jax.default_backend() == "cpu"
    program = programs.program(run, execution)
    length = program.steps_per_dispatch
    random = np.random.default_rng(0)
    shape = (length, run.batch_size, run.context + 1)
    data = random.integers(0, run.vocabulary_size, shape, dtype=np.int32)
    dispatch = steps.together([steps.dispatch(run, {"tokens": data}, np.full(length, 1e-3), np.zeros(length), length)])

    def start() -> states.State:
        return jax.tree.map(lambda x: jnp.full((1, *x.shape), 0.01, x.dtype), program.shapes)

    # Not `program.init`: drawing values takes memory of its own, which the allocator keeps.
    fill = jax.jit(start).lower().compile()
    gc.collect()
    if cpu:
        Path("/proc/self/clear_refs").write_text("5")
    before = memory.resident_peak() if cpu else 0
    state = fill()
    jax.block_until_ready(state)
    if cpu:
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(DISPATCHES):
        state, _ = program.train(state, {}, program.put(dispatch))
        jax.block_until_ready(state)
    taken = memory.resident_peak() - before if cpu else jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return {
        "plan": memory.needed(run, execution, cpu=cpu, devices=jax.device_count()),
        "compiled": memory.compiled(program.train),
        "measured": float(taken),
    }


def spread(sizes: dict[str, float]) -> float:
    """The largest of the three over the smallest."""
    return max(sizes.values()) / min(sizes.values())


def line(name: str, sizes: dict[str, float]) -> str:
    """A row of the table."""
    plan, compiled, measured = (sizes[key] / 1e6 for key in ("plan", "compiled", "measured"))
    verdict = "met" if spread(sizes) <= WITHIN else "NOT MET"
    return (
        f"{name:16} {plan:9.1f} {compiled:9.1f} {measured:9.1f} {plan / compiled:10.2f} {plan / measured:10.2f} "
        f"{compiled / measured:10.2f}  {verdict}"
    )


def main() -> None:
    """Measure each configuration in a process of its own, as the launcher starts workers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(CONFIGURATIONS), nargs="*", help="these configurations")
    parser.add_argument("--one", choices=tuple(CONFIGURATIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(measure(arguments.one)))
        return
    print("MB               plan      compiled  measured  plan/comp. plan/meas. comp./meas. within 15%")
    worst = 1.0
    for name in arguments.only or CONFIGURATIONS:
        command = [sys.executable, "-m", "benchmarks.memory", "--one", name]
        done = subprocess.run(
            command, env={**os.environ, **environments.worker()}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip()}")
        sizes = json.loads(done.stdout.splitlines()[-1])
        worst = max(worst, spread(sizes))
        print(line(name, sizes), flush=True)
    print(f"largest spread {worst:.2f}, to reach {WITHIN}: {'met' if worst <= WITHIN else 'not met'}")


if __name__ == "__main__":
    main()
