"""`scaling fit`, `predict` and `report` on tables that people bring: what they say, and what they refuse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import frontiers
from scaling import cli
from scaling.commands import analysing, drawing
from scaling.commands.arguments import Objective, Table


def table(**more: object) -> pd.DataFrame:
    """30 runs of a planted law at five budgets."""
    budget, size = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e12, 1e14, 5), np.geomspace(0.3, 3, 6)))
    params = 1e5 * (budget / 1e12) ** 0.5 * size
    tokens = budget / 6 / params
    loss = 1.5 + 40 / params**0.35 + 90 / tokens**0.4
    loss = loss * np.exp(0.002 * np.random.default_rng(0).normal(size=len(loss)))
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss, **more})


def test_a_saved_fit_spends_flops_by_the_rule_of_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame["flops"] = 9 * frame["params"] * frame["tokens"]
    analysis.fit("hoffmann", frame).save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    told = capsys.readouterr().out
    bought = analysis.frontier(frame, 3).allocate(1e15)
    assert f"params {bought.params}," in told
    assert "C = 9 · N · D" in told
    analysis.fit("hoffmann", frame.drop(columns="flops")).save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    assert "6 · params · tokens (Kaplan" in capsys.readouterr().out


@pytest.mark.parametrize("law", ["kaplan", "hoffmann_interaction"])
def test_a_saved_fit_of_any_law_of_params_and_tokens_spends_flops(
    law: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = analysis.fit(law, table())
    fit.save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    printed = capsys.readouterr().out
    bought = frontiers.of_fit(fit).allocate(1e15)
    assert f"if {law} is right, at 1e+15 FLOPs: params {bought.params}," in printed
    assert "C = 6 · N · D" in printed
    drawn = drawing.of_fit(fit)
    assert len(drawn["fitted_law"].axes) >= 3


def test_a_table_needs_the_columns_of_its_law_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame.rename(columns={"loss": "loss_c4"}).to_csv(tmp_path / "named.csv", index=False)
    analysing.fit(Table(tmp_path / "named.csv", loss="loss_c4"), "hoffmann", Objective(), 100, None)
    flops = np.geomspace(1e12, 1e14, 30)
    pd.DataFrame({"flops": flops, "loss": 30 / flops**0.07}).to_csv(tmp_path / "flops.csv", index=False)
    analysing.fit(Table(tmp_path / "flops.csv"), "kaplan_c", Objective(), 100, None)
    saved = tmp_path / "fit.json"
    analysing.fit(Table(tmp_path / "flops.csv", columns=("x=flops",)), "power", Objective(), 100, saved)
    capsys.readouterr()
    analysing.predict(saved, {"x": 1e15}, None)
    assert f"loss {30 / 1e15**0.07:.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no column 'params'"):
        analysing.fit(Table(tmp_path / "flops.csv"), "hoffmann", Objective(), 100, None)


def test_an_isoflop_table_without_tokens_is_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    flops = 6 * frame["params"] * frame["tokens"]
    bare = pd.DataFrame({"parameters": frame["params"], "compute_budget": flops, "final_loss": frame["loss"]})
    bare.to_csv(tmp_path / "runs.csv", index=False)
    some = Table(tmp_path / "runs.csv", loss="final_loss", columns=("params=parameters",))
    with pytest.raises(ValueError, match=r"it also follows from .* flops and params"):
        analysing.fit(some, "hoffmann", Objective(), 50, None)
    columns = ("params=parameters", "flops=compute_budget")
    named = Table(tmp_path / "runs.csv", loss="final_loss", columns=columns)
    analysing.fit(named, "hoffmann", Objective(), 50, None)
    told = capsys.readouterr().out
    assert f"  alpha = {analysis.fit('hoffmann', frame).params['alpha']:.5g} " in told
    assert "tokens = compute_budget / (6 · parameters) (Kaplan" in told


@pytest.mark.parametrize(
    ("save", "message"),
    [
        ("nowhere/fit.json", "nowhere is no folder"),
        ("fit", "told from a CSV by its suffix; name it fit.json"),
        ("fit.csv", "told from a CSV by its suffix; name it fit.json"),
    ],
)
def test_where_a_fit_cannot_be_saved_is_refused_before_fitting(save: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        analysing.fit(Table(tmp_path / "unread.csv"), "hoffmann", Objective(), 100, tmp_path / save)


def test_a_failed_row_that_fit_accepts_is_reported_too(tmp_path: Path) -> None:
    frame = table(status="finished").astype(object)
    frame.loc[len(frame)] = ["-", "-", "-", "failed"]
    frame.to_csv(tmp_path / "runs.csv", index=False)
    drawing.report(Table(tmp_path / "runs.csv"), tmp_path / "out", None, resamples=20)
    assert "30 finished of 31" in (tmp_path / "out" / "report.md").read_text()


def test_from_a_csv_to_a_budget_in_three_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table().to_csv(tmp_path / "runs.csv", index=False)
    analysing.fit(Table(tmp_path / "runs.csv"), "hoffmann", Objective(), 100, tmp_path / "fit.json")
    told = capsys.readouterr().out
    assert "  alpha = 0.3" in told
    assert "95% interval" in told
    analysing.backtest(Table(tmp_path / "runs.csv"), "hoffmann", Objective(), "flops", 2)
    told = capsys.readouterr().out
    assert "(24 runs) predicts 6 runs up to" in told
    assert "(18 runs) predicts 12 runs up to" in told
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    together, alone = capsys.readouterr().out.split("if hoffmann is right, ")
    assert "95% of new runs" in together
    assert "by law: hoffmann " in together
    assert alone.startswith("at 1e+15 FLOPs: params ")
    analysing.of_runs(Table(tmp_path / "runs.csv"), {"flops": 1e15})
    assert capsys.readouterr().out == together
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, 1e9)
    serving = capsys.readouterr().out
    params = [float(text.split("params ")[1].split(" ")[0]) for text in (alone, serving)]
    assert params[1] < params[0]
    with pytest.raises(ValueError, match="belongs to --flops alone"):
        analysing.predict(tmp_path / "fit.json", {"params": 1e6, "tokens": 1e8}, 1e9)


def test_an_accuracy_is_predicted_by_way_of_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table().rename(columns={"loss": "nats"})
    frame.assign(right=0.9 - 0.1 * frame["nats"]).to_csv(tmp_path / "runs.csv", index=False)
    runs = Table(tmp_path / "runs.csv", loss="nats")
    analysing.downstream(runs, {"flops": 1e15}, "right")
    printed = capsys.readouterr().out
    value = float(printed.split("\nright ")[1].split(" (")[0])
    loss = float(printed.split("by nats ")[1].split(" (")[0])
    assert value == pytest.approx(0.9 - 0.1 * loss, abs=2e-3)
    with pytest.raises(ValueError, match="no column 'left'"):
        analysing.downstream(runs, {"flops": 1e15}, "left")
    for of, message in (
        (runs, "--law belong to a saved fit"),
        (Table("fit.json", loss="nats"), "a saved fit has its own"),
    ):
        with pytest.raises(ValueError, match=message):
            cli.predict(of, flops=1e15, law="own.py", metric="right")


@pytest.mark.parametrize(
    ("table", "asked", "message"),
    [
        (
            Table("runs.csv", columns=("parms=n",)),
            {"flops": 1e15},
            "--column parms=n: .* params, tokens, flops, and no",
        ),
        (Table("runs.csv", columns=("task_loss=x",)), {"flops": 1e15, "metric": "right"}, "--column task_loss=x: "),
        (Table("runs.csv", columns=("loss=x",)), {"flops": 1e15, "metric": "right"}, "--column loss=x: "),
        (Table("runs.csv", columns=("law=power",)), {"flops": 1e15, "metric": "right"}, "--column law=power: "),
        (
            Table("runs.csv"),
            {"params": 1e6, "tokens": 1e8, "at": ("epochs=4",)},
            "--at epochs=4.0: .* leave it out, or",
        ),
        (
            Table("runs.csv"),
            {"params": 1e6, "at": ("params=2e6",)},
            "--params 1000000.0 and --at params=2000000.0: give one",
        ),
        (Table("runs.csv"), {"flops": 1e21, "at": ("x=1",)}, "--at x=1.0: a prediction from runs takes params, tokens"),
        (Table("runs.csv"), {"flops": 1e21, "cluster": "run", "metric": "right"}, "--cluster run: --metric takes runs"),
        (Table("fit.json"), {"flops": 1e21, "cluster": "run"}, "--cluster, .* choose of runs; a saved fit has its own"),
    ],
)
def test_what_a_prediction_does_not_take_is_refused(
    table: Table, asked: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing is there: it is refused before anything is read
    with pytest.raises(ValueError, match=message):
        cli.predict(table, **asked)


def predicted(text: str) -> str:
    """The line of the prediction by several laws."""
    (line,) = [line for line in text.splitlines() if "% of new runs" in line]
    return line


@pytest.mark.parametrize("of", ["fit.json", "runs.csv"])
def test_checkpoints_of_one_run_are_one_run_to_a_prediction(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last = table(name=[f"run {i}" for i in range(30)])
    before = [last.assign(tokens=part * last["tokens"], loss=last["loss"] * 1.2 / part**0.1) for part in (0.25, 0.5)]
    last.to_csv("last.csv", index=False)
    pd.concat([*before, last]).to_csv("runs.csv", index=False)
    cli.predict(Table("last.csv"), flops=1e15)
    want = predicted(capsys.readouterr().out)
    if of == "fit.json":
        analysing.fit(Table("runs.csv"), "hoffmann", Objective(cluster="name"), 20, Path(of))
        capsys.readouterr()
        cli.predict(Table(of), flops=1e15)
    else:
        cli.predict(Table(of), flops=1e15, cluster="name")
    assert predicted(capsys.readouterr().out) == want


def test_runs_of_a_fit_that_differ_in_their_seeds_alone_are_each_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.concat([table(seed=seed) for seed in (0, 1)])
    frame.to_csv(tmp_path / "runs.csv", index=False)
    analysis.fit("hoffmann", frame).save(tmp_path / "fit.json")
    analysing.of_runs(Table(tmp_path / "runs.csv"), {"flops": 1e15})
    want = capsys.readouterr().out
    analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)
    assert capsys.readouterr().out.startswith(want)


def test_a_law_of_a_learning_rate_is_no_law_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame["rate"] = 1.79 * frame["params"] ** -0.713 * frame["tokens"] ** 0.307
    analysis.fit("best_rate", frame, loss="rate").save(tmp_path / "fit.json")
    analysing.predict(tmp_path / "fit.json", {"params": 1e6, "tokens": 1e9}, None)
    assert capsys.readouterr().out.startswith("if best_rate is right, at params 1e+06, tokens 1e+09: ")
    with pytest.raises(ValueError, match="the law best_rate needs --params, --tokens"):
        analysing.predict(tmp_path / "fit.json", {"flops": 1e15}, None)


def test_a_parameter_at_its_bound_has_no_interval_and_no_parameter_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = table()
    frame.assign(loss=frame["loss"] - 1.6).to_csv(tmp_path / "runs.csv", index=False)
    analysing.fit(Table(tmp_path / "runs.csv"), "hoffmann", Objective(), 40, None)
    told = capsys.readouterr().out
    assert "  E = 0   at its lower bound in 95% of resamples or more: no interval" in told
    assert "±" not in told
    assert "intervals above: of resampled runs" in told


def test_laws_are_compared_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table().assign(split=["fit"] * 29 + ["out"]).to_csv(tmp_path / "runs.csv", index=False)
    chosen = Table(tmp_path / "runs.csv", where=("split=fit",))
    analysing.compare(chosen, ("kaplan_n", "hoffmann"), Objective(), "flops", 1)
    told = capsys.readouterr().out
    assert "runs: 29 rows" in told
    assert told.index("hoffmann") < told.index("kaplan_n")
    assert "best: hoffmann: L = E + A / N^α + B / D^β" in told
    with pytest.raises(ValueError, match="leaves none of 30 rows; the column holds fit, out"):
        analysing.compare(Table(tmp_path / "runs.csv", where=("split=no",)), ("hoffmann",), Objective(), "flops", 1)
    with pytest.raises(ValueError, match="no column 'spilt'"):
        analysing.compare(Table(tmp_path / "runs.csv", where=("spilt=fit",)), ("hoffmann",), Objective(), "flops", 1)


def test_a_parameter_is_held_and_rows_weighed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(loss_se=0.01).to_csv(tmp_path / "runs.csv", index=False)
    objective = Objective(objective="squared", weights="loss_se", fix=("alpha=0.35",))
    analysing.fit(Table(tmp_path / "runs.csv"), "hoffmann", objective, 50, None)
    told = capsys.readouterr().out
    assert "alpha = 0.35   fixed" in told
    assert "sum of half squares of log L − log f, weighted" in told
    with pytest.raises(ValueError, match="'steep' is no number"):
        analysing.fit(Table(tmp_path / "runs.csv"), "hoffmann", Objective(fix=("alpha=steep",)), 50, None)


def test_the_next_runs_are_chosen_from_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table().to_csv(tmp_path / "runs.csv", index=False)
    pool = pd.DataFrame({"params": [1e6, 1e7, 1e8], "tokens": [1e9, 1e9, 1e9]})
    pool.assign(flops=6 * pool["params"] * pool["tokens"]).to_csv(tmp_path / "pool.csv", index=False)
    at = {"params": 1e8, "tokens": 1e10}
    analysing.next_runs(Table(tmp_path / "runs.csv"), tmp_path / "pool.csv", "hoffmann", at, 7e16, "flops")
    told = capsys.readouterr().out
    assert "1e+07" in told or "1e7" in told
    assert "1e+08" not in told.split("target")[0]


def test_a_saved_fit_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analysis.fit("hoffmann", table()).save(tmp_path / "fit.json")
    drawing.plot(Table(tmp_path / "fit.json"), None, None, None, tmp_path / "figures", "pdf")
    written = capsys.readouterr().out.split()
    assert [Path(name).name for name in written] == ["fit_residuals.pdf", "fit_profiles.pdf", "fit_fitted_law.pdf"]
    assert all(Path(name).read_bytes().startswith(b"%PDF") for name in written)


def test_the_runs_of_a_table_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    best = np.repeat(1e5 * np.array([1, 2, 4, 8, 16]), 6)  # of each budget, the minimum of a parabola in log N
    frame["params"] = best * np.tile(np.geomspace(0.3, 3, 6), 5)
    frame["tokens"] = np.repeat(np.geomspace(1e12, 1e14, 5), 6) / 6 / frame["params"]
    frame["loss"] = 3 / best**0.05 + 0.05 * np.log(frame["params"] / best) ** 2
    frame.to_csv(tmp_path / "runs.csv", index=False)
    drawing.plot(Table(tmp_path / "runs.csv"), None, None, None, tmp_path / "figures", "svg")
    names = ["runs_loss_compute.svg", "runs_loss_params.svg", "runs_isoflop.svg"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    assert "6 · params · tokens (Kaplan" in capsys.readouterr().out
    table().assign(params=lambda f: 1e5 * np.arange(1, len(f) + 1)).to_csv(tmp_path / "odd.csv", index=False)
    drawing.plot(Table(tmp_path / "odd.csv"), None, None, None, tmp_path / "odd", "svg")
    assert "no iso-FLOP curves: approach 2" in capsys.readouterr().out
    assert not (tmp_path / "odd" / "odd_isoflop.svg").exists()


def test_every_law_is_listed_with_what_it_was_tested_on(capsys: pytest.CaptureFixture[str]) -> None:
    analysing.laws_known()
    told = capsys.readouterr().out
    for name, law in analysis.LAWS.items():
        assert f"{name} ({', '.join(law.inputs)}): {law.equation}" in told
    assert "not validated on measurements" in told


OWN = """
import analysis
from analysis.laws import LAWS

hoffmann = LAWS["hoffmann"]


def made(name):
    return analysis.law(
        lambda x, *, A: A * x, name=name, equation="A · x", source="", linear=["A"],
        parameters={{"A": analysis.Parameter(0.0)}},
    )


own = [made(name) for name in {names}]
globals().update({{f"law_{{place}}": law for place, law in enumerate(own)}})
"""


@pytest.mark.parametrize(
    ("given", "names", "found"),
    [
        ("kaplan", [], "kaplan"),
        ("own.py", ["straight"], "straight"),
        ("own.py:bent", ["straight", "bent"], "bent"),
        ("own.py", ["straight", "bent"], r"own.py defines 2 laws; name one of .*own.py:straight, .*own.py:bent"),
        ("own.py:curved", ["straight"], r"own.py defines no law 'curved'; name one of .*own.py:straight"),
        ("own.py", [], r"own.py defines no law; define one at its top level with analysis.law\(...\)"),
        ("own.py", ["kaplan"], "own.py calls a law 'kaplan', as one that ships is called; rename it"),
        ("other.py", [], "there is no Python file .*other.py; give the path of one"),
        ("own.txt", [], r"law '.*own.txt' is unknown; name one of"),
    ],
)
def test_a_law_is_named_or_defined_in_a_file(given: str, names: list[str], found: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.format(names=names))
    entry = str(tmp_path / given) if given.startswith(("own", "other")) else given
    if found in (*names, given):
        assert analysing.law_named(entry).name == found
    else:
        with pytest.raises(ValueError, match=found):
            analysing.law_named(entry)


def test_a_saved_fit_of_ones_own_law_is_read_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN.format(names=["straight"]))
    own, saved = str(tmp_path / "own.py"), tmp_path / "fit.json"
    x = np.linspace(1, 5, 9)
    noise = np.exp(1e-3 * np.random.default_rng(0).normal(size=9))
    pd.DataFrame({"x": x, "loss": 3 * x * noise}).to_csv(tmp_path / "runs.csv", index=False)
    analysing.fit(Table(tmp_path / "runs.csv"), own, Objective(), 50, saved)
    with pytest.raises(ValueError, match=r"was fitted with law 'straight'; pass that law: .* or --law FILE.py"):
        analysing.predict(saved, {"x": 10.0}, None)
    capsys.readouterr()
    analysing.predict(saved, {"x": 10.0}, None, own)
    assert float(capsys.readouterr().out.partition("loss ")[2].split(",")[0]) == pytest.approx(30, rel=1e-3)
    drawing.plot(Table(saved), None, None, None, tmp_path / "figures", "pdf", own)
    assert (tmp_path / "figures" / "fit_curve.pdf").is_file()
    with pytest.raises(ValueError, match=r"--law belongs to a saved fit, and .*runs.csv holds runs; leave it out"):
        drawing.plot(Table(tmp_path / "runs.csv"), None, None, None, tmp_path / "figures", "pdf", own)
