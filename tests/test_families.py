"""The table of weights, the rules that a size must obey, and JSON both ways."""

from typing import Any

import pydantic
import pytest

from scaling.config import families
from tests.models import small


@small.every_family
def test_names_are_unique_and_every_dimension_has_an_axis(family: families.Family) -> None:
    table = family.weights(small.VOCABULARY, small.CONTEXT)
    assert len({weight.name for weight in table}) == len(table)
    assert all(len(weight.shape) == len(weight.axes) for weight in table)
    assert all(
        weight.full_shape == ((family.depth, *weight.shape) if weight.stack else weight.shape) for weight in table
    )


@small.every_family
def test_fan_in_is_what_one_output_sums(family: families.Family) -> None:
    for weight in family.weights(small.VOCABULARY, small.CONTEXT):
        if weight.role in ("hidden", "output"):
            outputs = weight.size // max(weight.stack, 1) // weight.fan_in
            assert outputs * weight.fan_in == weight.size // max(weight.stack, 1)
            assert weight.fan_in in (weight.shape[0], weight.shape[0] * weight.shape[1])


@small.every_family
def test_json_gives_the_same_family(family: families.Family) -> None:
    assert families.Family.model_validate(family.model_dump(mode="json")) == family
    assert type(family).from_json(family.to_json()) == family


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "3 heads do not divide width 16.*divisor"),
        ({"heads": 4, "kv_heads": 3}, "3 kv_heads do not divide 4 heads.*divisor"),
        ({"position": "rotary", "heads": 16}, "even head size, not 1"),
        ({"width": -16}, "greater than 0"),
        ({"depth": 0}, "greater than 0"),
        ({"norm": "batchnorm"}, "layernorm"),
        ({"hedas": 2}, "no field 'hedas'; did you mean 'heads'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = families.Transformer.gpt2(16, 2, 2).model_dump(exclude={"kind"})
    with pytest.raises(pydantic.ValidationError, match=message):
        families.Transformer(**{**fields, **changes})


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no Family of kind 'transfromer'; did you mean 'transformer'"):
        families.Family.model_validate({"kind": "transfromer"})


def test_resize_keeps_the_form() -> None:
    assert families.Transformer.gpt2(64, 3, 4).resize(128, 5, 8) == families.Transformer.gpt2(128, 5, 8)
    assert families.Transformer.modern(64, 3, 4).resize(128, 5, 8) == families.Transformer.modern(128, 5, 8)
    grouped = families.Transformer.modern(64, 3, 8).edit({"kv_heads": 2, "mlp_width": 100})
    larger = grouped.resize(128, 3, 16)
    assert (larger.kv_heads, larger.mlp_width) == (4, 200)
    assert families.Lstm(width=8, depth=2).resize(16, 3, None) == families.Lstm(width=16, depth=3)


def test_swiglu_matrices_hold_what_two_of_four_widths_do() -> None:
    model = families.Transformer.modern(768, 12, 12)
    assert model.hidden == 2048
    assert 3 * 768 * model.hidden == 2 * 768 * 4 * 768


def test_a_size_set_by_hand_keeps_its_ratios_and_one_that_is_not_follows_the_rule() -> None:
    modern = families.Transformer.modern(width=16, depth=1, heads=2)
    assert modern.edit({"width": 64}).hidden == families.Transformer.modern(width=64, depth=1, heads=2).hidden == 176
    wide = modern.edit({"head_size": 16, "mlp_width": 24}).resize(width=32, depth=1, heads=4)
    assert (wide.attention_width, wide.hidden) == (64, 48)


@small.every_family
def test_the_bound_of_any_family_is_above_what_was_counted_in_buffers(family: families.Family) -> None:
    for context, scores in ((8, True), (8, False), (4096, True)):
        for name in ("activation_floats", "working_floats"):
            counted = getattr(family, name)(context, scores)
            assert counted <= getattr(families.Family, name)(family, context, scores) <= 4 * counted, name


def test_stages_follow_the_way_from_input_to_output() -> None:
    order: dict[int, list[str]] = {}
    for weight in families.Transformer.modern(16, 2, 2).weights(small.VOCABULARY, small.CONTEXT):
        order.setdefault(weight.stage, []).append(weight.name.removeprefix("layers."))
    assert [names for _, names in sorted(order.items())] == [
        ["embedding"],
        ["attention_norm.scale"],
        ["attention.query", "attention.key", "attention.value"],
        ["attention.query_norm.scale", "attention.key_norm.scale"],
        ["attention.output"],
        ["mlp_norm.scale"],
        ["mlp.gate", "mlp.up"],
        ["mlp.down"],
        ["norm.scale"],
        ["output"],
    ]


def test_epsilon_belongs_to_the_family_and_leaves_old_names_as_they_are() -> None:
    model = families.Transformer.gpt2(16, 2, 2)
    assert (model.epsilon, "epsilon" in model.identity()) == (1e-6, False)
    assert model.edit({"epsilon": 1e-5}).identity()["epsilon"] == 1e-5
