"""Plans: learning rates resolved as far as results allow, costs counted, warnings where due and only there."""

import dataclasses
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, counting, devices, store
from scaling.config import grids, rates
from scaling.planning import plan, registering, report

Make = Callable[..., config.Run]
WIDTHS = (8, 12, 16, 24, 32)


def ladder(*widths: int) -> grids.Ladder:
    return grids.Ladder(sizes=tuple(grids.Size(width=width, depth=1, heads=2) for width in widths))


def planned(run: config.Run, of: grids.Grid, corpus: Any = None, **rule: Any) -> tuple[plan.Plan, list[dict[str, Any]]]:
    made = plan.resolve(config.Sweep(name="s", base=run, grid=of, **rule), lambda data: corpus, None)
    return made, [report.row(p, 1e9, config.Execution()) for p in made.runs]


def warned(run: config.Run, of: grids.Grid, corpus: Any = None, **rule: Any) -> list[str]:
    return report.warnings_of(*planned(run, of, corpus, **rule))


def budgets_around(ratio: float, *widths: int) -> grids.IsoFlop:
    """A budget at which the middle width has `ratio` tokens per parameter."""
    from scaling.config import families

    model = families.Transformer(
        width=widths[len(widths) // 2], depth=1, heads=2, norm="rmsnorm", position="rotary", mlp="gelu", biases=False,
        qk_norm=False,
    )  # fmt: skip
    params = counting.params_non_embedding(model, 256, 16)
    return grids.IsoFlop(budgets=(counting.flops(model, 256, 16, ratio * params),), sizes=ladder(*widths))


def proportional(*widths: int) -> grids.Grid:
    """Tokens in proportion to the parameters, which are 12 width² + 3 width."""
    tokens = tuple(40 * (12 * width + 3) * width // 32 * 32 for width in widths)
    return grids.Zip(parts=(grids.Axis(field="model.width", values=widths), grids.Axis(field="tokens", values=tokens)))


# Each warning: a sweep where it is due, and one like it where it is not.


@pytest.mark.parametrize(
    ("of", "due"),
    [
        (proportional(8, 16, 32), True),
        (ladder(8, 16, 32), False),
        (grids.Product(parts=(ladder(8, 12), grids.Axis(field="seed", values=(0, 1, 2)))), False),  # two sizes alone
    ],
)  # fmt: skip
def test_one_ratio_of_tokens_to_parameters_is_warned_of(make_run: Make, of: grids.Grid, due: bool) -> None:
    found = [line for line in warned(make_run(), of) if "tokens per parameter: a fit" in line]
    assert len(found) == due


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (budgets_around(20.0, *WIDTHS), None),
        (budgets_around(20.0, 12, 16, 24), "has 3 sizes; a parabola wants at least 5"),
        (budgets_around(2000.0, *WIDTHS), "it may lie outside; add larger sizes"),
        (budgets_around(0.6, *WIDTHS), "it may lie outside; add smaller sizes"),
        (budgets_around(20.0, 8, 12, 20, 32, 64), "in size; a parabola in log N is biased"),
    ],
)
def test_an_isoflop_grid_is_warned_of_where_its_minimum_would_be_poor(
    make_run: Make, of: grids.IsoFlop, message: str | None
) -> None:
    found = warned(make_run(), of)
    assert found == [] if message is None else (len(found) == 1 and message in found[0])


@pytest.mark.parametrize(
    ("unique", "message"), [(1280, None), (640, None), (600, "no longer all fresh"), (100, "data-constrained law")]
)
def test_epochs_over_one_are_warned_of(make_run: Make, identity: Any, unique: int, message: str | None) -> None:
    corpus = type(identity)(unique_tokens=unique)
    found = warned(make_run(), grids.Single(), corpus)
    assert (
        found == []
        if message is None
        else (len(found) == 1 and message in found[0] and f"{640 / unique:.2f}" in found[0])
    )


@pytest.mark.parametrize(("fraction", "due"), [(0.1, False), (0.0, False), (0.2, True)])
def test_a_long_warm_up_is_warned_of(make_run: Make, fraction: float, due: bool) -> None:
    found = warned(make_run(schedule__warmup__fraction=fraction), grids.Single())
    assert [("warm-up, up to 20%" in line) for line in found] == [True] * due


@pytest.mark.parametrize("steps", range(5, 30))
def test_a_tenth_rounded_up_to_whole_steps_is_no_long_warm_up(make_run: Make, steps: int) -> None:
    assert warned(make_run(tokens=32 * steps), grids.Single()) == []


def test_a_warm_up_of_fixed_tokens_is_warned_of_for_the_short_runs(make_run: Make) -> None:
    run = make_run(schedule__warmup={"kind": "tokens", "tokens": 320})
    found = warned(run, grids.IsoToken(tokens=(640, 6400), sizes=ladder(8)))
    assert len(found) == 1
    assert found[0].startswith("1 runs spend more than a tenth")
    assert "50%" in found[0]


@pytest.mark.parametrize(
    ("optimizer", "rate", "due"), [("adamw", 0.06, True), ("adamw", 0.05, False), ("sgd", 0.5, False)]
)
def test_a_learning_rate_far_above_the_usual_is_warned_of(
    make_run: Make, optimizer: str, rate: float, due: bool
) -> None:
    run = make_run(optimizer={"kind": optimizer, "learning_rate": rate})
    assert [("tune them instead" in line) for line in warned(run, grids.Single())] == [True] * due


def test_the_step_law_far_below_its_range_is_warned_of(make_run: Make) -> None:
    found = warned(make_run(), grids.Single(), learning_rate=rates.StepLaw())
    assert len(found) == 1
    assert "tune them instead" in found[0]


# Resolving


def test_a_plan_without_its_corpus_has_no_names(make_run: Make, identity: Any) -> None:
    assert [p.run_id for p in planned(make_run(), ladder(8, 16))[0].runs] == [None, None]
    made, rows = planned(make_run(), ladder(8, 16), identity)
    assert [p.run_id for p in made.runs] == [p.run.run_id(identity.data_sha256) for p in made.all]
    assert [row["epochs"] for row in rows] == [640 / identity.unique_tokens] * 2


def test_a_rule_sets_every_learning_rate(make_run: Make) -> None:
    made, rows = planned(make_run(), ladder(8, 16), learning_rate=rates.StepLaw())
    law = rates.StepLaw()
    assert [row["learning_rate"] for row in rows] == [law.learning_rate(p.run, {}) for p in made.runs]
    assert rows[0]["learning_rate"] > rows[1]["learning_rate"]


class Trained:
    """A store in which the given runs have ended with these losses (None: diverged)."""

    def __init__(self, losses: dict[str, float | None]):
        self.losses = losses

    def readable_result(self, run_id: str) -> dict[str, Any] | None:
        return {"loss": self.losses[run_id]} if run_id in self.losses else None


def tuned_sweep(run: config.Run) -> config.Sweep:
    rule = rates.Tuned(learning_rates=(0.01, 0.02, 0.04, 0.08), tokens=320)
    return config.Sweep(name="s", base=run, grid=ladder(8, 16), learning_rate=rule)


def test_a_tuned_ladder_waits_for_its_tune_stage_and_then_takes_the_optima(make_run: Make, identity: Any) -> None:
    import math

    sweep = tuned_sweep(make_run())
    waiting = plan.resolve(sweep, lambda data: identity, None)
    assert waiting.pending == "8 of 8 runs of the tune stage are not trained yet"
    assert [p.run_id for p in waiting.runs] == [None, None]
    assert all(p.tuning for p in waiting.tune)
    best = {8: 0.03, 16: 0.018}
    losses: dict[str, float | None] = {
        str(p.run_id): 2 + math.log(p.run.optimizer.learning_rate / best[p.run.model.width]) ** 2 for p in waiting.tune
    }
    some: Any = Trained(dict(list(losses.items())[:5]))
    assert (
        plan.resolve(sweep, lambda data: identity, some).pending == "3 of 8 runs of the tune stage are not trained yet"
    )
    losses[str(waiting.tune[7].run_id)] = None  # width 16 at 0.08 diverged
    every: Any = Trained(losses)
    done = plan.resolve(sweep, lambda data: identity, every)
    assert done.pending == ""
    assert [p.run.optimizer.learning_rate for p in done.runs] == pytest.approx([0.03, 0.018])
    assert not any(p.tuning for p in done.runs)
    assert len({p.run_id for p in done.all}) == 10


def test_a_tune_stage_that_ends_at_its_edge_is_refused(make_run: Make, identity: Any) -> None:
    sweep = tuned_sweep(make_run())
    waiting = plan.resolve(sweep, lambda data: identity, None)
    edge: Any = Trained({str(p.run_id): 1 / p.run.optimizer.learning_rate for p in waiting.tune})
    with pytest.raises(ValueError, match="is the edge of the grid"):
        plan.resolve(sweep, lambda data: identity, edge)


# Costs


def test_a_row_counts_what_the_run_costs(make_run: Make) -> None:
    run = make_run()
    (row,) = planned(run, grids.Single())[1]
    width, vocabulary, context, tokens = 8, 256, 16, 640
    hidden = 12 * width * width
    per_token = 3 * (2 * (hidden + vocabulary * width) + 4 * width * (context + 1) / 2)
    assert row["flops"] == per_token * tokens
    assert row["params"] == 2 * vocabulary * width + hidden + 3 * width
    assert row["params_non_embedding"] == hidden + 3 * width
    assert row["flops_6nd"] == 6 * (hidden + 3 * width) * tokens
    validated = run.data.validation_tokens  # once, a third of the work of a training token
    assert row["seconds"] == pytest.approx(per_token * (tokens + validated / 3) / 1e9)
    assert (row["steps"], row["warmup_steps"], row["epochs"], row["flops_budget"]) == (20, 2, None, None)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12), ("TPU v5 lite", 197e12),
     ("TPU v5p", 459e12), ("TPU v4", 275e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("cpu", None)],
)  # fmt: skip
def test_the_peak_of_a_device_is_found_by_its_name(kind: str, peak: float | None) -> None:
    assert devices.peak_flops(kind) == peak


def test_registering_a_plan_twice_keeps_the_runs_it_has(make_run: Make, identity: Any, tmp_path: Path) -> None:
    results = store.Store(tmp_path / "store")
    sweep = config.Sweep(name="s", base=make_run(), grid=ladder(8, 16))
    made = plan.resolve(sweep, lambda data: identity, results)
    assert not (tmp_path / "store").exists()
    for _ in range(2):
        registering.register("s", sweep, made.runs, results)
    assert [m["run_id"] for m in results.sweep("s")["members"]] == [p.run_id for p in made.runs]
    assert len(results.run_ids()) == 2
    wider = plan.resolve(sweep.edit({"grid": ladder(8, 16, 24)}), lambda data: identity, results)
    registering.register("s", sweep, wider.runs, results)
    with pytest.raises(
        ValueError, match="a sweep 's' of 3 runs, 1 of which are not in this one; give this sweep another"
    ):
        registering.register("s", sweep, made.runs, results)
    assert len(results.sweep("s")["members"]) == 3


def test_a_sweep_started_again_after_its_data_changed_plans_runs_on_the_new_data(
    make_run: Make, identity: Any, tmp_path: Path
) -> None:
    results = store.Store(tmp_path / "store")
    sweep = config.Sweep(name="s", base=make_run(), grid=ladder(8, 16))
    changed = dataclasses.replace(identity, data_sha256="c" * 64)

    def start(corpus: Any, sweep: config.Sweep = sweep) -> tuple[str, list[str]]:
        made = plan.resolve(sweep, lambda data: corpus, results)
        told = registering.register("s", sweep, made.runs, results)
        return told, [member["run_id"] for member in results.sweep("s")["members"]]

    _, old = start(identity)
    told, new = start(changed)
    assert told.startswith("the data has changed since s was planned: 2 runs on the old data")
    assert not {*old} & {*new}
    assert results.sweeps() == ["s"]  # nothing was measured on the old data
    results.run(new[0]).create("result.json", '{"status": "finished", "parent_run_id": null}')
    stored = results.sweep("s")  # as one that was written before trackers were a list
    results.add_sweep("s", {**stored["config"], "tracking": {"kind": "none"}}, stored["members"])
    told, again = start(identity, sweep.edit({"execution.pack": 1, "trackers": [{"kind": "tensorboard"}]}))
    assert again == old
    assert told.endswith("they are the sweep s.cccccccc")
    assert [member["run_id"] for member in results.sweep("s.cccccccc")["members"]] == new
    with pytest.raises(ValueError, match="give this sweep another name"):
        start(changed, sweep.edit({"grid": ladder(8, 24)}))


def test_each_text_of_a_sweep_gives_its_own_runs(make_run: Make) -> None:
    """An axis over data: run ids follow the text of each run, and not that of the base run."""
    texts = {1024: types.SimpleNamespace(data_sha256="a" * 64, unique_tokens=1024)}
    texts[2048] = types.SimpleNamespace(data_sha256="a" * 64, unique_tokens=2048)
    over = grids.Axis(field="data.train_tokens", values=tuple(texts))
    sweep = config.Sweep(name="s", base=make_run(), grid=over)
    made = plan.resolve(sweep, lambda data: texts[data.train_tokens], None)
    assert [p.corpus.unique_tokens for p in made.runs] == [1024, 2048]
    assert len({p.run_id for p in made.runs}) == 2
    rows = [report.row(p, 1e9, sweep.execution) for p in made.runs]
    assert rows[0]["epochs"] == pytest.approx(2 * rows[1]["epochs"])


def test_runs_that_a_rule_would_make_one_are_refused(make_run: Make) -> None:
    over = grids.Axis(field="optimizer.learning_rate", values=(0.1, 0.2))
    with pytest.raises(ValueError, match="'step_law' gives runs that differ in nothing else one learning rate"):
        planned(make_run(), over, learning_rate=rates.StepLaw())


def test_what_no_run_could_train_is_refused_before_it_is_planned(make_run: Make) -> None:
    with pytest.raises(ValueError, match="does not end within a run of"):
        make_run(schedule={"kind": "constant", "warmup": {"kind": "fraction", "fraction": 1.0}})
    micro = config.Sweep(name="s", base=make_run(), execution={"microbatch": make_run().batch_size + 1})
    with pytest.raises(ValueError, match="does not divide batch_size"):
        micro.points()
    with pytest.raises(ValueError, match="drop the ending"):
        config.Sweep(name="s.tune", base=make_run())
    repeated = rates.Tuned(learning_rates=(0.1, 0.1, 0.2), tokens=320)
    with pytest.raises(ValueError, match="repeat a value"):
        config.Sweep(name="s", base=make_run(), learning_rate=repeated)
    mup = make_run(parametrization={"kind": "mup", "base_width": 8, "base_depth": 1, "base_head_size": 4})
    with pytest.raises(ValueError, match="step law was fitted under the standard parametrization"):
        config.Sweep(name="s", base=mup, learning_rate=rates.StepLaw())


THOUSAND = """
import sys, time
sys.path.insert(0, {tests!r})
from scaling import config
from scaling.config import grids; from scaling.planning import plan, report; from scaling import store
run = config.Run.from_json({run!r})
sizes = grids.Ladder(sizes=tuple(grids.Size(width=8 * i, depth=1, heads=2) for i in range(1, 21)))
whole = grids.Product(parts=(
    grids.Axis(field="seed", values=tuple(range(10))), grids.IsoFlop(budgets=(1e9, 2e9, 4e9, 8e9, 16e9), sizes=sizes),
))
class Identity: data_sha256, unique_tokens = "a" * 64, 10_000
results = store.Store({store!r})
begun = time.process_time()
sweep = config.Sweep(name="s", base=run, grid=whole)
made = plan.resolve(sweep, lambda data: Identity, results)
rows = [report.row(p, 1e9, sweep.execution) for p in made.runs]
report.warnings_of(made, rows)
[results.status(row["run_id"]) for row in rows]
spent = time.process_time() - begun
unique = {{row["run_id"] for row in rows}}
print(len(rows), len(unique), spent, [m for m in ("jax", "flax", "optax", "wandb") if m in sys.modules])
"""


def test_a_thousand_runs_are_planned_in_three_seconds_without_jax(make_run: Make, tmp_path: Path) -> None:
    code = THOUSAND.format(tests=str(Path(__file__).parent), run=make_run().to_json(), store=str(tmp_path / "store"))
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    count, unique, spent, *modules = shown.stdout.split()
    assert (count, unique, modules) == ("1000", "1000", ["[]"])
    assert float(spent) < 3.0
    assert list(tmp_path.iterdir()) == []
