"""Where the implementation of a config is: a module of the kind's name, found by being there and imported when used.

A config names what it needs, and the packages that implement it import the configs. This is the only way from a config
down to its implementation.
"""

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling import schema  # pydantic, which `scaling --help` does without

PACKAGES = {
    "Data": "scaling.data",
    "Family": "scaling.models",
    "Launcher": "scaling.launch.launchers",
    "Source": "scaling.data.sources",
    "Task": "scaling.tasks",
    "Tokenizer": "scaling.data.tokenizers",
    "Tracker": "scaling.training.trackers",
}  # by group of variants


@functools.cache
def members(package: str) -> tuple[str, ...]:
    """The names of the modules and packages in a package, sorted; none of them is imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return tuple(sorted(info.name for info in pkgutil.iter_modules(spec.submodule_search_locations)))


def import_members(package: str) -> None:
    """Import every module of a package, so that the variants that they define join their groups."""
    for name in members(package):
        importlib.import_module(f"{package}.{name}")


def module(group: str, kind: str) -> ModuleType | None:
    """The module that implements a kind; None where the project has none."""
    return importlib.import_module(f"{PACKAGES[group]}.{kind}") if kind in members(PACKAGES[group]) else None


def ours(kind: type) -> bool:
    """Whether a class is the project's own, and not one of a user's file."""
    return kind.__module__.startswith(f"{__package__}.")


def implementation(variant: "schema.Variant") -> ModuleType | None:
    """The module that implements a variant, or the class that it inherits from; None where the project has none.

    Only of the project's own classes: a user's kind may have the name of any module in the package.
    """
    group = type(variant).group_name()
    fields = (getattr(base, "model_fields", {}) for base in type(variant).__mro__ if ours(base))
    kinds = (each["kind"].default for each in fields if "kind" in each)
    modules = (module(group, kind) for kind in kinds)
    return next((one for one in modules if one is not None), None)


def function(variant: "schema.Variant", name: str) -> Callable[..., Any] | None:
    """A function of the variant's implementation, which takes the variant first; None where there is none."""
    return getattr(implementation(variant), name, None)


def required(variant: "schema.Variant", name: str) -> Callable[..., Any]:
    """The same. Raises NotImplementedError where there is none, with what to define."""
    implemented = function(variant, name)
    if implemented is None:
        raise NotImplementedError(f"{type(variant).__qualname__} has no method {name!r}; define it in the class")
    return implemented
