"""From a sweep to its runs: their learning rates and, once the corpus is prepared, their ids. No JAX here."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling import config, counting, memory, store
from scaling.config import grids, rates, trunks
from scaling.data import corpus as corpora


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
    corpus = functools.cache(corpus_of)
    tune = tuple(_planned(point, corpus(point.run.data)) for point in sweep.learning_rate.tuning_points(points))
    optima, pending = _optima(tune, results)
    if pending:
        unnamed = [Planned(p.run, p.labels, corpus(p.run.data), None) for p in points]
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
    runs = [_planned(point, corpus(point.run.data)) for point in chosen]
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
    shared = []
    for trunk, branches in trunks.of(list(by_run)).items():
        first = by_run[branches[0]]
        planned = _planned(grids.Point(trunk, {"family": trunk.model.kind, "role": "trunk"}), first.corpus)
        if first.run_id is None:
            planned = dataclasses.replace(planned, run_id=None)
        if _pays(planned, [by_run[branch] for branch in branches], results):
            shared.append((planned, branches))
    return shared


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
