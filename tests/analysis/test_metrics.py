"""Accuracies and errors by way of a loss: where they land, what they say; and metrics that rise refused as losses."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import checks, prediction

PREDICTOR = prediction.predictor
PREDICTORS: dict[tuple[float, ...], prediction.Predictor] = {}
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


@pytest.fixture(autouse=True)
def _losses_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal losses of different metrics share their predictor: its fits take most of the time."""

    def predictor(frame: pd.DataFrame, *, loss: str) -> prediction.Predictor:
        key = tuple(frame[loss])
        if key not in PREDICTORS:
            PREDICTORS[key] = PREDICTOR(frame, loss=loss)
        return PREDICTORS[key]

    monkeypatch.setattr(prediction, "predictor", predictor)


@pytest.mark.parametrize("share", [sigmoid, exponential, neither])
def test_the_interval_holds_a_run_ten_times_above(share, planted, law_params) -> None:
    law = law_params
    exact = law["E"] + law["A"] / LARGE["params"] ** law["alpha"] + law["B"] / LARGE["tokens"] ** law["beta"]
    for seed in (0, 1):
        runs = measured(planted(noise=0.003, seed=seed, two_seeds=False), share, seed)
        found = analysis.downstream(runs, LARGE, "share", resamples=50)
        assert found.low < measured(pd.DataFrame({"loss": [exact]}), share, seed)["share"].item() < found.high
        assert found.high - found.low < 0.35


def test_both_stages_widen_the_interval_and_an_error_is_an_accuracy_turned(sweep) -> None:
    runs = measured(sweep, sigmoid)
    found = analysis.downstream(runs, LARGE, "share", resamples=50)
    assert found.loss.value == prediction.predictor(runs, loss="loss").predict(LARGE).value
    assert found.shares.sum(axis=1).item() == pytest.approx(1)
    assert found.shares.min(axis=None) > 0
    assert list(found.members) == ["bhagia_accuracy", "gadre_error"]
    assert found.value == pytest.approx(found.members.mean(axis=1))
    turned = analysis.downstream(runs.assign(error=1 - runs["share"]), LARGE, "error", resamples=50)
    assert turned.value == pytest.approx(1 - found.value, abs=1e-6)
    assert turned.low == pytest.approx(1 - found.high, abs=0.02)
    narrow = analysis.downstream(runs, LARGE, "share", level=0.5, resamples=50)
    assert found.low < narrow.low < narrow.high < found.high


def test_shares_stay_shares_and_what_is_doubtful_comes_first(sweep) -> None:
    runs = measured(sweep, sigmoid)
    both = pd.DataFrame([{"params": 2e5, "tokens": 4e5}, {"params": 1e12, "tokens": 1e13}])
    guessing = runs.assign(share=np.random.default_rng(0).binomial(QUESTIONS, 0.25, len(runs)) / QUESTIONS)
    few = runs.assign(share=runs["share"].where(np.arange(len(runs)) % 4 == 0))
    for frame, at, text in (
        (runs, both, "the second stage extrapolates"),
        (guessing, both, "at the chance level all along"),
        (few, LARGE, "9 runs have both share and loss, fewer than 12"),
    ):
        found = analysis.downstream(frame, at, "share", resamples=50)
        assert text in found.summary().splitlines()[0]
        assert ((found.low >= 0) & (found.low <= found.value) & (found.value <= found.high) & (found.high <= 1)).all()
        if frame is guessing:  # among the measured losses it stays, beyond them nothing is known
            assert found.high[0] - found.low[0] < 0.05
            assert (found.low[1], found.high[1]) == (0, 1)
    assert "27 runs without share count for the loss alone" in found.statements


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
    ("suite", "low", "measured", "high"),
    [("olmo", 0.48, 0.570, 0.60), ("mmlu", 0.27, 0.318, 0.31)],  # MMLU leaves chance above the runs: it lies outside
)
def test_the_held_out_run_of_brandfonbrener(suite: str, low: float, measured: float, high: float, table) -> None:
    runs = table("brandfonbrener2024_two_sets.csv")
    runs = runs[runs["train_set"] == "slimpajama-chunk1"]
    below, above = (runs[runs["split"] == split] for split in ("fit", "extrapolate"))
    metric, via = f"{suite}_suite_acc", f"{suite}_suite_ce_loss"
    predicted = analysis.downstream(below, above[["params", "tokens", "flops"]], metric, via, resamples=50)
    assert above[metric].item() == pytest.approx(measured, abs=0.001)
    assert predicted.low.item() == pytest.approx(low, abs=0.01)
    assert predicted.high.item() == pytest.approx(high, abs=0.01)
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
