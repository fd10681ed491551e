"""Counts, sizes, times and measurements as a person reads them."""

import math


def count(value: float) -> str:
    """A count to three digits with its thousands: 64.2k, 1.2M, 30B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes: 0.5 MB, 12.5 GB."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """A time: 1.5 s, 12.0 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def measured(value: float | None, error: float | None) -> str:
    """A measurement with its standard error: 2.0130 ± 0.0042; without an error that is missing, nothing for no value.

    Missing is None or NaN.
    """
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4f}" if error is None or math.isnan(error) else f"{value:.4f} ± {error:.4f}"


def value(given: object) -> str:
    """A setting: numbers to three digits, whole ones whole; nothing for a missing one."""
    if given is None or given != given:
        return ""
    if isinstance(given, float):
        return f"{int(given)}" if given.is_integer() and abs(given) < 1e6 else f"{given:.3g}"
    return str(given)
