"""The sweep that is disturbed: tiny transformers of several sizes, some alone, some branches of a trunk."""

from pathlib import Path

from scaling import config, store
from scaling.config import grids
from scaling.data import corpus
from scaling.planning import plan, registering

NAME = "chaos"
EVALUATIONS = 4  # of a run
CHECKPOINT_SECONDS = 0.5


def sweep(*, widths: tuple[int, ...], seeds: int, trunks: int, steps: int) -> config.Sweep:
    """`seeds` runs alone and `trunks` trunks with three branches each, of every width; `steps` those of the longest."""
    base = config.Run.model_validate(
        {
            "model": {
                "kind": "transformer", "width": widths[0], "depth": 1, "heads": 2, "norm": "rmsnorm",
                "position": "rotary", "mlp": "gelu", "biases": False, "qk_norm": False,
            },
            "parametrization": {"kind": "standard"},
            "data": {
                "source": {
                    "kind": "synthetic", "alphabet": 16, "exponent": 1.2, "seed": 0, "train_symbols": 200_000,
                    "validation_symbols": 4_200,
                },
                "tokenizer": {"kind": "bytes"},
                "validation_tokens": 4_096,
            },
            "context": 32,
            "batch_size": 8,
            "tokens": 8 * 32 * steps,
            "optimizer": {"kind": "adamw", "learning_rate": 0.003},
            "schedule": {"kind": "cosine", "warmup": {"kind": "fraction", "fraction": 0.05}},
            "precision": {"compute": "float32"},
        }
    )  # fmt: skip
    sizes = grids.Axis(field="model.width", values=widths)
    alone = grids.Product(parts=(sizes, grids.Axis(field="seed", values=tuple(range(seeds)))))
    lengths = tuple(base.batch_tokens * (steps * share // 8) for share in (4, 6, 8))
    warmup = {"kind": "tokens", "tokens": base.batch_tokens * (steps // 20)}
    schedule = {"kind": "wsd", "warmup": warmup, "cooldown": 0.25}
    branches = grids.Product(
        parts=(
            grids.Axis(field="schedule", values=(schedule,)),
            sizes,
            grids.Axis(field="seed", values=tuple(range(trunks))),
            grids.Axis(field="tokens", values=lengths),
        )
    )
    execution = config.Execution(evaluations=EVALUATIONS, steps_per_dispatch=8, checkpoint_seconds=CHECKPOINT_SECONDS)
    return config.Sweep(name=NAME, base=base, grid=grids.Chain(parts=(alone, branches)), execution=execution)


def plant(path: Path, settings: config.Sweep) -> store.Store:
    """A store in which nothing of the sweep is trained. The text is prepared in the cache."""
    results = store.Store(path)
    planned = plan.resolve(settings, lambda data: corpus.prepare(data, lambda line: None), results)
    registering.register(NAME, settings, planned.all, results)
    return results
