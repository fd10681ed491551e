"""A whole sweep from its config to its results: prepare the text, tune learning rates where the sweep asks, train."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from scaling import config, store
from scaling.data import corpus as corpora
from scaling.launch import launcher as launchers
from scaling.launch import watch
from scaling.launch.launchers import local
from scaling.planning import plan, timing
from scaling.storage import retry


def run(
    sweep: config.Sweep,
    store_path: str | Path,
    *,
    workers: int | None,
    launcher: launchers.Launcher | None = None,
    retry_failed: bool = False,
    config_path: Path | None = None,
    log: Callable[[str], None] = print,
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Train what the store lacks of a sweep, tune stage first; True when every run has a result.

    `launcher` starts the workers, by default on this machine. `meanwhile` is called once, when a worker of the last
    stage has nothing left to train and others go on.

    Starting it again goes on where it stopped. The tune stage is a sweep of its own in the store, NAME.tune, so that
    its runs never enter the law. Raises ValueError where tuning failed, before the grid is started.
    """
    results = store.Store(store_path).retrying(retry.Waiter(lambda: False, log))
    launcher = launcher or local.Local()
    prepare = functools.partial(corpora.prepare, log=log)
    resolved, workers, device = _resolve(sweep, prepare, results, launcher, workers)
    stages = [(f"{sweep.name}.tune", resolved.tune)] if resolved.tune else []
    train = functools.partial(
        _train,
        results,
        sweep,
        workers,
        launcher=launcher,
        device=device,
        retry_failed=retry_failed,
        config_path=config_path,
        log=log,
    )
    for name, planned in stages:
        if not train(name, planned):
            return False
        resolved = plan.resolve(sweep, prepare, results)
        if resolved.pending:
            raise ValueError(
                f"{resolved.pending}; see `scaling status {name} --store {store_path}` and fix what failed"
            )
        log(tuned(resolved))
    return train(sweep.name, resolved.trunks + resolved.runs, meanwhile=meanwhile)


def describe(
    sweep: config.Sweep,
    store_path: str | Path,
    launcher: launchers.Launcher,
    workers: int | None,
    config_path: Path | None,
) -> str:
    """What `run` would start now, of its next stage, as text. Writes nothing; prepared text is used where there is."""
    results = store.Store(store_path)
    resolved, workers, _ = _resolve(sweep, corpora.find, results, launcher, workers)
    stages = [(f"{sweep.name}.tune", resolved.tune)] if resolved.pending else []
    name, planned = [*stages, (sweep.name, resolved.trunks + resolved.runs)][0]
    job = _job(results, sweep, workers, name, planned, config_path)
    return f"# {name}: {job.runs} of {len(planned)} runs are open\n{launcher.describe(job)}"


def _resolve(
    sweep: config.Sweep,
    prepare: Callable[..., corpora.Corpus | None],
    results: store.Store,
    launcher: launchers.Launcher,
    workers: int | None,
) -> tuple[plan.Plan, int | None, str]:
    """The plan, how many workers, and the kind of their devices.

    Raises ValueError for what cannot be planned, or does not fit the devices.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers train nothing; start at least 1")
    sweep.learning_rate.tuning_points(sweep.points())  # what cannot be planned is refused before text is prepared
    resolved = plan.resolve(sweep, prepare, results)
    mesh = sweep.execution.mesh
    if workers is None:
        workers = launcher.workers(plan.largest_need(resolved.all, sweep.execution), mesh)
    device, most = launcher.device(_job(results, sweep, workers, sweep.name, resolved.all, None))
    plan.check_memory(resolved.all, sweep.execution, most, device, results)
    return resolved, workers, device


def _job(
    results: store.Store,
    sweep: config.Sweep,
    workers: int | None,
    name: str,
    planned: Sequence[plan.Planned],
    config_path: Path | None,
) -> launchers.Job:
    named = [p.run_id for p in planned if p.run_id is not None]
    left = len(planned) - len(named) + len(results.open(named))
    secrets = tuple(dict.fromkeys(name for tracker in sweep.trackers for name in tracker.secrets))
    return launchers.Job(str(results.path), name, sweep.execution.mesh, left, workers, config_path, secrets)


def _train(
    results: store.Store,
    sweep: config.Sweep,
    workers: int | None,
    name: str,
    planned: Sequence[plan.Planned],
    *,
    launcher: launchers.Launcher,
    device: str,
    retry_failed: bool,
    config_path: Path | None,
    log: Callable[[str], None],
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Train one stage; True when every run of it has a result."""
    message = plan.register(name, sweep, planned, results, timing.rates_if_known(device, results))
    if message:
        log(message)
    if retry_failed:
        for member in results.sweep(name)["members"]:
            results.retry(member["run_id"])
    job = _job(results, sweep, workers, name, planned, config_path)
    launched = launcher.start(job) if job.runs else None
    if launched is not None:
        launched.meanwhile = meanwhile
    elif job.runs:  # a person starts the workers
        return False
    watch.follow(results, name, launched)
    statuses = results.statuses(name)
    failed = [run_id for run_id, status in statuses.items() if status == "failed"]
    for run_id in failed:
        reason = results.status(run_id)["reason"]
        log(f"run {run_id} failed: {reason} (traceback in {results.path}/runs/{run_id}/status.json)")
    if failed:
        stored = f"{results.path}/sweeps/{name}/sweep.json"
        log(f"failed runs are left alone until `scaling sweep {stored} --store {results.path} --retry-failed`")
    for run_id in (run_id for run_id, status in statuses.items() if status == store.DAMAGED):
        log(f"run {run_id} is damaged, and not trained: {results.status(run_id)['reason']}")
    return set(statuses.values()) <= {"finished", "diverged"}


def tuned(resolved: plan.Plan) -> str:
    """What tuning chose, a line a model."""
    lines = ["learning rates at the minimum of a parabola in log lr:"]
    models = {plan.rates.model_key(p.run.model): p.run.model for p in resolved.tune}
    for key, rate in resolved.optima.items():
        lines.append(f"  {models[key].kind} width {models[key].width} depth {models[key].depth}: {rate:.3g}")
    return "\n".join(lines)
