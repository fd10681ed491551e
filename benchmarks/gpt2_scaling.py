"""Our side of `train_step`: the program of `scaling.training.programs`, called as the training loop calls it.

    python -m benchmarks.gpt2_scaling '{"width": 64, …}'

prints one JSON object, its last line, as `gpt2_torch` does. With `arrays` it writes there what the peer must reproduce.
With `serve` it stays and measures whenever asked, see `serve`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import anatomy
from scaling import config, models, parametrization
from scaling.config import families, optimizers, schedules, sources, tokenizers
from scaling.data import examples
from scaling.models.ops import attention, products
from scaling.training import mesh, programs, states, steps, updates

Spec = Mapping[str, Any]
CHECKED_STEPS = 3


def run_of(spec: Mapping[str, Any]) -> config.Run:
    """The run that a contender's specification describes; its corpus is named and never read."""
    vocabulary = spec["vocabulary"]
    tokenizer = tokenizers.Bytes() if vocabulary == 256 else tokenizers.Bpe(vocabulary_size=vocabulary)
    return config.Run(
        model=families.Transformer.gpt2(spec["width"], spec["depth"], spec["heads"]),
        parametrization=parametrization.Standard(),
        data=config.Text(source=sources.PythonSource(), tokenizer=tokenizer, validation_tokens=spec["context"]),
        context=spec["context"],
        batch_size=spec["batch"],
        tokens=spec["batch"] * spec["context"],
        optimizer=optimizers.AdamW(
            learning_rate=spec["learning_rate"],
            weight_decay=spec["weight_decay"],
            independent=False,
            beta1=spec["beta1"],
            beta2=spec["beta2"],
            epsilon=spec["adam_epsilon"],
        ),
        schedule=schedules.Constant(warmup=schedules.WarmupFraction(fraction=0.0)),
        precision=config.Precision(compute=spec["precision"]),
        clip=spec["clip"],
    )


class Runner:
    """A program, its state, and random tokens for it: batches, or with `resident` a corpus that stays on the device.

    `execution` of the specification are settings of `config.Execution`, `members` the size of a pack of equal runs.
    """

    def __init__(self, spec: Spec):
        self.run, self.members = run_of(spec), spec.get("members", 1)
        start = time.perf_counter()
        execution = config.Execution(steps_per_dispatch=spec["steps_per_dispatch"], **spec.get("execution", {}))
        generator = np.random.default_rng(0)
        self.chunk, corpus_tokens = execution.steps_per_dispatch, spec.get("resident")
        resident = (corpus_tokens, "int32") if corpus_tokens else None
        layout = examples.text_layout(self.run.context, resident)
        self.program = programs.program(self.run, execution, self.members, layout)
        self.compile_seconds = time.perf_counter() - start
        one = self.program.init(np.uint32(0), np.float32(1.0))
        self.state = self.program.stack([one] * self.members)
        shape = (self.chunk, spec["batch"], *([] if resident else [spec["context"] + 1]))
        most = corpus_tokens or spec["vocabulary"]
        self.tokens = generator.integers(most, size=shape, dtype=np.int32)
        corpus = generator.integers(spec["vocabulary"], size=corpus_tokens or 0, dtype=np.int32)
        self.corpus = {"tokens": jax.device_put(corpus, mesh.replicated(self.program.mesh))} if resident else {}
        self.rates: Any = np.full(self.chunk, self.run.optimizer.learning_rate, np.float32)
        self.decays: Any = self.run.optimizer.decay(self.rates).astype(np.float32)

    def dispatch(self, count: int) -> updates.Metrics:
        """Send `count` steps to the device, the tokens with them; their metrics, not waited for."""
        data: Any = self.tokens[:count] if self.program.resident else {"tokens": self.tokens[:count]}
        mine = steps.dispatch(self.run, data, self.rates[:count], self.decays[:count], self.chunk)
        asked = self.program.put(steps.together([mine] * self.members))
        self.state, metrics = self.program.train(self.state, self.corpus, asked)
        return metrics

    def train(self, seconds: float, least: int, count: int) -> tuple[int, float]:
        """Dispatch `count` steps at a time, reading metrics one dispatch behind: steps done and seconds taken."""
        start, done = time.perf_counter(), 0
        pending: updates.Metrics | None = None
        while done < least or time.perf_counter() - start < seconds:
            metrics = self.dispatch(count)
            if pending is not None:
                np.asarray(pending.loss)
            pending = metrics
            done += count
        jax.block_until_ready(self.state)
        return done, time.perf_counter() - start


def measure(spec: Spec, runner: Runner | None = None) -> dict[str, Any]:
    """Tokens a second over at least `seconds` and `least_steps` steps, after compiling and warming up.

    A dispatch holds fewer steps than the program allows only where they would last longer than a third of `seconds`.
    """
    runner = runner or Runner(spec)
    done, elapsed = runner.train(0.0, 1, 1)
    if elapsed < spec["warm_seconds"]:
        done, elapsed = runner.train(spec["warm_seconds"], 1, 1)
    count = max(1, min(runner.chunk, int(spec["seconds"] / 3 / (elapsed / done))))
    done, seconds = runner.train(spec["seconds"], spec["least_steps"], count)
    return {
        "params": sum(array[0].size for array in runner.state.params.values()),
        "tokens_per_second": done * runner.members * runner.run.batch_tokens / seconds,
        "steps": done,
        "seconds": seconds,
        "compile_seconds": runner.compile_seconds,
        "steps_a_dispatch": count,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "loss": float(np.asarray(runner.dispatch(1).loss)[0, 0]),
        "version": jax.__version__,
    }


def serve(spec: Spec) -> None:
    """Compile, then for each line of input that is a specification's change measure, and print a line of JSON.

    A change with `trace` names a folder, where three steps are traced for Perfetto and TensorBoard instead.
    """
    runner = Runner(spec)
    for line in sys.stdin:
        change = json.loads(line)
        if "trace" in change:
            runner.train(0.0, 1, 1)
            with jax.profiler.trace(change["trace"], create_perfetto_trace=True):
                runner.train(0.0, 3, 1)
            print("{}", flush=True)
        else:
            print(json.dumps(measure({**spec, **change}, runner)), flush=True)


def parts(spec: Spec) -> dict[str, Any]:
    """Seconds that all products of a step with weights take alone, three passes each, and its attention."""
    rows = spec["batch"] * spec["context"]
    total = 0.0
    for inputs, outputs, times in anatomy.products(spec, fused=False):
        x, weight, gradient = (_random(*shape) for shape in ((rows, inputs), (inputs, outputs), (rows, outputs)))
        total += times * _seconds(jax.jit(lambda x, w: x @ w), x, weight)
        total += times * _seconds(jax.jit(lambda g, w: g @ w.T), gradient, weight)
        total += times * _seconds(
            jax.jit(lambda x, w, g: jax.vjp(products.product, x, w)[1](g)[1]), x, weight, gradient
        )
    heads, size = spec["heads"], spec["width"] // spec["heads"]

    def mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        split = (x.reshape(spec["batch"], spec["context"], heads, size) for x in (query, key, value))
        return attention.attention(*split, scale=size**-0.5, bias=None, causal=True).reshape(rows, -1)

    arrays = [_random(rows, spec["width"]) for _ in range(4)]
    both = jax.jit(lambda q, k, v, g: jax.vjp(mixed, q, k, v)[1](g))
    return {"matmul_seconds": total, "attention_seconds": spec["depth"] * _seconds(both, *arrays)}


def _random(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def _seconds(function: Callable[..., Any], *arrays: jax.Array) -> float:
    """The median over calls, after one that compiles."""
    jax.block_until_ready(function(*arrays))
    taken: list[float] = []
    while len(taken) < anatomy.CALLS or sum(taken) < anatomy.SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def check(spec: Spec) -> dict[str, Any]:
    """Write initial weights, a few batches, the logits of the first and the losses of training on all of them."""
    runner = Runner(spec)
    run, params = runner.run, runner.program.member(runner.state, 0).params
    weights = {f"weight:{name}": np.array(array) for name, array in params.items()}  # copies: training donates them
    size = sum(array.size for array in weights.values())
    model = models.create(
        run.model,
        vocabulary_size=run.vocabulary_size,
        context=run.context,
        parametrization=run.parametrization,
        compute_dtype=run.precision.compute,
        parameter_dtype=run.precision.parameters,
        layers="unroll",
        remat="none",
        seed=0,
    )
    nnx.update(model, states.unflat(params))
    batches = runner.tokens[:CHECKED_STEPS]
    logits = np.asarray(nnx.jit(lambda model, tokens: model(tokens))(model, batches[0, :, :-1]))
    losses = np.asarray(runner.dispatch(CHECKED_STEPS).loss)[0, :CHECKED_STEPS]
    arrays: Any = {"batches": batches, "logits": logits, "losses": losses, **weights}
    np.savez(spec["arrays"], **arrays)
    return {"params": size, "losses": losses.tolist()}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    if wanted.get("serve"):
        serve(wanted)
    else:
        work = parts if wanted.get("products") else check if wanted["arrays"] else measure
        print(json.dumps(work(wanted)))
