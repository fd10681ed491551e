"""Checks of versions: Python and packages against what this package requires, and JAX against what is made for it."""

import importlib.metadata
import platform
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from packaging import requirements, specifiers

import scaling
from scaling.checks import finding

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
MADE_FOR_JAX = ("flax", "optax", "orbax-checkpoint")  # whose own requirements of JAX are looked at
PLUGIN_EXTRAS = ("cuda12-local", "cuda13-local", "tpu")  # of JAX, each with the version of its plugin

Installed = Callable[[str], str | None]
Needs = Callable[[str], Sequence[str]]


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def needs(name: str) -> Sequence[str]:
    """What a package says that it requires; nothing where it is not installed."""
    return importlib.metadata.requires(name) or [] if installed(name) else []


def required(root: Path = Path(scaling.__file__).parents[1]) -> tuple[str, Sequence[str]]:
    """The versions of Python and of packages that this package requires.

    By the pyproject.toml of the checkout that it runs from, else as it was installed. Raises ValueError where it is
    neither.
    """
    file = root / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text())["project"]
        return project["requires-python"], project["dependencies"]
    try:
        about = importlib.metadata.metadata("scaling")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"scaling, at {root}, is neither a checkout nor installed; pip install it") from None
    return about["Requires-Python"], needs("scaling")


def packages(
    python_required: str, wanted: Sequence[str], python: str = platform.python_version(), has: Installed = installed
) -> list[finding.Finding]:
    """Python and the required packages."""
    supported = specifiers.SpecifierSet(python_required).contains(python, prereleases=True)
    failing = [] if supported else [f"python {python} (needs {python_required})"]
    failing += _unmet(wanted, has)
    if failing:
        return [finding.wrong("versions", ", ".join(failing), "make a new environment and `pip install` this package")]
    shown = ", ".join(f"{name} {has(name)}" for name in SHOWN)
    return [finding.ok("versions", f"python {python}, {shown}: all {len(wanted)} requirements are met")]


def jax(has: Installed = installed, wants: Needs = needs) -> list[finding.Finding]:
    """Whether jaxlib and the plugins are those of this JAX, and JAX one that Flax, Optax and Orbax take."""
    own = [text for text in wants("jax") if requirements.Requirement(text).marker is None]
    failing = [f"jax {has('jax')} with {each}" for each in _unmet(own, has)]
    for extra in PLUGIN_EXTRAS:
        of_extra = [text for text in wants("jax") if _applies(text, extra) and not _applies(text, "")]
        plugins = [text for text in of_extra if has(requirements.Requirement(text).name)]
        if any(requirements.Requirement(text).name not in ("jaxlib", "requests") for text in plugins):
            failing += [f"jax {has('jax')} with {each}" for each in _unmet(plugins, has, extra)]
    for name in MADE_FOR_JAX:
        of_jax = [text for text in wants(name) if requirements.Requirement(text).name in ("jax", "jaxlib")]
        failing += [f"{name} {has(name)} with {each}" for each in _unmet(of_jax, has)]
    if failing:
        remedy = "install them together: `pip install --upgrade jax flax optax orbax-checkpoint`, with JAX's extra"
        return [finding.wrong("jax", ", ".join(failing), remedy)]
    return [finding.ok("jax", f"jaxlib {has('jaxlib')} is of jax {has('jax')}, which flax, optax and orbax take")]


def _applies(text: str, extra: str) -> bool:
    marker = requirements.Requirement(text).marker
    return marker is None or marker.evaluate({"extra": extra})


def _unmet(texts: Iterable[str], has: Installed, extra: str = "") -> list[str]:
    """Requirements that are not met: `flax 0.1 (needs >=0.2)`."""
    unmet = []
    for text in texts:
        if not _applies(text, extra):
            continue
        wanted = requirements.Requirement(text)
        version = has(wanted.name)
        if version is None:
            unmet.append(f"no {wanted.name}")
        elif not wanted.specifier.contains(version, prereleases=True):
            unmet.append(f"{wanted.name} {version} (needs {wanted.specifier})")
    return unmet
