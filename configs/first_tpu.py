"""A first sweep on TPU slices: iso-FLOP on files of text, for a slice of 16 chips, such as v5litepod-16.

Three budgets × five sizes, from 0.5 to 8 million parameters. The text is the folder "text" where workers run,
and where `scaling` plans: docs/first-tpu-pod-sweep.md.
"""

from scaling import config, parametrization
from scaling.config import families, grids, optimizers, schedules, sources, tokenizers


def sweep() -> config.Sweep:
    """15 runs; batches of 64 sequences, which 16 chips divide."""
    base = config.Run(
        model=families.Transformer.modern(width=128, depth=4, heads=4),
        parametrization=parametrization.MuP(base_width=128, base_depth=4, base_head_size=32),
        data=config.Text(
            source=sources.Files(glob="text/**/*.py", validation_fraction=0.05),
            tokenizer=tokenizers.Bytes(),
            validation_tokens=524_288,
        ),
        context=256,
        batch_size=64,
        tokens=64 * 256 * 1_000,
        optimizer=optimizers.AdamW(learning_rate=4e-3, weight_decay=1e-4),
        schedule=schedules.Wsd(warmup=schedules.WarmupTokens(tokens=64 * 256 * 25)),
        precision=config.Precision(compute="bfloat16"),
        clip=1.0,
    )
    shapes = ((96, 4), (128, 4), (160, 4), (192, 4), (256, 4), (320, 4), (320, 6))
    sizes = tuple(grids.Size(width=width, depth=depth, heads=width // 32) for width, depth in shapes)
    return config.Sweep(
        name="first-tpu",
        base=base,
        grid=grids.IsoFlop(
            budgets=(1e14, 3e14, 1e15), sizes=grids.Ladder(sizes=sizes), per_budget=5, tokens_per_param=15.0
        ),
        execution=config.Execution(mesh=config.Mesh(data=16)),
    )
