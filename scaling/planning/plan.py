"""From a sweep to its runs, with what each will cost, before anything is trained. No JAX here.

`resolve` gives every run its learning rate and, once the corpus is prepared, its name; `rows` counts them; `warnings`
says what a careful reader would object to.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling import config, counting, memory, schema, store
from scaling.config import grids, rates, trunks
from scaling.data import corpus as corpora
from scaling.planning import packing, timing
from scaling.store import record
from scaling.store import settings as fields

# Tokens per parameter at the compute optimum (Hoffmann et al. 2203.15556, table 3): about 20.
OPTIMAL_TOKENS_PER_PARAM = 20.0
# Epochs up to which repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2305.16264): about 4.
EPOCHS_WORTH = 4.0
# A parabola in log N fitted over a wider range than this is biased even without noise (2603.22339).
WIDEST_GRID = 30.0


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run of a sweep; `corpus` is None while the text is not prepared, `run_id` also while it is not tuned."""

    run: config.Run
    labels: Mapping[str, grids.Label]
    corpus: corpora.Corpus | None
    run_id: str | None

    @property
    def tuning(self) -> bool:
        """Whether the run is one of the tune stage."""
        return self.labels.get("stage") == "tune"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every run of a sweep: the tune stage, then trunks, then the runs of the grid, some of them branches.

    `pending` says why the learning rates of the grid are not known yet.
    """

    tune: tuple[Planned, ...]
    runs: tuple[Planned, ...]
    pending: str
    optima: Mapping[str, float]
    trunks: tuple[Planned, ...] = ()

    @property
    def all(self) -> tuple[Planned, ...]:
        """Tune stage, trunks and grid."""
        return self.tune + self.trunks + self.runs


def resolve(
    sweep: config.Sweep,
    corpus_of: Callable[[config.Data], corpora.Corpus | None],
    results: store.Store | None,
) -> Plan:
    """The runs of a sweep with their learning rates, as far as the store's results allow.

    `corpus_of` is `corpus.find` or `corpus.prepare`; it is called once for each text of the sweep. Raises ValueError
    where tuning ended at an edge of its grid (see `rates.optimum`), or a rule makes one run of several.
    """
    points = sweep.points()
    found = functools.cache(corpus_of)
    tune = tuple(_planned(point, found(point.run.data)) for point in sweep.learning_rate.tuning_points(points))
    optima, pending = _optima(tune, results)
    if pending:
        unnamed = [Planned(p.run, p.labels, found(p.run.data), None) for p in points]
        return _plan(sweep, tune, unnamed, pending, {}, None)
    chosen = [
        point.edit({"optimizer.learning_rate": sweep.learning_rate.learning_rate(point.run, optima)})
        for point in points
    ]
    if len({point.run for point in chosen}) < len(chosen):
        raise ValueError(
            f"the learning-rate rule {sweep.learning_rate.kind!r} gives runs that differ in nothing else one learning "
            "rate; an axis over optimizer.learning_rate goes with the rule 'as_given'"
        )
    runs = [_planned(point, found(point.run.data)) for point in chosen]
    return _plan(sweep, tune, runs, "", optima, results)


def _plan(
    sweep: config.Sweep,
    tune: tuple[Planned, ...],
    runs: Sequence[Planned],
    pending: str,
    optima: Mapping[str, float],
    results: store.Store | None,
) -> Plan:
    """The plan with the trunks that its runs share."""
    shared = _trunks(runs, results) if sweep.execution.trunks == "auto" else []
    return Plan(tune, tuple(_branches(runs, shared, results)), pending, optima, tuple(trunk for trunk, _ in shared))


def _planned(point: grids.Point, corpus: corpora.Corpus | None) -> Planned:
    return Planned(point.run, point.labels, corpus, point.run.run_id(corpus.data_sha256) if corpus else None)


def _trunks(runs: Sequence[Planned], results: store.Store | None) -> list[tuple[Planned, tuple[config.Run, ...]]]:
    """The trunks of a sweep with the runs that start from each; none for runs that all have their results."""
    by_run = {planned.run: planned for planned in runs}
    found = []
    for trunk, branches in trunks.of(list(by_run)).items():
        first = by_run[branches[0]]
        planned = _planned(grids.Point(trunk, {"family": trunk.model.kind, "role": "trunk"}), first.corpus)
        if first.run_id is None:
            planned = dataclasses.replace(planned, run_id=None)
        if _pays(planned, [by_run[branch] for branch in branches], results):
            found.append((planned, branches))
    return found


def _pays(trunk: Planned, branches: Sequence[Planned], results: store.Store | None) -> bool:
    """Whether a trunk is there already, or costs less than what the runs that still lack a result have in common."""
    begun = results is not None and trunk.run_id is not None and results.begun(trunk.run_id)
    left = [p for p in branches if result(p, results) is None]
    return begun or sum(trunks.branch_step(p.run) for p in left) > trunk.run.steps


def _branches(
    runs: Sequence[Planned],
    shared: Sequence[tuple[Planned, tuple[config.Run, ...]]],
    results: store.Store | None,
) -> list[Planned]:
    """Runs with labels that say which trunk they start from; those that have a result keep what it says."""
    parents = {branch: trunk.run_id or "" for trunk, branches in shared for branch in branches}
    labelled = []
    for planned in runs:
        row = result(planned, results)
        trunk = parents.get(planned.run) if row is None else row["parent_run_id"]
        more = {} if trunk is None else {"role": "branch", "parent_run_id": trunk}
        labelled.append(dataclasses.replace(planned, labels={**planned.labels, **more}))
    return labelled


def result(planned: Planned, results: store.Store | None) -> dict[str, Any] | None:
    """The row of a run that has ended and can be read, or None."""
    return results.readable_result(planned.run_id) if results and planned.run_id else None


def flops_spent(planned: Planned) -> float:
    """The training FLOPs of a run itself: without those of the trunk that it starts from."""
    run = planned.run
    start = trunks.branch_step(run) if planned.labels.get("role") == "branch" else 0
    trained = run.tokens - start * run.batch_tokens
    return counting.flops(run.model, run.vocabulary_size, run.context, trained)


def _optima(tune: Sequence[Planned], results: store.Store | None) -> tuple[dict[str, float], str]:
    """The tuned learning rate of each model, or why they are not known yet."""
    if not tune:
        return {}, ""
    rows = [result(p, results) for p in tune]
    missing = sum(row is None for row in rows)
    if missing:
        return {}, f"{missing} of {len(tune)} runs of the tune stage are not trained yet"
    trials: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for planned, row in zip(tune, rows, strict=True):
        assert row is not None
        loss = math.inf if row["loss"] is None else row["loss"]
        trials[rates.model_key(planned.run.model)].append((planned.run.optimizer.learning_rate, loss))
    models = {rates.model_key(planned.run.model): planned.run.model for planned in tune}
    optima = {}
    for key, pairs in trials.items():
        try:
            optima[key] = rates.optimum(*zip(*pairs, strict=True))
        except ValueError as error:
            model = models[key]
            raise ValueError(f"{model.kind} of width {model.width}, depth {model.depth}: {error}") from error
    return optima, ""


def row(
    planned: Planned, rate: float, execution: config.Execution, limit: float | None = None, cpu: bool = False
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
        "flops_spent": flops_spent(planned),
        "flops_6nd": counting.flops_6nd(*shape, run.tokens),
        "flops_budget": planned.labels.get("flops_budget"),
        "steps": run.steps,
        "warmup_steps": run.schedule.warmup.steps(run.steps, run.batch_tokens),
        "learning_rate": run.optimizer.learning_rate,
        "seed": run.seed,
        "batch_size": run.batch_size,
        "microbatch": microbatch,
        "memory_bytes": memory.needed(run, execution, microbatch, cpu=cpu),
        "seconds": timing.work(run, execution, flops_spent(planned)) / rate,
    }


def settings(planned: Sequence[Planned], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The config fields in which runs differ, of each run, but those that the columns `shown` of a table say."""
    known, names = fields.RunSettings(), [str(index) for index in range(len(planned))]
    for name, p in zip(names, planned, strict=True):
        known.add(name, p.run.identity())
    corpora_of = {p.corpus.data_sha256 if p.corpus else None for p in planned}
    wanted = fields.beside(known.differing(names, one_corpus=len(corpora_of) < 2), shown)
    return [known.of(name, wanted) for name in names]


def check_memory(
    planned: Sequence[Planned], execution: config.Execution, most: float | None, device: str, results: store.Store
) -> None:
    """Refuse a plan with a run, not trained yet, that does not fit `most` bytes a device. Raises ValueError."""
    for p in planned:
        if most is not None and result(p, results) is None:
            where = "each worker on this machine" if device == "cpu" else f"one {device}"
            memory.check(f"run {p.run_id or '(unnamed)'}", p.run, execution, most, where, cpu=device == "cpu")


def largest_need(planned: Sequence[Planned], execution: config.Execution) -> float:
    """Bytes that the arrays of the largest run take on a CPU, at the smallest microbatch that it may have."""
    return max(memory.needed(p.run, execution, memory.microbatches(p.run, execution)[-1], cpu=True) for p in planned)


def packs(plan: Plan, execution: config.Execution, device: str, limit: float | None) -> int:
    """How many programs one device runs for all runs of a plan, packed as `execution.pack` says."""
    groups = collections.Counter(packing.key(p.run) for p in plan.all)
    found = 0
    for p in {packing.key(p.run): p for p in plan.all}.values():
        most = packing.most(p.run, execution, device, memory.needed(p.run, execution), limit)
        found += math.ceil(groups[packing.key(p.run)] / most)
    return found


def warnings(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What would make the law worthless or doubtful, a sentence each with its remedy."""
    return [*_warn_ratio(rows), *_warn_isoflop(rows), *_warn_epochs(rows), *_warn_warmup(rows), *_warn_rates(plan)]


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
    found = []
    for budget, ratios in sorted(budgets.items()):
        low, high, spread = min(ratios.values()), max(ratios.values()), max(ratios) / min(ratios)
        if len(ratios) < 5:
            found.append(f"budget {budget:.3g} has {len(ratios)} sizes; a parabola wants at least 5")
        if not low <= OPTIMAL_TOKENS_PER_PARAM <= high:
            found.append(
                f"budget {budget:.3g} covers {low:.3g} to {high:.3g} tokens per parameter and the usual minimum is "
                f"near {OPTIMAL_TOKENS_PER_PARAM:.0f}: it may lie outside; "
                f"add {'larger' if low > OPTIMAL_TOKENS_PER_PARAM else 'smaller'} sizes"
            )
        if spread > WIDEST_GRID:
            found.append(
                f"budget {budget:.3g} spans a factor {spread:.0f} in size; a parabola in log N is biased over more "
                f"than {WIDEST_GRID:.0f} (arXiv 2603.22339)"
            )
    return found


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


def _warn_rates(plan: Plan) -> list[str]:
    found = []
    highest = max((p.run.optimizer.learning_rate for p in plan.runs), default=0.0)
    if highest > 0.05 and not plan.pending and plan.runs[0].run.optimizer.adam_like:
        found.append(f"learning rates reach {highest:.3g}, far above what Adam is used with; tune them instead")
    return found


def register(
    name: str,
    sweep: config.Sweep,
    planned: Sequence[Planned],
    results: store.Store,
    predicted: timing.Rates | None = None,
) -> str:
    """Write a sweep and its runs to the store; what is there already stays as it is. Returns what a person should know.

    With rates, each run that is not trained yet gets a label `predicted_seconds`; one that it has stays as it was
    first written. Where the data has changed since the sweep was planned, its runs on the old data make room for those
    on the new. Raises ValueError, before anything is written, where the store has a sweep of this name with runs that
    this lacks for another reason.
    """
    before = {m["run_id"]: m["labels"] for m in results.sweep(name)["members"]} if name in results.sweeps() else {}
    lost = [run_id for run_id in before if run_id not in {p.run_id for p in planned}]
    message = ""
    if any(before[run_id].get("role") != "trunk" for run_id in lost):  # trunks come and go with their branches
        message = _set_aside(name, sweep, planned, results, lost)
    members = []
    for p in planned:
        assert p.run_id is not None
        assert p.corpus is not None
        results.add_run(p.run_id, record.config_record(p.run, p.corpus))
        labels = dict(p.labels)
        if "predicted_seconds" in before.get(p.run_id, {}):
            labels["predicted_seconds"] = before[p.run_id]["predicted_seconds"]
        elif predicted is not None and result(p, results) is None:
            rate = predicted.of(p.run, sweep.execution)
            labels["predicted_seconds"] = timing.work(p.run, sweep.execution, flops_spent(p)) / rate
        members.append({"run_id": p.run_id, "labels": labels})
    results.add_sweep(name, sweep.model_dump(mode="json"), members)
    return message


NOT_OF_RUNS = ("execution", "trackers", "tracking")  # fields of a sweep; stores of before have `tracking`


def _grid(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the runs of a stored sweep, but for the content of its data."""
    fields_of = schema.dotted(config.Sweep, stored)
    return {name: value for name, value in fields_of.items() if name.split(".")[0] not in NOT_OF_RUNS}


def _set_aside(
    name: str, sweep: config.Sweep, planned: Sequence[Planned], results: store.Store, lost: Sequence[str]
) -> str:
    """Keep the runs of a sweep on data that has changed as a sweep of another name, where any of them has a result.

    Raises ValueError where the runs were lost for another reason: another grid under an old name.
    """
    old = results.sweep(name)
    results.settings.read(results.files, lost)
    now = {p.corpus.data_sha256 for p in planned if p.corpus is not None}
    then = {results.config(run_id)["data"]["data_sha256"] for run_id in lost if run_id not in results.settings.damaged}
    if not then or then & now or _grid(old["config"]) != _grid(sweep.model_dump(mode="json")):
        raise ValueError(
            f"{results.path} has a sweep {name!r} of {len(old['members'])} runs, {len(lost)} of which are not in this "
            "one; give this sweep another name (--set name=…) or another store"
        )
    message = f"the data has changed since {name} was planned: {len(lost)} runs on the old data are not part of it now"
    if not results.ended(lost):
        return message
    stem, tune = (name.removesuffix(".tune"), ".tune") if name.endswith(".tune") else (name, "")
    aside = f"{stem}.{min(then)[:8]}{tune}"
    results.add_sweep(aside, old["config"], [member for member in old["members"] if member["run_id"] in set(lost)])
    return f"{message}; they are the sweep {aside}"
