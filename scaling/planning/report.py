"""What a plan says to a person: each run with its cost, its settings, and what makes the law doubtful. No JAX here."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaling import config, counting, memory
from scaling.planning import packing, plan, timing
from scaling.store import settings as fields

# Tokens per parameter at the compute optimum (Hoffmann et al. 2203.15556, table 3): about 20.
OPTIMAL_TOKENS_PER_PARAM = 20.0
# Epochs up to which repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2305.16264): about 4.
EPOCHS_WORTH = 4.0
# A parabola in log N fitted over a wider range than this is biased even without noise (2603.22339).
WIDEST_GRID = 30.0


def row(
    planned: plan.Planned, rate: float, execution: config.Execution, limit: float | None = None, cpu: bool = False
) -> dict[str, Any]:
    """What a run is and costs: the columns of the plan, in SI units; `rate` is the device's FLOP/s (`timing`).

    `limit` are the device's bytes for arrays, which bound the microbatch; `cpu` whether the device is one.
    """
    run, corpus = planned.run, planned.corpus
    microbatch = memory.planned(run, execution, limit, cpu=cpu)
    shape = (run.model, run.vocabulary_size, run.context)
    flops = counting.flops(*shape, run.tokens)
    return {
        "run_id": planned.run_id,
        "family": planned.labels["family"],
        "width": run.model.width,
        "depth": run.model.depth,
        "params": counting.params(*shape),
        "params_non_embedding": counting.params_non_embedding(*shape),
        "tokens": run.tokens,
        "epochs": run.tokens / corpus.unique_tokens if corpus else None,
        "flops": flops,
        "flops_spent": plan.flops_spent(planned),
        "flops_6nd": counting.flops_6nd(*shape, run.tokens),
        "flops_budget": planned.labels.get("flops_budget"),
        "steps": run.steps,
        "warmup_steps": run.schedule.warmup.steps(run.steps, run.batch_tokens),
        "learning_rate": run.optimizer.learning_rate,
        "seed": run.seed,
        "batch_size": run.batch_size,
        "microbatch": microbatch,
        "memory_bytes": memory.needed(run, execution, microbatch, cpu=cpu),
        "seconds": timing.work(run, execution, plan.flops_spent(planned)) / rate,
    }


def settings(planned: Sequence[plan.Planned], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The config fields in which runs differ, of each run, but those that the columns `shown` of a table say."""
    known, names = fields.RunSettings(), [str(index) for index in range(len(planned))]
    for name, p in zip(names, planned, strict=True):
        known.add(name, p.run.identity())
    corpora_of = {p.corpus.data_sha256 if p.corpus else None for p in planned}
    wanted = fields.beside(known.differing(names, one_corpus=len(corpora_of) < 2), shown)
    return [known.of(name, wanted) for name in names]


def packs(resolved: plan.Plan, execution: config.Execution, device: str, limit: float | None) -> int:
    """How many programs one device runs for all runs of a plan, packed as `execution.pack` says."""
    groups = collections.Counter(packing.key(p.run) for p in resolved.all)
    count = 0
    for p in {packing.key(p.run): p for p in resolved.all}.values():
        most = packing.most(p.run, execution, device, memory.needed(p.run, execution), limit)
        count += math.ceil(groups[packing.key(p.run)] / most)
    return count


def warnings_of(resolved: plan.Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What would make the law worthless or doubtful, a sentence each with its remedy."""
    return [*_warn_ratio(rows), *_warn_isoflop(rows), *_warn_epochs(rows), *_warn_warmup(rows), *_warn_rates(resolved)]


def _warn_ratio(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ratios = [r["tokens"] / r["params_non_embedding"] for r in rows]
    sizes = {r["params_non_embedding"] for r in rows}
    if len(sizes) > 2 and max(ratios) / min(ratios) < 1.5:
        return [
            f"all runs have about {ratios[0]:.3g} tokens per parameter: a fit of L(N, D) cannot tell its exponents "
            "apart; vary tokens at fixed size"
        ]
    return []


def _warn_isoflop(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    budgets: dict[float, dict[int, float]] = collections.defaultdict(dict)
    for r in rows:
        if r["flops_budget"] is not None:
            budgets[r["flops_budget"]][r["params_non_embedding"]] = r["tokens"] / r["params_non_embedding"]
    messages = []
    for budget, ratios in sorted(budgets.items()):
        low, high, spread = min(ratios.values()), max(ratios.values()), max(ratios) / min(ratios)
        if len(ratios) < 5:
            messages.append(f"budget {budget:.3g} has {len(ratios)} sizes; a parabola wants at least 5")
        if not low <= OPTIMAL_TOKENS_PER_PARAM <= high:
            messages.append(
                f"budget {budget:.3g} covers {low:.3g} to {high:.3g} tokens per parameter and the usual minimum is "
                f"near {OPTIMAL_TOKENS_PER_PARAM:.0f}: it may lie outside; "
                f"add {'larger' if low > OPTIMAL_TOKENS_PER_PARAM else 'smaller'} sizes"
            )
        if spread > WIDEST_GRID:
            messages.append(
                f"budget {budget:.3g} spans a factor {spread:.0f} in size; a parabola in log N is biased over more "
                f"than {WIDEST_GRID:.0f} (arXiv 2603.22339)"
            )
    return messages


def _warn_epochs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    over = [r["epochs"] for r in rows if r["epochs"] is not None and r["epochs"] > 1]
    if not over:
        return []
    most = max(over)
    remedy = "use a data-constrained law or more text" if most > EPOCHS_WORTH else "tokens are no longer all fresh"
    return [f"{len(over)} runs repeat the corpus, up to {most:.2f} epochs: {remedy}"]


def _warn_warmup(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    long = [r for r in rows if r["warmup_steps"] > 0.1 * r["steps"] + 0.5]  # a tenth, rounded to whole steps, is none
    if not long:
        return []
    worst = max(r["warmup_steps"] / r["steps"] for r in long)
    return [
        f"{len(long)} runs spend more than a tenth of their steps on warm-up, up to {worst:.0%}, which bends the law "
        "at small budgets (Porian et al. 2406.19146); shorten schedule.warmup"
    ]


def _warn_rates(resolved: plan.Plan) -> list[str]:
    messages = []
    highest = max((p.run.optimizer.learning_rate for p in resolved.runs), default=0.0)
    if highest > 0.05 and not resolved.pending and resolved.runs[0].run.optimizer.adam_like:
        messages.append(f"learning rates reach {highest:.3g}, far above what Adam is used with; tune them instead")
    return messages
