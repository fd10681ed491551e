"""Launchers start workers on machines; workers coordinate through the store alone. Nothing here imports JAX."""

from scaling import registry


def kinds() -> list[str]:
    """The kinds of launchers that the project has."""
    return list(registry.members(registry.PACKAGES["Launcher"]))
