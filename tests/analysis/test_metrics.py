"""Accuracies and errors by way of a loss: where they land, what they say; and metrics that rise refused as losses."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import checks, fitting, prediction, uncertainty

PREDICTOR = prediction.predictor
PREDICTORS: dict[tuple[object, ...], prediction.Predictor] = {}
QUESTIONS = 10_000
LARGE = {"params": 2e6, "tokens": 3.3e6}  # ten times the FLOPs of the largest planted runs


def sigmoid(loss: np.ndarray) -> np.ndarray:
    return 0.25 + 0.55 / (1 + np.exp(4 * (loss - 1.75)))


def exponential(loss: np.ndarray) -> np.ndarray:
    return 0.75 - 0.9 * np.exp(-0.8 * loss)


def neither(loss: np.ndarray) -> np.ndarray:
    return 0.25 + 0.4 / (1 + (loss / 1.6) ** 6)


def measured(runs: pd.DataFrame, share: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> pd.DataFrame:
    """The runs with the share of QUESTIONS that they answer as planted."""
    rng = np.random.default_rng(seed)
    return runs.assign(share=rng.binomial(QUESTIONS, share(runs["loss"].to_numpy())) / QUESTIONS)


def repeated(fit: fitting.Fit, resamples: int, seed: int) -> uncertainty.Bootstrap:
    """Resamples that all give the fit itself: refitting takes time that tests of other things need not take."""
    return uncertainty.Bootstrap(fit, pd.DataFrame([fit.params] * resamples), 1.0, seed)


@pytest.fixture(autouse=True)
def _losses_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal losses of different metrics share their predictor: its fits take most of the time."""

    def predictor(frame: pd.DataFrame, *, loss: str, **columns: str) -> prediction.Predictor:
        key = (*frame[loss], *columns.items())
        if key not in PREDICTORS:
            PREDICTORS[key] = PREDICTOR(frame, loss=loss, **columns)
        return PREDICTORS[key]

    monkeypatch.setattr(prediction, "predictor", predictor)


@pytest.mark.parametrize("share", [sigmoid, exponential, neither])
def test_the_interval_holds_a_run_ten_times_above(share, planted, law_params) -> None:
    law = law_params
    exact = law["E"] + law["A"] / LARGE["params"] ** law["alpha"] + law["B"] / LARGE["tokens"] ** law["beta"]
    for seed in (0, 1):
        runs = measured(planted(noise=0.003, seed=seed, two_seeds=False), share, seed)
        predicted = analysis.downstream(runs, LARGE, "share", resamples=50)
        assert predicted.low < measured(pd.DataFrame({"loss": [exact]}), share, seed)["share"].item() < predicted.high
        assert predicted.high - predicted.low < 0.35


def test_both_stages_widen_the_interval_and_an_error_is_an_accuracy_turned(sweep) -> None:
    runs = measured(sweep, sigmoid)
    predicted = analysis.downstream(runs, LARGE, "share", resamples=50)
    assert predicted.loss.value == prediction.predictor(runs, loss="loss").predict(LARGE).value
    assert predicted.shares.sum(axis=1).item() == pytest.approx(1)
    assert predicted.shares.min(axis=None) > 0
    assert list(predicted.members) == ["bhagia_accuracy", "gadre_error"]
    assert predicted.value == pytest.approx(predicted.members.mean(axis=1))
    turned = analysis.downstream(runs.assign(error=1 - runs["share"]), LARGE, "error", resamples=50)
    assert turned.value == pytest.approx(1 - predicted.value, abs=1e-6)
    assert turned.low == pytest.approx(1 - predicted.high, abs=0.02)
    narrow = analysis.downstream(runs, LARGE, "share", level=0.5, resamples=50)
    assert predicted.low < narrow.low < narrow.high < predicted.high
    assert "(99.9% of new runs: " in dataclasses.replace(predicted, level=0.999).summary()


def test_shares_stay_shares_and_what_is_doubtful_comes_first(sweep) -> None:
    runs = measured(sweep, sigmoid)
    both = pd.DataFrame([{"params": 2e5, "tokens": 4e5}, {"params": 1e12, "tokens": 1e13}])
    guessing = runs.assign(share=np.random.default_rng(0).binomial(QUESTIONS, 0.25, len(runs)) / QUESTIONS)
    few = runs.assign(share=runs["share"].where(np.arange(len(runs)) % 4 == 0))
    for frame, at, text in (
        (runs, both, "the second stage extrapolates"),
        (guessing, both, f"share does not follow loss in these {len(runs)} runs (rank correlation "),
        (few, LARGE, "9 runs have both share and loss, fewer than 12"),
    ):
        predicted = analysis.downstream(frame, at, "share", resamples=50)
        assert text in predicted.summary().splitlines()[0]
        zero = np.zeros_like(predicted.value)
        assert (np.diff([zero, predicted.low, predicted.value, predicted.high, zero + 1], axis=0) >= 0).all()
        if frame is guessing:  # among the measured losses it stays, beyond them nothing is known
            assert predicted.high[0] - predicted.low[0] < 0.05
            assert (predicted.low[1], predicted.high[1]) == (0, 1)


def test_what_is_left_out_is_counted_and_text_in_rows_left_out_is_no_harm(sweep, monkeypatch) -> None:
    def refuse(fit: fitting.Fit) -> None:
        if fit.law.name == "gadre_error":
            raise analysis.Refused("it stopped early")

    monkeypatch.setattr(fitting, "refuse_unconverged", refuse)
    monkeypatch.setattr(uncertainty, "bootstrap", repeated)
    runs = measured(sweep, sigmoid)
    runs["share"] = runs["share"].where(np.arange(len(runs)) % 4 == 0)
    more = pd.DataFrame({"run_id": [*"abcde"], "status": ["failed"] * 2 + ["finished"] * 3})
    more = more.assign(share=["-", "-", 0.5, 0.5, 0.5], loss=["-", "-", None, None, None])
    whole = pd.concat([runs.astype({"share": object, "loss": object}), more])
    whole["share"] = whole["share"].map(str, na_action="ignore")  # as a CSV has it
    predicted, alone = (analysis.downstream(frame, LARGE, "share", resamples=50) for frame in (whole, runs))
    assert (predicted.value, predicted.low, predicted.high) == (alone.value, alone.low, alone.high)
    assert predicted.statements[0].startswith("share from loss by bhagia_accuracy")
    assert predicted.statements[1:6] == (
        "left out: gadre_error: it stopped early",
        "2 rows where status is failed",
        "3 runs without loss are left out",
        "27 runs without share count for the loss alone",
        "loss by several laws:",
    )


def test_columns_of_other_names_reach_the_loss_and_a_warning_of_both_stages_is_given_once(sweep, monkeypatch) -> None:
    monkeypatch.setattr(uncertainty, "bootstrap", repeated)
    runs = measured(sweep, sigmoid)
    renamed = runs.rename(columns={"params": "size", "tokens": "seen"})
    renamed["family"] = np.where(np.arange(len(runs)) % 2, "transformer", "mamba")
    predicted = analysis.downstream(
        renamed, LARGE, "share", law="gadre_error", resamples=50, params="size", tokens="seen"
    )
    assert predicted.loss.value == pytest.approx(prediction.predictor(runs, loss="loss").predict(LARGE).value)
    assert sum("runs of 2 kinds of family" in text for text in predicted.warnings) == 1


@pytest.mark.parametrize(
    ("shares", "laws", "text", "certain"),
    [
        ([2, 1, 0, 5, 4, 3, 8, 7, 6], 2, "share follows loss is not certain (rank correlation -0.80, p = ", True),
        ([0] * 9, 2, "(rank correlation 0.00, p = 1): it is predicted to be anything beyond their losses", False),
        ([0] * 36, 1, "share does not follow loss in these 36 runs (rank correlation 0.00, p = 1)", False),
    ],
)
def test_few_runs_do_not_say_that_a_metric_stays_where_it_is(shares, laws, text, certain, sweep, monkeypatch) -> None:
    monkeypatch.setattr(uncertainty, "bootstrap", repeated)
    order = sweep["loss"].sort_values().index[:: len(sweep) // len(shares)]
    right = pd.Series(1 - 0.05 * np.array(shares), index=order)
    predicted = analysis.downstream(sweep.assign(share=right), LARGE, "share", resamples=50)
    assert len(predicted.members.columns) == laws
    assert text in predicted.warnings[0]
    assert ((predicted.low, predicted.high) != (0, 1)) == certain
    assert ("bhagia_accuracy: 9 runs for 4 parameters: expect wide intervals" in predicted.warnings) == (laws == 2)


def test_missing_resamples_widen_the_interval_and_are_warned_about(sweep, monkeypatch) -> None:
    seeds = []

    def missing(fit: fitting.Fit, resamples: int, seed: int) -> uncertainty.Bootstrap:
        seeds.append(seed)
        return dataclasses.replace(repeated(fit, resamples, seed), converged=0.8)

    runs = measured(sweep, sigmoid)
    monkeypatch.setattr(uncertainty, "bootstrap", repeated)
    whole = analysis.downstream(runs, LARGE, "share", level=0.5, resamples=50, seed=3)
    monkeypatch.setattr(uncertainty, "bootstrap", missing)
    predicted = analysis.downstream(runs, LARGE, "share", level=0.5, resamples=50, seed=3)
    assert seeds == [3, 3]
    assert predicted.low < whole.low < whole.high < predicted.high
    texts = [text for text in predicted.warnings if "resamples reached no minimum" in text]
    assert len(texts) == 1
    assert texts[0].startswith("bhagia_accuracy, gadre_error: 20.0% of ")


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (95, "level = 95: must lie between 0 and 1"),
        (0.9999, "level = 0.9999: above 0.9995 .* less than one of its 4000 draws; pass 0.9995 or less"),
    ],
)
def test_levels_beyond_the_draws_are_refused_before_the_runs_are_looked_at(level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.downstream(pd.DataFrame(), LARGE, level=level)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.assign(share=100 * f["share"]), {}, r"divide percent by 100, frame.assign\(share="),
        (lambda f: f.assign(share=-f["share"]), {}, "a share of answers lies in 0 to 1"),
        (lambda f: f.head(4), {}, "4 runs have both 'share' and 'loss': the second stage needs more than 4"),
        (lambda f: f.rename(columns={"share": "shares"}), {}, "no column 'share' for the metric.*nearest are shares"),
        (lambda f: f, {"via": "los"}, "no column 'los' for the loss that it follows from"),
        (lambda f: f, {"law": "hoffmann"}, "'hoffmann' takes params, tokens: the second stage has one input"),
    ],
)
def test_what_is_no_share_or_too_little_is_refused(change, options, message: str, sweep) -> None:
    with pytest.raises(analysis.Refused, match=message):
        analysis.downstream(change(measured(sweep, sigmoid)), LARGE, "share", **options)


@pytest.mark.parametrize(
    ("suite", "low", "measured", "high", "inside"),
    [("olmo", 0.48, 0.570, 0.60, True), ("mmlu", 0.27, 0.318, 0.31, False)],  # MMLU leaves chance above the runs
)
def test_the_held_out_run_of_brandfonbrener(suite, low, measured, high, inside: bool, table) -> None:
    runs = table("brandfonbrener2024_two_sets.csv")
    runs = runs[runs["train_set"] == "slimpajama-chunk1"]
    below, above = (runs[runs["split"] == split] for split in ("fit", "extrapolate"))
    metric, via = f"{suite}_suite_acc", f"{suite}_suite_ce_loss"
    predicted = analysis.downstream(below, above[["params", "tokens", "flops"]], metric, via, resamples=50)
    assert above[metric].item() == pytest.approx(measured, abs=0.001)
    assert predicted.low.item() == pytest.approx(low, abs=0.01)
    assert predicted.high.item() == pytest.approx(high, abs=0.01)
    assert (predicted.low < above[metric].item() < predicted.high) == inside
    assert predicted.high - predicted.low < 0.2
    assert "the second stage extrapolates" in predicted.warnings[0]


# A metric that rises is no loss


@pytest.mark.parametrize(
    "use",
    [
        lambda f: analysis.fit("hoffmann", f, loss="share"),
        lambda f: analysis.fit("power_offset", f, loss="share", x="flops"),
        lambda f: analysis.predictor(f, loss="share"),
        lambda f: analysis.backtest("hoffmann", f, loss="share", resamples=10),
        lambda f: analysis.extrapolate("hoffmann", f, {**LARGE, "flops": 4e13}, loss="share", resamples=10),
        *(lambda f, a=approach: analysis.frontier(f, a, loss="share", resamples=10) for approach in (1, 2, 3)),
    ],
)
def test_an_accuracy_is_refused_as_a_loss(use, sweep) -> None:
    with pytest.raises(analysis.Refused, match=r"rises with .*higher in .*; pass an error, such as 1 - accuracy"):
        use(measured(sweep, sigmoid))


def test_laws_that_rise_and_losses_that_do_not_fall_are_fitted(sweep) -> None:
    runs = measured(sweep, sigmoid)
    rising = analysis.fit("power", runs, loss="share", x="flops")
    assert rising.params["b"] < 0
    level = runs.assign(share=0.5 + 0.01 * np.random.default_rng(0).normal(size=len(runs)))
    assert analysis.fit("hoffmann", level, loss="share").params["E"] < 0.52
    assert analysis.fit("bhagia_accuracy", runs, loss="share", task_loss="loss").params["k"] > 0


@pytest.mark.parametrize(
    ("name", "group", "inputs", "losses"),
    [
        ("chinchilla_besiroglu2024.csv", [], ["params", "tokens"], "loss"),
        ("brandfonbrener2024_two_sets.csv", ["train_set"], ["params", "tokens"], "loss_|_loss"),
        ("li2025_misfitting_dense_lr_sweep.csv", ["peak_lr"], ["params", "tokens"], "loss"),
        ("li2025_misfitting_dense_lr_sweep.csv", [], ["params", "tokens"], "loss"),
        ("li2025_steplaw_dense.csv", ["lr"], ["params", "tokens"], "loss"),
        ("li2025_steplaw_dense.csv", [], ["params", "tokens"], "loss"),
        ("muennighoff2023_datablations.csv", ["unique_tokens"], ["params", "tokens"], "loss"),
        ("muennighoff2023_datablations.csv", [], ["params", "tokens"], "loss"),
        ("porian2024_isoflop.csv", ["dataset", "hparams", "decay", "param_count"], ["params", "tokens"], "^loss$"),
        ("tao2024_vocabulary.csv", ["vocab_size"], ["params_non_vocab", "tokens"], "loss"),
        ("clark2022_routing_final.csv", [], ["params_active", "experts"], "loss"),
        ("alabdulmohsin2022_language.csv", ["domain", "task", "model"], ["seen"], "loss"),
        ("nakkiran2020_double_descent.csv", ["series", "y_kind"], ["x"], "^y$"),
    ],
)
def test_no_loss_of_a_public_table_is_taken_to_rise(name, group, inputs, losses, table) -> None:
    whole = table(name)
    for _, rows in whole.groupby(group) if group else [((), whole)]:
        for loss in whole.filter(regex=losses):
            kept = rows.dropna(subset=[*inputs, loss])
            checks.falling({of: kept[of].to_numpy() for of in inputs}, kept[loss].to_numpy(), loss)
