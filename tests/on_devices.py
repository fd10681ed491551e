"""Trains small packs on this process's devices, for tests that force some number of them; run in a process of its own.

python -m tests.on_devices '[{"run": {…}, "execution": {…}, "members": 2, "resident": true}, …]'
python -m tests.on_devices '[…]' <address of process 0> <number of processes> <this process>
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scaling import config
from scaling.data import corpus as corpora
from scaling.data import examples
from scaling.training import loop, programs, steps
from tests import conftest

STEPS = 3
SHAPE = re.compile(r"\b(?:f32|bf16)\[([\d,]*)\]")


def train(case: dict[str, Any]) -> dict[str, Any]:
    """Three steps of a pack whose members have seeds, data and rates of their own, and a validation at its start."""
    run = config.Run.model_validate(case["run"])
    members, random = case.get("members", 1), np.random.default_rng(0)
    tokens = random.integers(1, 9, 1000).astype(np.uint8)
    starts = random.integers(0, 1000, (members, STEPS, run.batch_size))
    windows = tokens[(starts[..., None] + np.arange(run.context + 1)) % 1000].astype(np.int32)
    resident = (len(tokens), tokens.dtype.name) if case.get("resident") else None
    execution = config.Execution.model_validate({"steps_per_dispatch": STEPS, **case["execution"]})
    program = programs.program(run, execution, members, examples.text_layout(run.context, resident))

    state = program.stack([program.init(np.uint32(seed), np.float32(1.0)) for seed in range(members)])
    validation = program.put_batch({"tokens": windows[0, 0, : program.validation_batch]})
    nats = np.asarray(program.evaluate(state.params, validation, None)["loss"][0])[:, :4].mean(axis=(1, 2))
    rates = [np.full(STEPS, 0.01 / (1 + member), np.float32) for member in range(members)]
    work = [
        steps.dispatch(run, given, rate, 0 * rate, STEPS)
        for given, rate in zip(starts if resident else [{"tokens": w} for w in windows], rates, strict=True)
    ]
    before = jax.tree.leaves(state)
    on_device = program.put_resident(examples.Windows(tokens, run.context))
    after, metrics = program.train(state, on_device, program.put(steps.together(work)))
    return {
        "devices": jax.device_count(),
        "loss": np.asarray(metrics.loss).tolist(),
        "norm": np.asarray(metrics.gradient_norm).tolist(),
        "validation": nats.tolist(),
        "parts": {name: len({str(s.index) for s in p.addressable_shards}) for name, p in after.params.items()},
        "consumed": all(leaf.is_deleted() for leaf in before),
        "compiled": compiled(program, members),
    }


def compiled(program: programs.Program, members: int) -> dict[str, Any]:
    """What the compiled training program holds and sends, on one device: bytes, and numbers in the largest arrays."""
    whole: Any = program.train
    memory, text = whole.memory_analysis(), whole.as_text()
    sent: dict[str, int] = {}
    for shapes, kind in re.findall(r"= (\S+|\([^=]*\)) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text):
        sent[kind] = max(sent.get(kind, 0), largest(shapes))
    leaves = jax.tree.leaves(program.shapes)
    return {
        "arguments": memory.argument_size_in_bytes,
        "reused": memory.alias_size_in_bytes,
        "state": members * sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
        "share": members * sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves),
        "largest": largest(text),
        "sent": sent,
    }


def largest(text: str) -> int:
    """Numbers in the largest array of floats that a program's text names."""
    return max((math.prod(map(int, found.split(","))) for found in SHAPE.findall(text) if found), default=0)


def trained_by_the_loop(case: dict[str, Any]) -> dict[str, Any]:
    """The outcome and the losses of a whole run, or of it until `stop_at` steps, by `loop.train`.

    Checkpoints go to the `folders` of attempts, if any are given.
    """
    run = config.Run.model_validate(case["run"])
    rows: list[dict[str, Any]] = []
    settings = {"checkpoint_seconds": 3600.0, "keep_last_checkpoint": False, **case["execution"]}

    def stop() -> bool:
        return "stop_at" in case and len(rows) >= case["stop_at"]

    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(name) for name in case.get("folders", [folder])]
        corpus = corpora.prepare(run.data, lambda line: None)
        outcome = loop.train(
            [loop.TrainingRun(run, folders, rows.extend, stop)], config.Execution.model_validate(settings), corpus
        )[0]
    return {
        "devices": jax.device_count(),
        "loss": [row["loss"] for row in rows if row["kind"] == "train"],
        "validation": outcome.loss,
        "status": outcome.status,
        "step": outcome.step,
    }


def start(cases: list[dict[str, Any]], devices: int, *arguments: str) -> "subprocess.Popen[str]":
    """A process with so many forced host devices that does the cases."""
    flags = f"--xla_force_host_platform_device_count={devices} {conftest.FAST_COMPILE}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.on_devices", json.dumps(cases), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def start_several(cases: list[dict[str, Any]], count: int, devices: int = 1) -> "list[subprocess.Popen[str]]":
    """Processes that do the cases together, over loopback, each with so many devices."""
    at = address()
    return [start(cases, devices, at, str(count), str(number)) for number in range(count)]


def address() -> str:
    """Where process 0 of several on this machine may listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def results(process: "subprocess.Popen[str]") -> list[Any]:
    """What became of each case."""
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[2:]:
        address, count, number = sys.argv[2:]
        jax.distributed.initialize(address, int(count), int(number))
    print(json.dumps([(trained_by_the_loop if c.get("loop") else train)(c) for c in json.loads(sys.argv[1])]))
