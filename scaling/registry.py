"""Where the implementation of a config is: a module of the kind's name, imported when it is first used.

A config names what it needs, and the rooms that implement it lie below the configs and import them. This is the only
way from a config down to its implementation.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from scaling import schema

ROOMS = {
    "Data": "scaling.data",
    "Family": "scaling.models",
    "Source": "scaling.data.sources",
    "Task": "scaling.tasks",
    "Tokenizer": "scaling.data.tokenizers",
}  # by group of variants


def implementation(variant: schema.Variant) -> ModuleType | None:
    """The module that implements a variant; None where the project has none of its kind."""
    name = f"{ROOMS[type(variant).group_name()]}.{variant.kind}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def function(variant: schema.Variant, name: str) -> Callable[..., Any] | None:
    """A function of the variant's implementation, which takes the variant first; None where there is none."""
    return getattr(implementation(variant), name, None)


def required(variant: schema.Variant, name: str) -> Callable[..., Any]:
    """The same. Raises NotImplementedError where there is none, with what to define."""
    found = function(variant, name)
    if found is None:
        raise NotImplementedError(f"{type(variant).__qualname__} has no method {name!r}; define it in the class")
    return found
