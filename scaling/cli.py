"""The `scaling` command: each subcommand imports what it needs only when it runs."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scaling import launch
from scaling.commands import arguments
from scaling.commands.arguments import RESULTS, Objective, RunTable, Table

Name = Annotated[str, tyro.conf.Positional]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="LAW [LAW ...]")]

Kind = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(launch.kinds())}}}")]
Trackers = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KIND|JSON")]
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")]


def plan(
    config: arguments.SweepFile,
    overrides: arguments.Overrides = (),
    store: arguments.Store = RESULTS,
    device: str = "cpu",
) -> None:
    """Print what a sweep would train: every run with its parameters, tokens, FLOPs, memory and time. Writes nothing.

    Args:
        device: Device to predict times for: cpu, or a name such as H100, A100 or "TPU v5p".
    """
    from scaling.commands import planning

    planning.show(config, overrides, store, device)


def prepare(config: arguments.SweepFile, overrides: arguments.Overrides = ()) -> None:
    """Read, tokenise and cache the text of a sweep."""
    from scaling.config import loading
    from scaling.data import corpus

    for data in dict.fromkeys(point.run.data for point in loading.load(config, overrides).points()):
        prepared = corpus.prepare(data)
        print(f"{prepared.unique_tokens:,} training tokens, content {prepared.data_sha256[:16]}")


def train(
    config: arguments.SweepFile,
    overrides: arguments.Overrides = (),
    steps: int | None = None,
    profile: Path | None = None,
    noise_scale: bool = False,
    breakdown: bool = False,
) -> None:
    """Train the base run of a sweep here and now, and show loss, speed and memory. Stores no result.

    Args:
        steps: Train a run of so many steps instead, with a schedule of that length.
        profile: Write a trace of a few dispatches to this folder, for TensorBoard and Perfetto.
        noise_scale: Estimate the gradient noise scale (McCandlish et al. 1812.06162), in tokens.
        breakdown: Measure first what forward, backward, optimizer and data take of a step.
    """
    from scaling.commands import training

    sys.exit(training.show(config, overrides, steps, profile, noise_scale, breakdown))


def sweep(
    config: arguments.SweepFile,
    overrides: arguments.Overrides = (),
    store: arguments.Store = RESULTS,
    workers: arguments.Workers = None,
    retry_failed: arguments.RetryFailed = False,
    launcher: Kind = "local",
    cluster: Settings = (),
    dry_run: bool = False,
) -> None:
    """Train every run of a sweep that the store lacks, then say what the law is. Starting it again goes on.

    Args:
        launcher: What starts the workers; one that the config defines is named by its kind, too.
        cluster: A setting of the launcher, for example --cluster partition=gpu; repeat for more.
        dry_run: Print exactly what would be started, and start and write nothing.
    """
    from scaling.commands import sweeping

    sys.exit(sweeping.run(config, overrides, store, workers, retry_failed, launcher, cluster, dry_run))


def worker(
    store: arguments.StorePlace, sweep: Name, config: Path | None = None, retry_failed: arguments.RetryFailed = False
) -> None:
    """Train the runs of a sweep that nobody has claimed, until none is left. Any number may work on one store.

    Args:
        sweep: Name of a sweep in the store.
        config: The Python file that defines the sweep's own families, trackers and the like.
    """
    from scaling.commands import sweeping

    sys.exit(sweeping.work(store, sweep, config, retry_failed))


def status(
    sweep: Annotated[str | None, tyro.conf.Positional] = None,
    store: arguments.Store = RESULTS,
    follow: bool = False,
    rows: int = 200,
) -> None:
    """Show the runs of a sweep, or the sweeps of a store.

    Args:
        sweep: Name of a sweep; without it all sweeps are listed.
        follow: Keep showing until all runs are over.
        rows: How many runs to show at most; those that run, failed or diverged come first.
    """
    from scaling.commands import sweeping

    sweeping.status(store, sweep, follow, rows)


def doctor(store: str | None = None, tracker: Trackers = ()) -> None:
    """Check devices, versions, folders, tracker and a store for what a sweep needs, and say what to fix.

    A line a check: ok, warning or wrong. Ends with exit code 1 where anything is wrong.

    Args:
        store: Folder for results, or a bucket (s3://…, gs://…): what workers rely on is tried in it, and removed again.
        tracker: A tracker to check besides those of the store's sweeps: its kind, for example wandb, or its config as
            JSON, for example '{"kind": "wandb", "mode": "offline"}'; repeat for more.
    """
    from scaling.commands import doctor as doctors

    sys.exit(doctors.show(store, tracker))


def gc(store: arguments.StorePlace, dry_run: bool = False) -> None:
    """Remove the checkpoints of a store that nothing needs, and what killed workers left half written; never results.

    Unfinished runs keep what they go on from, and ended runs the last checkpoint where execution.keep_last_checkpoint
    says so. Runs that are being trained, or that failed, are left as they are.

    Args:
        dry_run: Print what would be removed, and remove nothing.
    """
    from scaling.commands import cleaning

    cleaning.collect(store, dry_run)


def fit(
    table: Table, law: arguments.Law = "hoffmann", objective: Objective = Objective(), resamples: int = 1000,
    save: Path | None = None,
) -> None:  # fmt: skip
    """Fit a law to a CSV (the law's inputs and the loss) or to a store, with intervals and a checklist.

    Args:
        resamples: Bootstrap resamples for the intervals.
        save: Write the fit to this .json file, for `scaling predict` and `scaling plot`.
    """
    from scaling.commands import analysing

    analysing.fit(table, law, objective, resamples, save)


def predict(
    table: Table,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    at: arguments.At = (),
    inference_tokens: float | None = None,
    law: arguments.OwnLaw = None,
    metric: str | None = None,
    cluster: arguments.Cluster = None,
) -> None:
    """Predict the loss of a new run at given parameters and tokens, or, of FLOPs alone, the best way to spend them.

    From the runs of a CSV or a store, by several laws; from a saved fit (.json), also what its own law says alone.
    With --metric, an accuracy or error of a new run, by way of the loss in column --loss.

    Args:
        params: Parameters of the model.
        tokens: Training tokens.
        flops: Training FLOPs to allocate; the input of kaplan_c.
        inference_tokens: Tokens that the model will serve: --flops then pays for training and for them.
        metric: Column of an accuracy or error, 0 to 1, to predict for a new run.
    """
    from scaling.commands import analysing

    named = {"params": params, "tokens": tokens, "flops": flops}
    given = {name: value for name, value in named.items() if value is not None}
    more = analysing.numbers(at, "--at")
    if twice := sorted(set(given) & set(more)):
        raise ValueError(f"--{twice[0]} {given[twice[0]]} and --at {twice[0]}={more[twice[0]]}: give one of the two")
    given |= more
    if str(table.data).endswith(".json"):
        if (metric, cluster) != (None, None) or dataclasses.replace(table, data="") != Table(""):
            raise ValueError(
                "--metric, --cluster, --loss, --column, --where and --sweep choose of runs; a saved fit has its own"
            )
        analysing.predict(table.file, given, inference_tokens, law)
    elif inference_tokens is not None or law is not None:
        raise ValueError("--inference-tokens and --law belong to a saved fit; fit the runs first: scaling fit … --save")
    elif metric is not None:
        analysing.downstream(table, given, metric, cluster)
    else:
        analysing.of_runs(table, given, cluster)


def compare(
    table: Table,
    laws: Names = ("hoffmann", "kaplan"),
    objective: Objective = Objective(),
    hold_out: arguments.HoldOut = "flops",
    origins: arguments.Origins = 3,
) -> None:
    """Laws side by side on the same runs: the error of what they were not fitted to, then AIC and BIC.

    Args:
        laws: Names of laws; of those of your own FILE.py, or FILE.py:NAME.
    """
    from scaling.commands import analysing

    analysing.compare(table, laws, objective, hold_out, origins)


def backtest(
    table: Table,
    law: arguments.Law = "hoffmann",
    objective: Objective = Objective(),
    hold_out: arguments.HoldOut = "flops",
    origins: arguments.Origins = 3,
) -> None:
    """Fit below, predict above: how well the law predicts the largest runs from the smaller ones."""
    from scaling.commands import analysing

    analysing.backtest(table, law, objective, hold_out, origins)


def next_runs(
    table: Table,
    candidates: Path,
    at: arguments.At,
    budget: float,
    law: arguments.Law = "hoffmann",
    cost: str = "flops",
) -> None:
    """Which runs to pay for next, so that the prediction at a target is as certain as the budget allows.

    Args:
        candidates: A CSV with a row a run that could be trained: the law's inputs and its cost.
        budget: What may be spent, in the unit of the cost.
        cost: Column of the candidates that holds their cost.
    """
    from scaling.commands import analysing

    analysing.next_runs(table, candidates, law, analysing.numbers(at, "--at"), budget, cost)


def table(rows: RunTable, out: Path | None = None) -> None:
    """Print the runs of a store or a CSV, or write them: a row a run, and every config field in which they differ.

    Args:
        out: Write a .csv or .parquet file; without it, a table in a terminal and CSV in a pipe.
    """
    from scaling.commands import tabling

    tabling.show(rows, out)


def plot(
    table: Table,
    x: str | None = None,
    y: str | None = None,
    hue: str | None = None,
    out: Path = Path("figures"),
    format: Literal["pdf", "svg", "png"] = "pdf",
    law: arguments.OwnLaw = None,
) -> None:
    """Draw the runs of a CSV or a store; or a saved fit (.json): residuals, likelihood profiles, curve or frontier.

    With --x, one figure: any column of the runs against any other.

    Args:
        x: Column or config field across, for example optimizer.weight_decay.
        y: Column up, by default the loss.
        hue: Column or config field that has a colour and a line for each value.
        out: Folder for the figures.
        format: Kind of file.
    """
    from scaling.commands import drawing

    drawing.plot(table, x, y, hue, out, format, law)


def laws() -> None:
    """List the laws that can be fitted: name, inputs, equation, source, and what they were tested on."""
    from scaling.commands import analysing

    analysing.laws_known()


def report(table: Table, out: Path | None = None, title: str | None = None, resamples: int = 1000) -> None:
    """Draw the figures and write the report of a sweep, or of a CSV.

    Args:
        out: Folder to write to; by default beside the sweep in the store, or beside the CSV.
        title: Title of the report.
        resamples: Bootstrap resamples for the intervals; fewer make a draft sooner.
    """
    from scaling.commands import drawing

    drawing.report(table, out, title, resamples=resamples)


def reproduce(
    name: Name, scale: str = "cpu", store: arguments.Store = RESULTS, workers: arguments.Workers = None
) -> None:
    """Reproduce a paper at a given scale: its grid, its laws, its figure, its numbers beside ours.

    Args:
        name: An experiment, for example kaplan2020 or hoffmann2022, or a Python file of your own that defines PAPER.
        scale: How large: cpu is what two cores do in under 20 minutes; papers of your own name their scales.
    """
    import experiments

    sys.exit(experiments.reproduce(name, scale, store, workers))


def main() -> None:
    """Entry point: errors of the user are one message without a traceback (SCALING_DEBUG=1 shows it)."""
    commands = (
        plan, prepare, train, sweep, worker, status, doctor, gc, laws, fit, predict, compare, backtest, next_runs,
        table, plot, report, reproduce,
    )  # fmt: skip
    try:
        tyro.extras.subcommand_cli_from_dict(
            {command.__name__.removesuffix("_runs"): command for command in commands},
            prog="scaling",
            config=(tyro.conf.OmitArgPrefixes,),
            description="Scaling-law experiments: plan a sweep, train it, fit the law, predict what comes next.",
        )
    except BrokenPipeError:  # the reader of a pipe has had enough, as in `scaling status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        if os.environ.get("SCALING_DEBUG") == "1":
            raise
        from scaling import schema

        print(f"error: {schema.describe(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
