"""The demo: an iso-FLOP sweep of a present-day transformer on the source text of Python's standard library.

Five budgets × five sizes, two seeds at the middle budgets, on two CPU cores in about ten minutes. Learning rates are
tuned at one width and transferred to all sizes by µP.
"""

from scaling import config, parametrization
from scaling.config import families, grids, optimizers, rates, schedules, sources, tokenizers

# (width, depth, heads): from 10 thousand to 0.4 million parameters. Two layers at least: one cannot copy from context.
SIZES = ((12, 2, 1), (16, 2, 1), (24, 2, 2), (32, 2, 2), (48, 2, 3), (64, 2, 4), (64, 3, 4), (80, 3, 5), (96, 3, 6))
BUDGETS = (1e11, 2e11, 4e11, 8e11, 1.6e12)


def sweep() -> config.Sweep:
    """The sweep of `make demo`."""
    base = config.Run(
        model=families.Transformer.modern(width=64, depth=2, heads=4),
        parametrization=parametrization.MuP(base_width=64, base_depth=2, base_head_size=16),
        data=config.Text(source=sources.PythonSource(), tokenizer=tokenizers.Bytes(), validation_tokens=131_072),
        context=128,
        batch_size=4,
        tokens=512 * 1024,
        optimizer=optimizers.AdamW(learning_rate=6e-3, weight_decay=1e-4),
        schedule=schedules.Wsd(warmup=schedules.WarmupTokens(tokens=512 * 40)),
        precision=config.Precision(compute="float32"),
        clip=1.0,
    )
    sizes = grids.Ladder(sizes=tuple(grids.Size(width=w, depth=d, heads=h) for w, d, h in SIZES))
    isoflop = grids.IsoFlop(budgets=BUDGETS, sizes=sizes, per_budget=5, tokens_per_param=45.0)
    again = grids.Product(
        parts=(
            grids.Axis(field="seed", values=(1,)),
            grids.IsoFlop(budgets=BUDGETS[1:4], sizes=sizes, per_budget=1, tokens_per_param=45.0),
        )
    )
    return config.Sweep(
        name="demo",
        base=base,
        grid=grids.Chain(parts=(isoflop, again)),
        learning_rate=rates.Tuned(
            learning_rates=(1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
            tokens=512 * 1024,
            at=grids.Ladder(sizes=(grids.Size(width=64, depth=2, heads=4),)),
        ),
    )
