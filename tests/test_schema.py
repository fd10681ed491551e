"""Configs: unknown fields, JSON both ways, edits by dotted name, overrides, digests."""

import json
import typing
from collections.abc import Callable
from typing import Any

import hypothesis
import pydantic
import pytest
from hypothesis import strategies as st

from scaling import config, parametrization, registry, schema
from scaling.config import families, grids, optimizers, rates, schedules, sources, tokenizers

GROUPS = (
    families.Family, parametrization.Parametrization, optimizers.Optimizer, schedules.Warmup, schedules.Schedule,
    sources.Source,    tokenizers.Tokenizer, grids.Grid, rates.Rule,
)  # fmt: skip


def kinds(group: type[schema.Variant]) -> list[str]:
    """Those of the project: other test modules of this process define their own."""
    return sorted(kind for kind, each in group.group.items() if registry.ours(each))


KINDS = [(group, kind) for group in GROUPS for kind in kinds(group)]
Make = Callable[..., config.Run]


def values_of(annotation: Any, constraints: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values that a field's annotation allows, for the annotations that configs use."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values_of(arguments[0], (*arguments[1:], *constraints))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        bounds = bounds_of(constraints)
        return st.lists(values_of(arguments[0]), min_size=bounds.get("min_length", 1), max_size=3).map(tuple)
    if arguments and type(None) in arguments:
        return st.none() | values_of(next(a for a in arguments if a is not type(None)), constraints)
    bounds = bounds_of(constraints)
    if annotation is int:
        low = bounds.get("ge", bounds.get("gt", -1) + 1)
        return st.integers(low, bounds.get("le", 1 << 16))
    if annotation is float:
        return st.floats(
            bounds.get("ge", bounds.get("gt", -1e6)), bounds.get("le", bounds.get("lt", 1e6)),
            exclude_min="gt" in bounds, exclude_max="lt" in bounds,
        )  # fmt: skip
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return st.text(min_size=1, max_size=8)
    if annotation is Any:
        return st.none() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=4)
    if isinstance(annotation, type) and issubclass(annotation, schema.Config):
        return instances(annotation)
    raise NotImplementedError(annotation)


def bounds_of(constraints: tuple[Any, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for constraint in constraints:
        for one in getattr(constraint, "metadata", None) or [constraint]:
            found |= {name: getattr(one, name) for name in ("gt", "ge", "lt", "le", "min_length") if hasattr(one, name)}
    return found


# Fields that rules across fields tie together: drawn from values that fit.
TIED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Transformer": {
        "width": st.just(48), "heads": st.sampled_from([2, 4, 6]), "kv_heads": st.sampled_from([None, 1, 2]),
        "head_size": st.sampled_from([None, 8]),
    },
    "IsoFlop": {"per_budget": st.none(), "tokens_per_param": st.none()},
    "Zip": {"parts": st.just((grids.Axis(field="seed", values=(1, 2)), grids.Axis(field="clip", values=(1.0, None))))},
    "Product": {"parts": st.just((grids.Axis(field="seed", values=(1, 2)), grids.Single()))},
    "Chain": {"parts": st.just((grids.Single(), grids.Axis(field="seed", values=(1, 2))))},
}  # fmt: skip


def instances(kind: type[schema.Config]) -> st.SearchStrategy[schema.Config]:
    if issubclass(kind, schema.Variant) and not kind.model_fields["kind"].default:
        return st.sampled_from(kinds(kind)).flatmap(lambda name: instances(kind.group[name]))
    tied = TIED.get(kind.__name__, {})
    fields = {
        name: tied[name] if name in tied else values_of(field.annotation, tuple(field.metadata))
        for name, field in kind.model_fields.items()
    }
    return st.fixed_dictionaries(fields).map(lambda values: kind(**values))


@pytest.mark.parametrize(("group", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=15, suppress_health_check=list(hypothesis.HealthCheck))
def test_every_variant_survives_json_by_its_own_class_and_by_its_group(
    group: type[schema.Variant], kind: str, data: st.DataObject
) -> None:
    original = data.draw(instances(group.group[kind]))
    assert type(original) is group.group[kind]
    assert type(original).from_json(original.to_json()) == original
    again = group.from_json(original.to_json())
    assert type(again) is type(original)
    assert again == original
    assert schema.digest(again.model_dump(mode="json")) == schema.digest(original.model_dump(mode="json"))


def test_a_run_survives_json_with_its_variants_whole(tiny: Make) -> None:
    run = tiny(schedule={"kind": "wsd", "warmup": {"kind": "tokens", "tokens": 64}, "cooldown": 0.25}, clip=1)
    again = config.Run.from_json(run.to_json())
    assert again == run
    assert isinstance(again.schedule, schedules.Wsd)
    assert isinstance(again.schedule.warmup, schedules.WarmupTokens)
    assert isinstance(again.model, families.Transformer)
    assert (again.model.heads, again.schedule.cooldown, again.clip) == (2, 0.25, 1.0)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("token", "tokens"),
        ("model.widht", "width"),
        ("optimizer.lerning_rate", "learning_rate"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(tiny: Make, field: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"no field '{field.split('.')[-1]}'; did you mean '{nearest}'"):
        tiny().edit({field: 1})
    tree = json.loads(tiny().to_json())
    part = tree
    for name in field.split(".")[:-1]:
        part = part[name]
    part[field.split(".")[-1]] = 1
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        config.Run.model_validate(tree)


def test_a_field_like_no_other_is_refused_with_all_names(tiny: Make) -> None:
    with pytest.raises(ValueError, match=r"no field 'zzz' \(its fields: compute, parameters\)"):
        tiny().edit({"precision.zzz": 1})


def test_an_unknown_kind_is_refused_with_the_nearest_one(tiny: Make) -> None:
    with pytest.raises(ValueError, match="no Optimizer of kind 'adam'; did you mean 'adamw'"):
        tiny().edit({"optimizer": {"kind": "adam", "learning_rate": 1.0}})
    with pytest.raises(ValueError, match="kinds: adafactor, adamw"):
        tiny().edit({"optimizer": {"learning_rate": 1.0}})


def test_a_config_is_frozen(tiny: Make) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        tiny().seed = 3  # type: ignore[misc]


def test_an_edit_changes_only_what_it_names(tiny: Make) -> None:
    run = tiny()
    edited = run.edit({"model.width": 32, "seed": 7})
    assert (edited.model.width, edited.seed) == (32, 7)
    assert edited.edit({"model.width": 16, "seed": 0}) == run
    assert run == tiny()


def test_an_edit_reaches_into_tuples() -> None:
    axes = grids.Zip(parts=(grids.Axis(field="seed", values=(1, 2)), grids.Axis(field="clip", values=(1.0, 2.0))))
    edited = axes.edit({"parts.1.values": (3.0, 4.0)})
    assert edited.parts[1].values == (3.0, 4.0)
    assert edited.parts[0] == axes.parts[0]
    assert axes.edit({"parts.0.values.1": 5}).parts[0].values == (1, 5)
    with pytest.raises(ValueError, match="'2' is no index; it has 2 items, 0 to 1"):
        axes.edit({"parts.2.values": (1,)})
    with pytest.raises(ValueError, match="which has no fields"):
        axes.edit({"parts.0.field.x": 1})


def test_fields_that_depend_on_each_other_are_edited_at_once(tiny: Make) -> None:
    run = tiny()
    assert run.edit({"model.width": 15, "model.heads": 1, "model.position": "none"}).model.width == 15
    assert run.edit({"tokens": 96, "batch_size": 3, "context": 32}).steps == 1
    sweep = config.Sweep(name="s", base=run)
    assert sweep.edit({"base.tokens": 48, "base.batch_size": 3}).base.steps == 1


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("base.seed=3", "base.seed", 3),
        ("base.clip=null", "base.clip", None),
        ("base.optimizer.learning_rate=3e-4", "base.optimizer.learning_rate", 3e-4),
        ("name=other", "name", "other"),
        ("base.model.position=learned", "base.model.position", "learned"),
        ('grid={"kind": "single"}', "grid", {"kind": "single"}),
        ("trackers.0.project=a=b", "trackers.0.project", "a=b"),
    ],
)
def test_an_override_is_read_as_json_else_as_text(tiny: Make, text: str, field: str, value: Any) -> None:
    sweep = config.Sweep(name="s", base=tiny(), trackers=(config.Wandb(),))
    assert schema.parse_override(sweep, text) == (field, value)
    edited: Any = sweep.edit(dict([schema.parse_override(sweep, text)]))
    for name in field.split("."):
        edited = edited[int(name)] if name.isdecimal() else getattr(edited, name)
    assert edited == (grids.Single() if field == "grid" else value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base.seed", "no override; write FIELD=VALUE"),
        ("=3", "no override; write FIELD=VALUE"),
        ("base.seed=abc", "valid integer"),
        ("base.seed=1.5", "valid integer"),
        ("base.seed=-1", "greater than or equal to 0"),
        ("base.optimizer.learning_rate=NaN", "finite"),
        ("base.optimizer.learning_rate=Infinity", "finite"),
        ("base.optimizer.learning_rate=fast", "valid number"),
        ("base.precision.compute=float16", "'float32' or 'bfloat16'"),
        ("base.model.tied=7", "valid boolean"),
        ("base.model=5", "valid dictionary|Family"),
    ],
)
def test_an_override_of_the_wrong_form_or_type_is_refused(tiny: Make, text: str, message: str) -> None:
    sweep = config.Sweep(name="s", base=tiny())
    with pytest.raises(ValueError, match=message):
        sweep.edit(dict([schema.parse_override(sweep, text)]))


@hypothesis.given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_a_digest_survives_json_and_ignores_the_order_of_keys(value: Any) -> None:
    def turned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    assert schema.digest(turned(json.loads(json.dumps(value)))) == schema.digest(value)


def test_digests_differ_where_values_do() -> None:
    values = [0, 1, "1", None, True, [1], {"a": 1}, {"a": 2}, {"b": 1}, 1.5, "a", [], {}]
    assert len({schema.digest(value) for value in values}) == len(values)


def test_a_value_that_is_no_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        schema.digest(float("nan"))


def test_two_variants_of_one_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="two variants call themselves 'sgd'"):

        class Other(optimizers.Optimizer):
            kind: typing.Literal["sgd"] = "sgd"

    assert optimizers.Optimizer.group["sgd"] is optimizers.Sgd


def test_a_new_variant_joins_its_group_from_anywhere(tiny: Make) -> None:
    class Halving(schedules.Schedule):
        kind: typing.Literal["halving"] = "halving"
        times: int

    try:
        run = tiny(schedule={"kind": "halving", "times": 3, "warmup": {"kind": "fraction", "fraction": 0.0}})
        assert config.Run.from_json(run.to_json()).schedule == Halving(
            times=3, warmup=schedules.WarmupFraction(fraction=0.0)
        )
    finally:
        del schedules.Schedule.group["halving"]


class Part(schema.Config):
    old: int = 1
    new: float = schema.added(0.5)


class Shape(schema.Variant):
    """A group of this test; its first kind was stored before there was a group, so without a kind."""


class Disc(Shape):
    kind: typing.Literal["disc"] = schema.added("disc")
    radius: float = 1.0
    colour: str | None = schema.added(None)


class Box(Shape):
    kind: typing.Literal["box"] = "box"
    sides: tuple[int, ...] = (1, 2)
    soft: bool = schema.added(False)


class Whole(schema.Config):
    """As of now; of stored ones `part`, `shapes` and `young` came later."""

    width: int = 8
    part: Part = Part()
    shape: Shape = Disc()
    shapes: tuple[Shape, ...] = schema.added(())
    young: Part = schema.added(Part())


WHOLE = {"width": 8, "part": {"old": 1}, "shape": {"radius": 1.0}}
IDENTITIES: dict[str, tuple[Whole, dict[str, Any]]] = {
    "all at their default": (Whole(), WHOLE),
    "a default that is given": (Whole(part=Part(new=0.5), young=Part(old=1)), WHOLE),
    "a nested field": (Whole(part=Part(new=0.25)), {**WHOLE, "part": {"old": 1, "new": 0.25}}),
    "a nested config that was added": (Whole(young=Part(old=2)), {**WHOLE, "young": {"old": 2}}),
    "a field of a variant": (Whole(shape=Disc(colour="red")), {**WHOLE, "shape": {"radius": 1.0, "colour": "red"}}),
    "a variant with a kind": (Whole(shape=Box()), {**WHOLE, "shape": {"kind": "box", "sides": [1, 2]}}),
    "a field of that": (
        Whole(shape=Box(soft=True)),
        {**WHOLE, "shape": {"kind": "box", "sides": [1, 2], "soft": True}},
    ),
    "variants in a tuple": (
        Whole(shapes=(Disc(), Box(sides=(3,)))),
        {**WHOLE, "shapes": [{"radius": 1.0}, {"kind": "box", "sides": [3]}]},
    ),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_names_and_records_hold_what_they_did_before_fields_were_added(case: str) -> None:
    whole, identity = IDENTITIES[case]
    assert whole.identity() == identity
    assert Whole.model_validate(json.loads(json.dumps(identity))) == whole
    assert Whole.from_json(whole.to_json()) == whole


def test_a_stored_config_has_every_field_under_its_dotted_name() -> None:
    whole = Whole(shape=Box(sides=(3, 4)), shapes=(Disc(radius=2.0),))
    assert list(schema.dotted(Whole, whole.identity()).items()) == [
        ("width", 8), ("part.old", 1), ("part.new", 0.5), ("shape.kind", "box"), ("shape.sides", [3, 4]),
        ("shape.soft", False), ("shapes.0.kind", "disc"), ("shapes.0.radius", 2.0), ("shapes.0.colour", None),
        ("young.old", 1), ("young.new", 0.5),
    ]  # fmt: skip
    assert schema.dotted(Whole, {"shape": {"kind": "of another file", "size": 1}})["shape.size"] == 1


@pytest.mark.parametrize("changes", [{}, {"model.tied": True, "clip": 1.0, "parametrization.init_scale": 2.0}])
def test_the_dotted_names_of_a_run_are_those_of_its_edits(tiny: Make, changes: dict[str, Any]) -> None:
    run = tiny().edit(changes)
    fields = schema.dotted(config.Run, json.loads(json.dumps(run.identity())))
    assert fields.items() >= changes.items()
    assert fields["parametrization.init_scale"] == changes.get("parametrization.init_scale", 1.0)
    assert run.edit({name: value for name, value in fields.items() if not name.endswith("kind")}) == run


def test_a_group_without_a_kind_of_before_needs_a_kind() -> None:
    with pytest.raises(ValueError, match="no Optimizer of kind None"):
        optimizers.Optimizer.model_validate({"learning_rate": 1.0})
    with pytest.raises(ValueError, match="no Shape of kind 'disk'; did you mean 'disc'"):
        Shape.model_validate({"kind": "disk"})


def test_an_error_is_told_a_line_a_problem(tiny: Make) -> None:
    tree = json.loads(tiny().to_json())
    tree["context"], tree["model"]["width"] = -4, "wide"
    with pytest.raises(pydantic.ValidationError) as caught:
        config.Run.model_validate(tree)
    lines = schema.describe(caught.value).splitlines()
    assert len(lines) == 2
    assert any(line.startswith("context: ") and "(got -4)" in line for line in lines)
    assert any("width" in line and "(got 'wide')" in line for line in lines)
    assert "pydantic.dev" not in "".join(lines)
