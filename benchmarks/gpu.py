"""Our training step on one NVIDIA GPU against an equal GPT-2 in PyTorch, in one call of less than ten minutes.

    python -m benchmarks.gpu --out FOLDER        (or with the variable OUT set; --small tries its logic on the CPU)

Measured, in this order, each part only where the time left allows it, and said where it does not:

- check: from our weights PyTorch must reproduce logits and losses of a few steps, in float32; in bfloat16 cuDNN's
  attention must give the losses of the reference;
- tokens/s, MFU and peak memory of 350 M, 124 M and 1.3 B parameters at context 1024, vocabulary 50,304, bfloat16
  (ours: flash attention by `execution.attention` "auto"; theirs: torch.compile, scaled_dot_product_attention, fused
  AdamW, autocast). Each contender is a process of its own; they compile side by side before anything is timed, and
  are timed in turn, in every other round in the opposite order. Both have the same batch: the largest power of two
  whose estimated memory is less than the half of the GPU that each may take, halved where that is too much;
- a trace of our step at 350 M parameters, for Perfetto and TensorBoard;
- runs an hour of 0.1, 1 and 10 M parameters, alone and as packs of equal shapes;
- at 350 M parameters ours with the least memory: layers in a loop, and products alone kept.

It says which of the packages that it needs are missing; where nothing can be installed they travel as wheels:
`python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels NAME …` here, and there
`python -m pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=site`.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_contender import OURS, Contender, OutOfMemoryError, compiled

NEEDED = {
    "jax": "jax", "flax": "flax", "optax": "optax", "numpy": "numpy", "torch": "torch", "pydantic": "pydantic",
    "pydantic_core": "pydantic-core", "annotated_types": "annotated-types", "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions", "jaxtyping": "jaxtyping", "wadler_lindig": "wadler-lindig",
}  # fmt: skip
ROUNDS = 3
CHECKED = {"width": 128, "depth": 2, "heads": 2, "vocabulary": 512, "context": 128, "batch": 4}
TOLERANCE = 1e-3  # of logits and losses of order one, in float32 on two libraries' matrix products
HALF_TOLERANCE = 2e-2  # of losses near 6 in bfloat16, whose steps are 2⁻⁸ of a value and are averaged over a batch


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT-2 by its name."""

    name: str
    width: int
    depth: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured on a kind of device, and the seconds that a part is guessed to take."""

    shapes: tuple[Shape, ...]
    packs: tuple[tuple[Shape, int], ...]
    context: int
    vocabulary: int
    pack_context: int
    largest_batch: int
    seconds: float
    platform: str
    theirs: str
    check_seconds: float
    shape_seconds: float
    pack_seconds: float
    limit: float


GPU = Plan(
    shapes=(Shape("350M", 1024, 24, 16), Shape("124M", 768, 12, 12), Shape("1.3B", 2048, 24, 16)),
    packs=((Shape("0.1M", 64, 2, 2), 128), (Shape("1M", 128, 5, 2), 64), (Shape("10M", 320, 8, 5), 16)),
    context=1024, vocabulary=50_304, pack_context=256, largest_batch=64, seconds=4.0,
    platform="cuda", theirs="torch compiled", check_seconds=60.0, shape_seconds=110.0, pack_seconds=30.0, limit=550.0,
)  # fmt: skip
SMALL = Plan(
    shapes=(Shape("toy", 32, 2, 2),), packs=((Shape("toy", 16, 1, 2), 3),), context=64, vocabulary=512,
    pack_context=32, largest_batch=4, seconds=0.3, platform="cpu", theirs="torch eager",
    check_seconds=20.0, shape_seconds=20.0, pack_seconds=10.0, limit=300.0,
)  # fmt: skip
# Settings of config.Execution for ours; the first is compared, the others are tried where time is left.
WAYS: tuple[dict[str, Any], ...] = ({}, {"layers": "scan", "remat": "dots"})


def missing() -> list[str]:
    """Packages that this needs and that are not installed."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def gpu() -> tuple[str, float]:
    """Name and bytes of the first GPU, without taking it. Raises ValueError where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"no NVIDIA GPU here ({error}); run this where there is one, or --small on the CPU") from None
    name, mebibytes = shown.splitlines()[0].rsplit(",", 1)
    return name.strip(), float(mebibytes) * 2**20


def estimated_bytes(params: int, shape: Shape, tokens: int, vocabulary: int) -> float:
    """Peak memory of a step of either side with flash attention and without remat, a guess to start from.

    Parameters, gradient and two moments in float32 and a bfloat16 copy: 18 bytes a parameter. 34 bytes · width a token
    and layer (Korthikanti et al. 2205.05198, equation 1, without its scores), and logits in bfloat16 with their
    gradient and a float32 copy: 10 bytes each.
    """
    return 18.0 * params + tokens * (34.0 * shape.depth * shape.width + 10.0 * vocabulary)


def batch_of(params: int, shape: Shape, plan: Plan, allowed: float) -> int:
    """The largest power of two of sequences, up to the plan's, that is estimated to fit, and at least one."""
    batch = plan.largest_batch
    while batch > 1 and estimated_bytes(params, shape, batch * plan.context, plan.vocabulary) > allowed:
        batch //= 2
    return batch


def specification(shape: Shape, plan: Plan, kind: str, **changes: Any) -> dict[str, Any]:
    """All that a contender's process is told."""
    return {
        "kind": kind, "width": shape.width, "depth": shape.depth, "heads": shape.heads, "epsilon": 1e-6,
        "context": plan.context, "vocabulary": plan.vocabulary, "precision": "bfloat16", "learning_rate": 3e-4,
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "adam_epsilon": 1e-8, "clip": 1.0, "steps_per_dispatch": 16,
        "seconds": plan.seconds, "warm_seconds": plan.seconds / 4, "least_steps": 2, "arrays": None,
        "device": plan.platform, "serve": True, **changes,
    }  # fmt: skip


class Bench:
    """Runs the parts while there is time, prints their lines and keeps what was measured."""

    def __init__(self, plan: Plan, torch_python: str, device: str, memory: float, peak: float | None, out: Path):
        self.plan, self.torch_python, self.out = plan, torch_python, out
        self.device, self.memory, self.peak = device, memory, peak
        self.end = time.monotonic() + plan.limit
        self.measured: list[dict[str, Any]] = []

    def all(self) -> None:
        """Every part in turn."""
        plan, first = self.plan, self.plan.shapes[0]
        self.part("check", plan.check_seconds, self.check)
        if plan.platform != "cpu":
            self.part("attention", plan.check_seconds, self.check_attention)
        batches = {s: self.part(s.name, plan.shape_seconds, self.compare, s) for s in plan.shapes}
        for shape, members in plan.packs:
            self.part(f"packs of {shape.name}", plan.pack_seconds, self.pack, shape, members)
        for way in WAYS[1:]:
            if batches[first]:
                self.part(f"{first.name} {way}", plan.shape_seconds / 2, self.way, first, batches[first], way)

    def part(self, name: str, seconds: float, work: Any, *arguments: Any) -> Any:
        """Do a part where its guessed seconds are left; what fails or is left out is said and does not end the rest."""
        left = self.end - time.monotonic()
        if left < seconds:
            print(f"{name}: left out, {left:.0f} s are left and it takes about {seconds:.0f}", flush=True)
            return None
        start = time.monotonic()
        try:
            done = work(*arguments)
        except (RuntimeError, ValueError, OutOfMemoryError) as error:
            print(f"{name}: FAILED: {type(error).__name__} {error}", flush=True)
            return None
        finally:
            print(f"  ({name}: {time.monotonic() - start:.0f} s)", flush=True)
        return done

    def start(self, spec: Mapping[str, Any]) -> Contender:
        """A contender's process, which is killed when the time is up."""
        return Contender(spec, self.torch_python, self.end - time.monotonic())

    def answers(self, *specs: Mapping[str, Any], ask: bool = False) -> list[dict[str, Any]]:
        """What contenders say, of which all are started at once; asked, in turn once all have compiled."""
        contenders: list[Contender] = []
        try:
            contenders += [self.start(spec) for spec in specs]
            if not ask:
                return [contender.answer() for contender in contenders]
            compiled(contenders)
            return [contender.ask() for contender in contenders]
        finally:
            for contender in contenders:
                contender.close()

    def check(self) -> None:
        """Hold PyTorch's logits and losses to ours. Raises ValueError where they differ."""
        with tempfile.TemporaryDirectory() as folder:
            changes = {**CHECKED, "precision": "float32", "arrays": f"{folder}/check.npz", "serve": False}
            for kind in (OURS, "torch eager"):
                answers = self.answers(specification(self.plan.shapes[0], self.plan, kind, **changes))
        far = max(answers[0]["logits_difference"], answers[0]["loss_difference"])
        if not far <= TOLERANCE:
            raise ValueError(f"logits or losses of the two models differ by {far:.2g} where {TOLERANCE:g} is allowed")
        print(f"check: the models are the same: logits and losses within {far:.1g}", flush=True)

    def check_attention(self) -> None:
        """Hold the losses of training with cuDNN's attention to those with the reference. Raises ValueError."""
        changes = {**CHECKED, "precision": "bfloat16", "serve": False}
        with tempfile.TemporaryDirectory() as folder:
            specs = [
                specification(self.plan.shapes[0], self.plan, OURS, **changes, arrays=f"{folder}/{name}.npz",
                              execution={"attention": name})
                for name in ("cudnn", "xla")
            ]  # fmt: skip
            losses = [answer["losses"] for answer in self.answers(*specs)]
        far = max(abs(a - b) for a, b in zip(*losses, strict=True))
        if not far <= HALF_TOLERANCE:
            raise ValueError(f"losses with cuDNN's attention and with the reference differ by {far:.2g}")
        print(f"check: losses in bfloat16 with cuDNN's attention are the reference's within {far:.1g}", flush=True)

    def compare(self, shape: Shape) -> int:
        """Both sides in turn, at the largest batch that fits; the batch."""
        from scaling import counting
        from scaling.config import families

        model = families.Transformer.gpt2(shape.width, shape.depth, shape.heads)
        params = counting.params(model, self.plan.vocabulary, self.plan.context)
        batch = batch_of(params, shape, self.plan, 0.45 * self.memory)
        flops = counting.flops_per_token(model, self.plan.vocabulary, self.plan.context)
        while True:
            try:
                return self._rounds(shape, batch, params, flops)
            except OutOfMemoryError as error:
                if batch == 1:
                    raise
                print(f"{shape.name}: {error} does not fit at {batch} sequences; half of them", flush=True)
                batch //= 2

    def _rounds(self, shape: Shape, batch: int, params: int, flops: float) -> int:
        sides: dict[str, Contender] = {}
        answers: dict[str, list[dict[str, Any]]] = {OURS: [], self.plan.theirs: []}
        try:
            for kind, more in ((self.plan.theirs, {}), (OURS, {"execution": WAYS[0], "resident": 2**20})):
                sides[kind] = self.start(specification(shape, self.plan, kind, batch=batch, **more))
            compiled(list(sides.values()))
            for number in range(ROUNDS):
                for kind in list(answers)[:: -1 if number % 2 else 1]:
                    answers[kind].append(sides[kind].ask())
            if shape == self.plan.shapes[0]:
                self.trace(sides[OURS])
        finally:
            for side in sides.values():
                side.close()
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(*answers.values(), strict=True)]
        for kind, rounds in answers.items():
            if {one["params"] for one in rounds} != {params}:
                raise ValueError(f"{kind} has {rounds[0]['params']:,} parameters where the count says {params:,}")
            self.line(
                shape.name, kind, batch, rounds, flops, f", {statistics.median(ratios):.2f} of torch" * (kind == OURS)
            )
        return batch

    def line(
        self, name: str, kind: str, batch: int, rounds: Sequence[Mapping[str, Any]], flops: float, more: str
    ) -> None:
        """Print medians of one contender and keep all."""
        speed = statistics.median(one["tokens_per_second"] for one in rounds)
        mfu = f", MFU {speed * flops / self.peak:.1%}" if self.peak else ""
        peak = rounds[-1]["peak_bytes"]
        memory = f", peak {peak / 2**30:.1f} GiB" if peak else ""
        print(f"{name:>5} {kind}, batch {batch}: {speed:,.0f} tokens/s{mfu}{memory}, compiled in "
              f"{rounds[0]['compile_seconds']:.0f} s, loss {rounds[-1]['loss']:.2f}{more}", flush=True)  # fmt: skip
        self.measured.append(
            {"name": name, "kind": kind, "batch": batch, "flops_per_token": flops, "rounds": [*rounds]}
        )

    def trace(self, contender: Contender) -> None:
        """Three steps as files that Perfetto (perfetto_trace.json.gz) and TensorBoard (xplane.pb) open."""
        with tempfile.TemporaryDirectory() as folder:
            contender.ask(trace=folder)
            for file in Path(folder).rglob("*"):
                if file.name == "perfetto_trace.json.gz" or file.name.endswith(".xplane.pb"):
                    kept = self.out / f"step.{'xplane.pb' if file.suffix == '.pb' else file.name}"
                    shutil.copy(file, kept)
                    print(f"trace: {kept} ({kept.stat().st_size / 2**20:.1f} MiB)", flush=True)

    def pack(self, shape: Shape, members: int) -> None:
        """Runs an hour, each of 20 tokens a parameter, alone and packed, as many steps a dispatch as is usual."""
        from scaling import config

        changes = {"context": self.plan.pack_context, "vocabulary": 256 if self.plan is GPU else 512, "batch": 16}
        changes |= {"resident": 2**20, "steps_per_dispatch": config.Execution().steps_per_dispatch}
        specs = [specification(shape, self.plan, OURS, members=count, **changes) for count in (1, members)]
        answers = self.answers(*specs, ask=True)
        for count, one in zip((1, members), answers, strict=True):
            self.measured.append({"name": shape.name, "kind": "pack", "members": count, "rounds": [one]})
        alone, packed = (3600 * one["tokens_per_second"] / (20 * one["params"]) for one in answers)
        about = f"context {self.plan.pack_context}, batch 16, 20 tokens a parameter"
        print(f"{shape.name:>5} runs an hour ({about}): {alone:,.0f} alone, {packed:,.0f} in packs of {members}: "
              f"{packed / alone:.1f} times", flush=True)  # fmt: skip

    def way(self, shape: Shape, batch: int, execution: dict[str, Any]) -> None:
        """Ours with other settings."""
        from scaling import counting
        from scaling.config import families

        model = families.Transformer.gpt2(shape.width, shape.depth, shape.heads)
        flops = counting.flops_per_token(model, self.plan.vocabulary, self.plan.context)
        more = {"batch": batch, "execution": execution, "resident": 2**20}
        answers = self.answers(specification(shape, self.plan, OURS, **more), ask=True)
        self.line(shape.name, f"ours {json.dumps(execution)}", batch, answers, flops, "")


def main() -> None:
    """Measure, print and write gpu.json; exits with status 2 where this machine is not fit for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU: tries the logic, measures nothing")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="a folder for the files")
    given = parser.parse_args()
    plan = SMALL if given.small else GPU
    lacking = [name for name in missing() if name != "torch" or given.torch_python == sys.executable]
    try:
        if lacking:
            raise ValueError(f"missing here: {', '.join(lacking)}; see the end of `python -m benchmarks.gpu --help`")
        name, memory = ("CPU", 2**33) if given.small else gpu()
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    from scaling import devices

    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(plan, given.torch_python, name, memory, devices.peak_flops(name), given.out)
    print(f"{name}, {memory / 2**30:.0f} GiB; at most {plan.limit:.0f} s", flush=True)
    bench.all()
    content = {"device": name, "plan": dataclasses.asdict(plan), "measured": bench.measured}
    (given.out / "gpu.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
