"""A law warns where its runs differ in settings that it does not know, and damaged rows of a store enter nothing."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import checks, settings


def _alternating(first, second):
    return lambda frame: [first if i % 3 else second for i in range(len(frame))]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"optimizer.weight_decay": _alternating(0.1, 0.0)},
            "runs of different optimizer.weight_decay (0.1 (24), 0 (12)) in one law that has no such input: fit each "
            "on its own, e.g. --where optimizer.weight_decay=0.1, or make it an input of the law",
        ),
        (
            {"optimizer.weight_decay": _alternating(0.1, None), "model.norm": _alternating("rmsnorm", "layernorm")},
            "optimizer.weight_decay (0.1 (24), missing (12)) and model.norm (rmsnorm (24), layernorm (12)) in one law "
            "that has no such input: fit each on its own, e.g. --where optimizer.weight_decay=0.1 --where "
            "model.norm=rmsnorm, or make them inputs of the law",
        ),
        (
            {"optimizer.momentum": _alternating(None, 0.9)},
            "(missing (24), 0.9 (12)) .* --where optimizer.momentum=0.9,",
        ),
        ({"data.train_tokens": _alternating(10**9, 2e9)}, "--where data.train_tokens=1000000000,"),
        ({"task.mask": _alternating([1, 2], [3])}, "task.mask ([1, 2] (24), [3] (12)) .* --where 'task.mask=[1, 2]',"),
        ({"model.biases": _alternating(True, False)}, "--where model.biases=True,"),
        ({"clip": _alternating(1.0, None)}, "runs of different clip (1 (24), missing (12))"),
        ({"schedule": _alternating("wsd", "cosine")}, "runs of different schedule (wsd (24), cosine (12))"),
        (
            {"schedule": _alternating("wsd", "cosine"), "schedule.kind": _alternating("wsd", "cosine")},
            "different schedule (wsd (24), cosine (12)) in one law",
        ),
        ({"optimizer.epsilon": lambda f: 10.0 ** -np.arange(len(f))}, "and 30 more"),
    ],
)
def test_a_law_over_runs_of_several_settings_says_so(columns, told, sweep) -> None:
    frame = sweep.assign(**{name: make(sweep) for name, make in columns.items()})
    (warning,) = settings.pooled(frame, {"params", "tokens"})
    for part in told.split(" .* "):
        assert part in warning


@pytest.mark.parametrize(
    ("columns", "inputs"),
    [
        ({"model.width": [1, 2], "model.depth": [1, 2], "model.heads": [1, 2], "model.kv_heads": [None, 2]}, ()),
        ({"model.head_size": [1, 2], "model.mlp_width": [1, 2], "tokens": [1, 2], "batch_size": [1, 2]}, ()),
        ({"optimizer.learning_rate": [0.1, 0.2], "seed": [0, 1], "optimizer.weight_decay": [0.1, 0.1]}, ()),
        ({"optimizer.weight_decay": [0.1, 0.2]}, ("params", "optimizer.weight_decay")),
        ({"model.experts": [1, 2]}, ("experts",)),
        ({"data.train_tokens": [1, 2]}, ("params", "tokens", "unique_tokens")),
        ({"precision.compute": ["bfloat16", "float32"], "precision": ["bfloat16", "float32"]}, ()),  # refused by it
        ({"optimizer.kind": ["adamw", "lion"], "optimizer": ["adamw", "lion"]}, ()),  # warned of by it
        ({"model.norm": [None, np.nan]}, ()),
        ({"loss": [1, 2], "run_id": ["a", "b"], "metric/x.y": [1, 2], "": [1, 2], 3.5: [1, 2]}, ()),  # no settings
    ],
)
def test_settings_that_may_differ_are_not_warned_of(columns, inputs) -> None:
    assert settings.pooled(pd.DataFrame(columns), inputs) == ()


def test_the_remedy_leaves_runs_of_one_setting(sweep) -> None:
    decay, norm = ([a if i % 2 else b for i in range(36)] for a, b in ((0.1, 0.0), ("rmsnorm", None)))
    frame = sweep.assign(**{"optimizer.weight_decay": decay, "model.norm": norm})
    frame.loc[frame.index[::9], "optimizer.weight_decay"] = 1e-5
    (warning,) = settings.pooled(frame, {"params", "tokens"})
    asked = dict(part.split("=") for part in warning.split("e.g. ")[1].split(", or ")[0].split() if "=" in part)
    for name, value in asked.items():  # as the command line's --where reads it
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        frame = frame[frame[name] == float(value)] if numeric else frame[frame[name].astype(str) == value]
    assert len(frame) >= 14
    assert settings.pooled(frame, {"params", "tokens"}) == ()


@pytest.mark.usefixtures("undrawn")
def test_all_that_is_built_on_a_fit_tells_the_warning(sweep, tmp_path) -> None:
    frame = sweep.assign(**{"optimizer.weight_decay": _alternating(0.1, 0.0)(sweep)})
    (warning,) = settings.pooled(frame, {"params", "tokens"})
    fit = analysis.fit("hoffmann", frame)
    assert warning in fit.warnings
    assert f"warning: {warning}" in fit.checklist().splitlines()
    for approach in (1, 2, 3):
        assert analysis.frontier(frame, approach, resamples=20).warnings.count(warning) == 1
    assert f"warning: {warning}" in analysis.backtest("hoffmann", frame, resamples=20).summary().splitlines()
    assert f"warning: {warning}" in analysis.compare(["hoffmann", "kaplan"], frame, resamples=20).summary().splitlines()
    summary = analysis.report.write(frame, tmp_path, "Pooled", resamples=20)
    assert summary.lines.count(f"warning: {warning}") == 1


def test_a_law_that_takes_a_setting_does_not_warn_of_it_and_another_beside_it_does(sweep) -> None:
    def decayed(params, decay, *, E, A, alpha, k):
        return E + A / params**alpha + k * decay

    law = analysis.law(
        decayed,
        equation="L = E + A / N^α + k λ",
        source="this test",
        parameters={
            "E": analysis.Parameter(0.0),
            "A": analysis.Parameter(0.0, log=True),
            "alpha": analysis.Parameter(0.0, 3.0, start=(0.2, 0.5)),
            "k": analysis.Parameter(0.0),
        },
        linear=("E", "A", "k"),
    )
    frame = sweep.assign(**{"optimizer.weight_decay": _alternating(0.1, 0.2)(sweep)})
    column = {"decay": "optimizer.weight_decay"}
    assert not any("runs of different" in told for told in analysis.fit(law, frame, **column).warnings)
    told = analysis.compare([law, "hoffmann"], frame, resamples=20, **column).summary()
    assert "warning (hoffmann): runs of different optimizer.weight_decay" in told


def test_runs_of_other_settings_are_no_seeds_and_no_learning_rates_of_one_size(sweep) -> None:
    each = list(range(len(sweep)))
    assert analysis.seed_noise(sweep).groups == 6
    assert analysis.seed_noise(sweep.assign(**{"optimizer.weight_decay": each})).groups == 0
    rates = sweep.assign(learning_rate=[0.1 if i % 2 else 0.2 for i in each])
    assert checks.learning_rates(rates)
    assert checks.learning_rates(rates.assign(**{"optimizer.learning_rate": rates["learning_rate"]}))
    assert not checks.learning_rates(rates.assign(**{"task.mask": [[i] for i in each]}))


DAMAGED = {"run_id": "lost", "status": "damaged", "reason": "result.json is cut short"}


@pytest.fixture(scope="module")
def damaged(sweep) -> pd.DataFrame:
    """A sweep with two rows of which nothing but the name and the reason is known."""
    rows = sweep.assign(reason=None, context=128, seed=sweep["seed"].astype(int))
    missing = dict.fromkeys(rows.columns)
    lost = [{**missing, **DAMAGED}, {**missing, **DAMAGED, "run_id": "gone", "reason": "its folder is missing"}]
    return pd.DataFrame([*rows.to_dict("records"), *lost])


TOLD = "2 rows where status is damaged (result.json is cut short; its folder is missing)"


@pytest.mark.parametrize(
    ("made", "same", "told"),
    [
        (lambda f: analysis.fit("hoffmann", f), lambda a: a.params, lambda a: a.checklist()),
        (lambda f: analysis.frontier(f, 1, resamples=20), lambda a: a.exponent_params, lambda a: str(a.excluded)),
        (lambda f: analysis.frontier(f, 2, resamples=20), lambda a: a.exponent_params, lambda a: str(a.excluded)),
        (lambda f: analysis.frontier(f, 3, resamples=20), lambda a: a.exponent_params, lambda a: str(a.excluded)),
        (
            lambda f: analysis.backtest("hoffmann", f, resamples=20),
            lambda a: a.origins.to_dict("records"),
            lambda a: a.summary(),
        ),
        (lambda f: analysis.seed_noise(f), lambda a: a, None),
        (lambda f: analysis.approaches(f, resamples=20), lambda a: a.to_csv(), None),
        (
            lambda f: analysis.next_runs(
                "hoffmann", f, f.iloc[12:15][["params", "tokens", "flops"]], f.iloc[30:31], 1e15
            ),
            lambda a: a.chosen.to_csv(),
            None,
        ),
    ],
)
def test_damaged_rows_are_left_out_in_words_and_change_nothing(made, same, told, sweep, damaged) -> None:
    found, clean = made(damaged), made(damaged.iloc[: len(sweep)].infer_objects())
    if told is not None:
        assert TOLD.removeprefix("2 rows where ") in told(found)
        assert "damaged" not in told(clean)
    assert same(found) == same(clean)


@pytest.mark.usefixtures("undrawn")
def test_the_report_of_a_store_with_damaged_rows(tmp_path, sweep, damaged) -> None:
    summary = analysis.report.write(damaged, tmp_path, "Damaged", resamples=20)
    counted = summary.lines.index(f"runs: 36 finished of 38; dropped: {TOLD.replace(' rows', '')}")
    assert summary.lines[counted + 1] == analysis.seed_noise(sweep).message
    assert summary.lines.count(TOLD) == 1
    assert f"  E = {analysis.fit('hoffmann', sweep).params['E']:.5g} (95%" in str(summary)
    assert TOLD.replace(" rows", "") in summary.html.read_text()


def test_a_store_of_nothing_but_damaged_rows_is_refused_in_words() -> None:
    with pytest.raises(analysis.Refused, match=r"0 of 1 rows are finished runs.*result\.json is cut short"):
        analysis.fit("hoffmann", pd.DataFrame([{**DAMAGED, "params": None, "tokens": None, "loss": None}]))
    many = pd.DataFrame([{**DAMAGED, "reason": f"reason {i}"} for i in range(5)])
    assert checks.runs(many).dropped == (("status is damaged (reason 0; reason 1; reason 2; and 2 more reasons)", 5),)
