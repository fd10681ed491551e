"""The peer of `train_step`: the same GPT-2 and the same step in PyTorch. Run by its interpreter as a script.

    python gpt2_torch.py '{"kind": "torch compiled", "width": 64, …}'

prints one JSON object, its last line: `{"params": …, "tokens_per_second": …, …}`. With `serve` it stays and measures
whenever asked, see `serve`. `device` is "cpu" or "cuda". Imports nothing of ours.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Spec = Mapping[str, Any]
OPTIMIZER_SECONDS = 0.3  # of trying each implementation of AdamW


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values by one matmul, as in GPT-2's code."""

    def __init__(self, width: int, heads: int, epsilon: float):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        parts = self.projections(self.attention_norm(x)).split(width, dim=2)
        query, key, value = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, time, width))
        hidden = functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(hidden)


class Gpt2(nn.Module):
    """GPT-2 (Radford et al. 2019) without dropout, its head tied to the embedding; initial values are normal, 0.02."""

    def __init__(self, spec: Spec):
        super().__init__()
        width = spec["width"]
        self.embedding = nn.Embedding(spec["vocabulary"], width)
        self.position = nn.Parameter(torch.empty(spec["context"], width))
        self.blocks = nn.ModuleList(Block(width, spec["heads"], spec["epsilon"]) for _ in range(spec["depth"]))
        self.norm = nn.LayerNorm(width, eps=spec["epsilon"])
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take our weights, named and shaped as in `families.Transformer.weights`; all must find a place."""
        left = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

        def layer(name: str, index: int, rows: int) -> torch.Tensor:
            """One layer of a stack as a matrix of `rows` inputs, or as a vector (rows 0)."""
            value = left["layers." + name][index]
            return value.reshape(rows, -1).T if rows else value.reshape(-1)

        width = self.embedding.embedding_dim
        state = {"embedding.weight": left["embedding"], "position": left["position"]}
        state |= {"norm.weight": left["norm.scale"], "norm.bias": left["norm.bias"]}
        for i in range(len(self.blocks)):
            names = [f"attention.{part}" for part in ("query", "key", "value")]
            block = {
                "projections.weight": torch.cat([layer(name, i, width) for name in names]),
                "projections.bias": torch.cat([layer(f"{name}_bias", i, 0) for name in names]),
                "output.weight": layer("attention.output", i, width),
                "output.bias": layer("attention.output_bias", i, 0),
                "up.weight": layer("mlp.up", i, width),
                "up.bias": layer("mlp.up_bias", i, 0),
                "down.weight": layer("mlp.down", i, 4 * width),
                "down.bias": layer("mlp.down_bias", i, 0),
            }
            for norm in ("attention_norm", "mlp_norm"):
                block[f"{norm}.weight"] = layer(f"{norm}.scale", i, 0)
                block[f"{norm}.bias"] = layer(f"{norm}.bias", i, 0)
            state |= {f"blocks.{i}.{name}": value for name, value in block.items()}
        self.load_state_dict(state)
        ours, theirs = sum(value.numel() for value in left.values()), count(self)
        if ours != theirs:
            raise ValueError(f"{ours} parameters given and the model has {theirs}; the two models are not the same")


def count(model: nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


class Trainer:
    """One model with its AdamW and its step, compiled or eager."""

    def __init__(self, spec: Spec, arrays: Mapping[str, np.ndarray] | None = None):
        torch.manual_seed(0)
        self.spec = spec
        self.device = spec.get("device", "cpu")
        self.model = Gpt2(spec)
        if arrays is not None:
            self.model.load(arrays)
        self.model.to(self.device)
        self.loss = torch.compile(self._loss, dynamic=False) if spec["kind"] == "torch compiled" else self._loss
        self.use("fused")

    def use(self, implementation: str) -> None:
        """A fresh AdamW, "fused" or "foreach". Biases, gains and positions do not decay."""
        spec, named = self.spec, list(self.model.named_parameters())
        kept = [p for name, p in named if p.ndim < 2 or name == "position"]
        decayed = [p for name, p in named if not (p.ndim < 2 or name == "position")]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": spec["weight_decay"]}, {"params": kept, "weight_decay": 0.0}],
            lr=spec["learning_rate"],
            betas=(spec["beta1"], spec["beta2"]),
            eps=spec["adam_epsilon"],
            **{implementation: True},
        )

    def _loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        low = self.spec["precision"] == "bfloat16"
        with torch.autocast(self.device, torch.bfloat16) if low else contextlib.nullcontext():
            logits = self.model(tokens)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def wait(self) -> None:
        """Until all steps are done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def apply(self) -> None:
        """Clip the gradient and update."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.spec["clip"])
        self.optimizer.step()

    def step(self, batch: torch.Tensor) -> torch.Tensor:
        """One optimizer step on (batch, context + 1) tokens; the loss before it, not waited for."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        self.apply()
        return loss.detach()


def batches_of(spec: Spec) -> torch.Tensor:
    """Eight batches of random tokens, on the device."""
    shape = (8, spec["batch"], spec["context"] + 1)
    tokens = np.random.default_rng(0).integers(spec["vocabulary"], size=shape, dtype=np.int64)
    return torch.from_numpy(tokens).to(spec.get("device", "cpu"))


def measure(spec: Spec) -> dict[str, Any]:
    """Tokens a second over at least `seconds` and `least_steps` steps, after compiling and warming up."""
    trainer, batches = Trainer(spec), batches_of(spec)
    start = time.perf_counter()
    trainer.step(batches[0])
    compile_seconds = time.perf_counter() - start
    speeds = {name: _updates_per_second(trainer, name) for name in ("foreach", "fused")}
    best = max(speeds, key=lambda name: speeds[name])
    trainer.use(best)
    _, first = _timed(lambda i: trainer.step(batches[i % len(batches)]), 0.0, 1)
    if first < spec["warm_seconds"]:
        _timed(lambda i: trainer.step(batches[i % len(batches)]), spec["warm_seconds"], 1)
    steps, seconds = _timed(lambda i: trainer.step(batches[i % len(batches)]), spec["seconds"], spec["least_steps"])
    return {
        "params": count(trainer.model),
        "tokens_per_second": steps * spec["batch"] * spec["context"] / seconds,
        "steps": steps,
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "optimizer": best,
        "threads": torch.get_num_threads(),
        "version": torch.__version__,
    }


def _updates_per_second(trainer: Trainer, implementation: str) -> float:
    trainer.use(implementation)
    trainer.apply()  # makes the optimizer's state
    updates, seconds = _timed(lambda _: trainer.apply(), OPTIMIZER_SECONDS, 1)
    return updates / seconds


def _timed(
    function: Callable[[int], object], seconds: float, least: int, wait: Callable[[], None] = lambda: None
) -> tuple[int, float]:
    """Call until `seconds` have passed, at least `least` times: how often, and how long it took with the wait."""
    start, done = time.perf_counter(), 0
    while done < least or time.perf_counter() - start < seconds:
        function(done)
        done += 1
        if done % 4 == 0:
            wait()  # or a queue of steps would outlast the clock
    wait()
    return done, time.perf_counter() - start


def serve(spec: Spec) -> None:
    """Compile, then for each line of input that is a specification's change measure, and print a line of JSON.

    Takes the fused AdamW. float32 matrix products, of which bfloat16 leaves none that count, may use TF32.
    """
    torch.set_float32_matmul_precision("high")
    trainer, batches = Trainer(spec), batches_of(spec)
    start = time.perf_counter()
    trainer.step(batches[0])
    trainer.wait()
    compile_seconds = time.perf_counter() - start

    def step(index: int) -> torch.Tensor:
        return trainer.step(batches[index % len(batches)])

    for line in sys.stdin:
        asked = {**spec, **json.loads(line)}
        _timed(step, asked["warm_seconds"], 1, trainer.wait)
        steps, seconds = _timed(step, asked["seconds"], asked["least_steps"], trainer.wait)
        answer = {
            "params": count(trainer.model),
            "tokens_per_second": steps * spec["batch"] * spec["context"] / seconds,
            "steps": steps,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "peak_bytes": torch.cuda.max_memory_allocated() if trainer.device == "cuda" else None,
            "loss": step(0).item(),
            "version": torch.__version__,
        }
        print(json.dumps(answer), flush=True)


def parts(spec: Spec) -> dict[str, Any]:
    """Seconds that all products of a step with weights take alone, three passes each, and its attention."""
    rows, width = spec["batch"] * spec["context"], spec["width"]
    total = 0.0
    for inputs, outputs, times in spec["products"]:
        x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        total += times * _seconds(functional.linear, spec, x, weight)
        total += times * _seconds(torch.mm, spec, gradient, weight)
        total += times * _seconds(torch.mm, spec, gradient.T, x)

    def attend(gradient: torch.Tensor, *arrays: torch.Tensor) -> None:
        shape = (spec["batch"], spec["context"], spec["heads"], -1)
        parts = (x.detach().requires_grad_().view(shape).transpose(1, 2) for x in arrays)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        mixed.transpose(1, 2).reshape(rows, width).backward(gradient)

    arrays = [torch.randn(rows, width) for _ in range(4)]
    return {"matmul_seconds": total, "attention_seconds": spec["depth"] * _seconds(attend, spec, *arrays)}


def _seconds(function: Callable[..., object], spec: Spec, *arrays: torch.Tensor) -> float:
    """The median over calls, after one that warms up."""
    function(*arrays)
    taken: list[float] = []
    while len(taken) < spec["part_calls"] or sum(taken) < spec["part_seconds"]:
        taken.append(_timed(lambda _: function(*arrays), 0.0, 1)[1])
    return statistics.median(taken)


def check(spec: Spec) -> dict[str, Any]:
    """Our weights, batches, logits and losses from the file `arrays`, and how far this model is from them."""
    with np.load(spec["arrays"]) as file:
        given = dict(file)
    weights = {name.removeprefix("weight:"): value for name, value in given.items() if name.startswith("weight:")}
    trainer = Trainer(spec, weights)
    batches = torch.from_numpy(given["batches"].astype(np.int64)).to(trainer.device)
    with torch.no_grad():
        logits = trainer.model(batches[0, :, :-1]).cpu().numpy()
    losses = [trainer.step(batch).item() for batch in batches]
    return {
        "params": count(trainer.model),
        "logits_difference": float(np.abs(logits - given["logits"]).max()),
        "loss_difference": float(np.abs(np.array(losses) - given["losses"]).max()),
        "losses": losses,
    }


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    if wanted.get("serve"):
        serve(wanted)
    else:
        work = parts if wanted.get("products") else check if wanted["arrays"] else measure
        print(json.dumps(work(wanted)))
