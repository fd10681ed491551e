"""Checks of trackers: each kind says itself what it lacks. No key is ever shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scaling import config
from scaling.checks import finding


def trackers(settings: Sequence[config.Tracker], environment: Mapping[str, str], home: Path) -> list[finding.Finding]:
    """What each tracker needs; without any, that there is none."""
    if not settings:
        return [finding.ok("tracker", "none: metrics are in the store alone")]
    return [_tracker(each, environment, home) for each in settings]


def _tracker(settings: config.Tracker, environment: Mapping[str, str], home: Path) -> finding.Finding:
    try:
        return finding.ok("tracker", settings.examine(environment, home))
    except ValueError as error:  # which holds the remedy
        return finding.wrong("tracker", str(error))
