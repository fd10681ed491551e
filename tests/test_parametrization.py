"""Scales by role, as the papers print them."""

import math

import pytest

from scaling import parametrization
from scaling.config import families

BASE = families.Transformer.gpt2(64, 4, 4, tied=False)
MUP = parametrization.MuP(base_width=64, base_depth=4, base_head_size=16)
STANDARD = parametrization.Standard()


def weight(model: families.Family, name: str) -> families.Weight:
    return next(weight for weight in model.weights(256, 128) if weight.name == name)


def test_mup_at_its_base_shape_is_standard() -> None:
    for one in BASE.weights(256, 128):
        assert MUP.init_std(one, BASE) == STANDARD.init_std(one, BASE)
        assert MUP.learning_rate_multiplier(one, BASE) == STANDARD.learning_rate_multiplier(one, BASE) == 1.0
    assert MUP.output_multiplier(BASE) == STANDARD.output_multiplier(BASE) == 1.0
    assert MUP.residual_multiplier(BASE) == STANDARD.residual_multiplier(BASE) == 1.0
    assert MUP.attention_scale(16) == STANDARD.attention_scale(16) == 0.25


def test_mup_follows_table_8_in_width() -> None:
    # Yang et al. 2203.03466, table 8, Adam: input and vectors 1; hidden std 1/√fan-in, rate 1/m; output multiplier 1/m.
    wide = BASE.resize(64 * 4, 4, 16)
    for one in wide.weights(256, 128):
        small = weight(BASE, one.name)
        hidden = one.role == "hidden"
        assert MUP.learning_rate_multiplier(one, wide) == (0.25 if hidden else 1.0)
        assert MUP.init_std(one, wide) == pytest.approx(MUP.init_std(small, BASE) * (0.5 if hidden else 1.0))
    assert MUP.output_multiplier(wide) == 0.25
    assert MUP.attention_scale(64) == MUP.attention_scale(16) / 4  # 1 / head size and not 1 / √head size


def test_mup_divides_residual_branches_by_depth() -> None:
    deep = BASE.resize(64, 32, 4)
    assert MUP.residual_multiplier(deep) == 1 / 8  # CompleteP, α = 1 (Dey et al. 2505.01618)
    assert all(MUP.init_std(one, deep) == MUP.init_std(weight(BASE, one.name), BASE) for one in deep.weights(256, 128))


def test_standard_is_gpt2s() -> None:
    model = families.Transformer.gpt2(768, 12, 12)
    assert STANDARD.init_std(weight(model, "layers.mlp.up"), model) == 1 / math.sqrt(768)
    assert STANDARD.init_std(weight(model, "layers.mlp.down"), model) == pytest.approx(1 / math.sqrt(3072 * 24))
    assert STANDARD.init_std(weight(model, "embedding"), model) == 1 / math.sqrt(768)
