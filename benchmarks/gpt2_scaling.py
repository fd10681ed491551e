"""Our side of `train_step`: the program of `scaling.step`, called as the training loop calls it.

    python -m benchmarks.gpt2_scaling '{"width": 64, …}'

prints one JSON object, its last line, as `gpt2_torch` does. With `arrays` it writes there what the peer must reproduce.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import train_step
from scaling import config, models, step

Spec = Mapping[str, Any]
CHECKED_STEPS = 3


class Runner:
    """A program, its state, and random tokens for it."""

    def __init__(self, spec: Spec):
        self.run = train_step.run_of(spec)
        start = time.perf_counter()
        self.program = step.program(self.run, config.Execution(steps_per_dispatch=spec["steps_per_dispatch"]))
        self.compile_seconds = time.perf_counter() - start
        self.state = self.program.stack([self.program.init(np.uint32(0), np.float32(1.0))])
        self.chunk = self.program.steps_per_dispatch
        shape = (self.chunk, spec["batch"], spec["context"] + 1)
        self.tokens = np.random.default_rng(0).integers(spec["vocabulary"], size=shape, dtype=np.int32)
        self.rates: Any = np.full(self.chunk, self.run.optimizer.learning_rate, np.float32)
        self.decays: Any = self.run.optimizer.decay(self.rates).astype(np.float32)

    def dispatch(self, steps: int) -> step.Metrics:
        """Send `steps` steps to the device, the tokens with them; their metrics, not waited for."""
        mine = step.dispatch(self.run, self.tokens[:steps], self.rates[:steps], self.decays[:steps], self.chunk)
        asked = self.program.put(step.together([mine]))
        self.state, metrics = self.program.train(self.state, np.empty(0, np.int32), asked)
        return metrics

    def train(self, seconds: float, least: int, steps: int) -> tuple[int, float]:
        """Dispatch `steps` steps at a time, reading metrics one dispatch behind: steps done and seconds taken."""
        start, done = time.perf_counter(), 0
        pending: step.Metrics | None = None
        while done < least or time.perf_counter() - start < seconds:
            metrics = self.dispatch(steps)
            if pending is not None:
                np.asarray(pending.loss)
            pending = metrics
            done += steps
        jax.block_until_ready(self.state)
        return done, time.perf_counter() - start


def measure(spec: Spec) -> dict[str, Any]:
    """Tokens a second over at least `seconds` and `least_steps` steps, after compiling and warming up.

    A dispatch holds fewer steps than the program allows only where they would last longer than a third of `seconds`.
    """
    runner = Runner(spec)
    runner.train(0.0, 1, 1)
    done, elapsed = runner.train(spec["warm_seconds"], 1, 1)
    steps = max(1, min(runner.chunk, int(spec["seconds"] / 3 / (elapsed / done))))
    done, seconds = runner.train(spec["seconds"], spec["least_steps"], steps)
    return {
        "params": sum(array[0].size for array in runner.state.params.values()),
        "tokens_per_second": done * runner.run.batch_tokens / seconds,
        "steps": done,
        "seconds": seconds,
        "compile_seconds": runner.compile_seconds,
        "steps_a_dispatch": steps,
        "version": jax.__version__,
    }


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
    nnx.update(model, step.unflat(params))
    batches = runner.tokens[:CHECKED_STEPS]
    logits = np.asarray(nnx.jit(lambda model, tokens: model(tokens))(model, batches[0, :, :-1]))
    losses = np.asarray(runner.dispatch(CHECKED_STEPS).loss)[0, :CHECKED_STEPS]
    arrays: Any = {"batches": batches, "logits": logits, "losses": losses, **weights}
    np.savez(spec["arrays"], **arrays)
    return {"params": size, "losses": losses.tolist()}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(check(wanted) if wanted["arrays"] else measure(wanted)))
