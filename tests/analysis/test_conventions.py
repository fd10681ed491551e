"""The approaches side by side: every convention has its rows, refusals and differences are stated."""

import numpy as np
import pytest

import analysis
from analysis import conventions, frontiers


def counted(planted, law_params):
    """Runs whose loss is a law of total parameters, with non-embedding ones N − ω N^(1/3) and exact FLOPs beside."""
    frame = planted(noise=0.001, sizes=7)
    exact = frame["flops"] * (1 + 0.3 * (frame["params"] / frame["params"].min()) ** -0.2)
    omega = 0.5 * frame["params"].min() ** (2 / 3)
    frame["params_non_embedding"] = frame["params"] - omega * np.cbrt(frame["params"])
    return frame.drop(columns="flops_budget").assign(flops=exact)


def test_every_convention_and_approach_has_a_row(planted, law_params) -> None:
    frame = counted(planted, law_params)
    table = conventions.approaches(frame, resamples=50)
    pairs = list(dict.fromkeys(zip(table["params"], table["flops"], strict=True)))
    assert pairs == [
        ("params", "flops"), ("params", "6 · params · tokens"), ("params_non_embedding", "flops"),
        ("params_non_embedding", "6 · params_non_embedding · tokens"),
    ]  # fmt: skip
    assert len(table) == 12
    assert list(table["approach"]) == [1, 2, 3] * 4
    true = law_params["beta"] / (law_params["alpha"] + law_params["beta"])
    own = table[(table["flops"] == "6 · params · tokens") & (table["approach"] > 1)]
    np.testing.assert_allclose(own["exponent_params"], true, atol=0.03)
    by_law = table[table["approach"] == 3].set_index(["params", "flops"])["exponent_params"]
    assert by_law["params_non_embedding"].min() > by_law["params"].max() + 0.02
    made = table[table["refused"] == ""]
    assert (made["low"] <= made["exponent_params"]).all()
    assert (made["difference_to"] == "approach 3").all()
    for _, rows in made.groupby(["params", "flops"]):
        three = rows.loc[rows["approach"] == 3, "exponent_params"].item()
        np.testing.assert_allclose(rows["difference"], rows["exponent_params"] - three)
    first = table.loc[table["approach"] == 3, "exponent_params"].iloc[0]
    np.testing.assert_allclose(
        table.loc[table["approach"] == 3, "between_conventions"],
        table.loc[table["approach"] == 3, "exponent_params"] - first,
    )
    single = analysis.frontier(frame, 3, params="params_non_embedding", resamples=50)
    row = table[(table["params"] == "params_non_embedding") & (table["flops"] == "flops") & (table["approach"] == 3)]
    assert row["exponent_params"].item() == single.exponent_params.value
    assert (row["low"].item(), row["high"].item()) == single.exponent_params.interval


def test_equal_conventions_are_one(planted) -> None:
    frame = planted(noise=0.001).assign(flops_6nd=lambda rows: 6 * rows["params"] * rows["tokens"])
    table = conventions.approaches(frame, resamples=20)
    assert list(table["flops"]) == ["flops"] * 3
    assert not table["refused"].any()
    assert table.loc[table["approach"] == 2, "bias_params"].notna().all()


def test_bad_columns_are_told(planted) -> None:
    frame = planted()
    with pytest.raises(analysis.Refused, match="no column 'params'"):
        conventions.approaches(frame.rename(columns={"params": "size"}))
    bad = frame.assign(params_with_head=0.0)
    table = conventions.approaches(bad, resamples=20)
    refused = table[table["params"] == "params_with_head"]["refused"]
    assert len(refused) >= 3
    assert refused.str.contains("zero or negative").all()


def test_budgets_of_unequal_flops_under_another_count_are_not_slices(planted) -> None:
    frame = planted(noise=0.001, width=5.0).assign(
        params_non_embedding=lambda rows: rows["params"] * (rows["params"] / 1e4) ** 0.5
    )
    table = conventions.approaches(frame, resamples=20)
    other = table[table["flops"].str.contains("non_embedding")].set_index("approach")
    assert "approach 2" in other.loc[2, "refused"]
    assert np.isnan(other.loc[2, "exponent_params"])
    assert other.loc[3, "refused"] == ""
    assert isinstance(frontiers.frontier(frame, 2, params="params_non_embedding", resamples=20), frontiers.Frontier)
