"""What every config has in common: frozen, typed, JSON both ways, a stable hash, edits by dotted field name."""

import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic

ADDED = "added"  # marks, in a field's metadata, one that is younger than stored runs


def added(default: Any) -> Any:
    """A field that a config gets after runs of it are stored: at this default it is left out of run ids and records.

    So old ids stay and old records are read; the default must never change.
    """
    return pydantic.Field(default=default, json_schema_extra={ADDED: True})


class Config(pydantic.BaseModel):
    """A frozen record of settings that refuses fields it does not know and names the nearest one it does."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(unknown_field(cls, str(name)))
        return values

    def to_json(self, indent: int | None = 2) -> str:
        """This config as JSON; `from_json` of it is equal to this config."""
        return json.dumps(self.model_dump(mode="json"), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`; raises ValueError where a field is unknown or of another type."""
        return cls.model_validate_json(text)

    def identity(self) -> dict[str, Any]:
        """What run ids and records hold, as JSON values: all fields but those `added` that are at their default."""
        return {
            name: _identity(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not (_is_added(field) and getattr(self, name) == field.default)
        }

    def edit(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted fields replaced, validated again: `run.edit({"model.width": 64, "seed": 1})`.

        Raises ValueError naming the field, its nearest neighbour, or the rule that the value breaks.
        """
        tree = {name: getattr(self, name) for name in type(self).model_fields}
        inner: dict[str, dict[str, Any]] = {}  # all edits of one part at once: its rules may tie them together
        for field, value in changes.items():
            head, _, rest = field.partition(".")
            if head not in tree:
                raise ValueError(unknown_field(type(self), head))
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                tree[head] = value
        for head, edits in inner.items():
            tree[head] = _edited(tree[head], edits, head)
        return type(self).model_validate(tree)


def dotted(annotation: Any, value: Any, name: str = "") -> dict[str, Any]:
    """A part of a config, or what `identity` gave of it, as one value for each field by dotted name.

    Fields that were left out of it as `added` have their default. Sequences are values, but for those of configs,
    whose items go by their index; `annotation` says of which config the value is.
    """
    if isinstance(value, Config):
        return dotted(type(value), value.identity(), name)
    items: Mapping[str, Any]
    if isinstance(value, Mapping):
        known = _config_of(annotation, value)
        fields = known.model_fields if known else {}
        there = {key: field for key, field in fields.items() if key in value or _is_added(field)}
        items = {**{key: value.get(key, field.default) for key, field in there.items()}, **value}
        inner = {key: field.annotation for key, field in fields.items()}
    elif isinstance(value, tuple | list) and any(isinstance(item, Mapping | Config) for item in value):
        items = {str(index): item for index, item in enumerate(value)}
        inner = dict.fromkeys(items, annotation)
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items.items():
        flat |= dotted(inner.get(key), item, f"{name}.{key}" if name else key)
    return flat


def _config_of(annotation: Any, values: Mapping[str, Any]) -> "type[Config] | None":
    """The class of a stored config: the one that its field is annotated with, of variants the one of its kind."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation.of_kind(values) if issubclass(annotation, Variant) else annotation
    return next(filter(None, (_config_of(part, values) for part in typing.get_args(annotation))), None)


def _is_added(field: pydantic.fields.FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and ADDED in field.json_schema_extra


def _identity(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    return value


def _edited(part: Any, changes: Mapping[str, Any], whole: str) -> Any:
    """`part` with dotted fields replaced, where part is a config or a sequence; `whole` is its name."""
    if isinstance(part, Config):
        return part.edit(changes)
    if isinstance(part, tuple | list):
        items = list(part)
        for field, value in changes.items():
            head, _, rest = field.partition(".")
            if not head.isdecimal() or int(head) >= len(part):
                raise ValueError(f"{whole}: {head!r} is no index; it has {len(part)} items, 0 to {len(part) - 1}")
            items[int(head)] = _edited(items[int(head)], {rest: value}, f"{whole}.{head}") if rest else value
        return tuple(items)
    field = next(iter(changes))
    raise ValueError(f"{whole}.{field}: {whole} holds {part!r}, which has no fields; set it as a whole")


def unknown_field(config: type[pydantic.BaseModel], name: str) -> str:
    """The message for a field that `config` lacks: the nearest name if one is near, and all names."""
    known = list(config.model_fields)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{config.__name__} has no field {name!r}{hint} (its fields: {', '.join(known) or 'none'})"


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value (sorted keys, shortest floats): equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Variant(Config):
    """One of several configs that may stand in a field; its class is named by `kind` in JSON.

    A direct subclass opens a group (`class Source(Variant)`); each class below it that sets `kind` joins the group's
    registry, from any module, so a new variant needs no other file edited. Annotate fields with the group itself.
    A group that is younger than stored runs marks one kind as `added`: a mapping without `kind` means that one.
    """

    group: ClassVar[dict[str, type["Variant"]]]
    kind: str = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.group = {}
        kind = cls.model_fields["kind"].default
        if kind:
            other = cls.group.get(kind)
            if other is not None and other.__qualname__ != cls.__qualname__:
                raise TypeError(f"two variants call themselves {kind!r}: {other.__qualname__} and {cls.__qualname__}")
            cls.group[kind] = cls

    def __new__(cls, *_: Any, **__: Any) -> Self:
        if not cls.model_fields["kind"].default:
            known = ", ".join(sorted(each.__name__ for each in cls.group.values()))
            raise TypeError(f"{cls.__name__} is a group of configs; write one of its kinds: {known}")
        return super().__new__(cls)

    @classmethod
    def of_kind(cls, values: Mapping[str, Any]) -> "type[Variant] | None":
        """The class that stored values are of: this one where it is a variant, else that of their kind in its group.

        Values without a kind are of the variant whose `kind` is `added`: they were stored before the group was opened.
        """
        if cls.model_fields["kind"].default:
            return cls
        if "kind" in values:
            return cls.group.get(values["kind"])
        return next((each for each in cls.group.values() if _is_added(each.model_fields["kind"])), None)

    @classmethod
    def group_name(cls) -> str:
        """The name of the class that opened this variant's group."""
        return next(base.__name__ for base in cls.__mro__ if Variant in base.__bases__)

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _choose_variant(cls, value: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping) or cls.model_fields["kind"].default:
            return handler(value)
        known = cls.of_kind(value)
        if known is None:
            kind = value.get("kind")
            near = difflib.get_close_matches(str(kind), cls.group, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"no {cls.__name__} of kind {kind!r}{hint} (kinds: {', '.join(sorted(cls.group))}); for one of your "
                "own, give the Python file that defines it"
            )
        return typing.cast(Self, known.model_validate(dict(value)))

    @pydantic.model_serializer(mode="wrap")
    def _serialize_whole(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All fields of the actual class, also where the field is annotated with its group."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def parse_override(config: Config, text: str) -> tuple[str, Any]:
    """`field.name=value` as (field, value): the value read as JSON where it is JSON, else as a string.

    Types are checked by `Config.edit`. Raises ValueError where there is no `=`.
    """
    field, equals, value = text.partition("=")
    if not equals or not field:
        first = next(iter(type(config).model_fields))
        raise ValueError(f"{text!r} is no override; write FIELD=VALUE, for example {first}=…")
    return field, parse_value(value)


def parse_value(text: str) -> Any:
    """A value given as text: JSON where it is JSON, else a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def error_lines(error: pydantic.ValidationError) -> str:
    """A validation error as one line a problem: `field: what is wrong (got value)`."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or error.title
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = "" if isinstance(given, Mapping | pydantic.BaseModel) else f" (got {given!r})"
        lines.append(f"{where}: {message}{shown}")
    return "\n".join(lines)


def describe(error: Exception) -> str:
    """An error as a person reads it: the problems of a validation a line each."""
    return error_lines(error) if isinstance(error, pydantic.ValidationError) else str(error)
