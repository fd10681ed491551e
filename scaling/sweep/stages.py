"""A whole sweep from its config to its results: prepare the text, tune learning rates where the sweep asks, train."""

import functools
from collections.abc import Callable
from pathlib import Path

from scaling import config
from scaling.data import corpus as corpora
from scaling.launch import local
from scaling.sweep import plan, store, timing, watch


def run(
    sweep: config.Sweep,
    store_path: Path,
    *,
    workers: int | None,
    retry_failed: bool = False,
    config_path: Path | None = None,
    log: Callable[[str], None] = print,
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Train what the store lacks of a sweep, tune stage first; True when every run has a result.

    `meanwhile` is called once when, at the end of the ladder, a worker has nothing left to train and others go on.

    Starting it again goes on where it stopped. The tune stage is a sweep of its own in the store, NAME.tune, so that
    its runs never enter the law. Raises ValueError where tuning failed, before the ladder is started.
    """
    results = store.Store(store_path)
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers train nothing; start at least 1")
    sweep.learning_rate.tuning_points(sweep.points())  # what cannot be planned is refused before text is prepared
    prepare = functools.partial(corpora.prepare, log=log)
    rates = functools.partial(timing.rates_here, bool(local.find_accelerators()), results)
    resolved = plan.resolve(sweep, prepare, results)
    if workers is None:
        workers = local.default_workers(plan.largest_need(resolved.all, sweep.execution), sweep.execution.mesh)
    device, most = local.memory_limit(workers, len(resolved.all), sweep.execution.mesh)
    plan.check_memory(resolved.all, sweep.execution, most, device, results)
    stages = [(f"{sweep.name}.tune", resolved.tune)] if resolved.tune else []
    for name, planned in stages:
        plan.register(name, sweep, planned, results, rates())
        if not _train(results, name, workers, retry_failed, config_path, log):
            return False
        resolved = plan.resolve(sweep, prepare, results)
        if resolved.pending:
            raise ValueError(
                f"{resolved.pending}; see `scaling status {name} --store {store_path}` and mend what failed"
            )
        log(tuned(resolved))
    plan.register(sweep.name, sweep, resolved.trunks + resolved.runs, results, rates())
    return _train(results, sweep.name, workers, retry_failed, config_path, log, meanwhile)


def _train(
    results: store.Store,
    name: str,
    workers: int | None,
    retry: bool,
    config_path: Path | None,
    log: Callable[[str], None],
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    launched = local.launch(results.path, name, workers, retry_failed=retry, config_path=config_path)
    launched.meanwhile = meanwhile
    watch.follow(results, name, launched)
    statuses = results.statuses(name)
    failed = [run_id for run_id, status in statuses.items() if status == "failed"]
    for run_id in failed:
        reason = results.status(run_id)["reason"]
        log(f"run {run_id} failed: {reason} (traceback in {results.path}/runs/{run_id}/status.json)")
    if failed:
        stored = results.sweep_folder(name) / "sweep.json"
        log(f"failed runs are left alone until `scaling sweep {stored} --store {results.path} --retry-failed`")
    return set(statuses.values()) <= {"finished", "diverged"}


def tuned(resolved: plan.Plan) -> str:
    """What tuning chose, a line a model."""
    lines = ["learning rates at the minimum of a parabola in log lr:"]
    models = {plan.rates.model_key(p.run.model): p.run.model for p in resolved.tune}
    for key, rate in resolved.optima.items():
        lines.append(f"  {models[key].kind} width {models[key].width} depth {models[key].depth}: {rate:.3g}")
    return "\n".join(lines)
