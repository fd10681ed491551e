"""Every law by its name: `LAWS`, collected from `analysis.catalogue`, and `get`."""

import difflib
import importlib

from analysis.forms import Law, Parameter, law

__all__ = ["LAWS", "Law", "Parameter", "get", "law"]

SUBJECTS = (
    "pretraining", "curves", "hyperparameters", "trends", "transfer", "repetition", "routing", "downstream",
    "vocabulary", "precision",
)  # fmt: skip


def _collect() -> dict[str, Law]:
    by_name: dict[str, Law] = {}
    for subject in SUBJECTS:
        for value in vars(importlib.import_module(f"analysis.catalogue.{subject}")).values():
            if isinstance(value, Law) and by_name.setdefault(value.name, value) != value:
                raise ValueError(f"two laws are called {value.name!r}; rename the one in {subject}")
    return by_name


LAWS = _collect()


def get(entry: str | Law) -> Law:
    """The law of that name, or the law itself; ValueError names the nearest, or all that there are."""
    if isinstance(entry, Law):
        return entry
    if entry not in LAWS:
        near = difflib.get_close_matches(entry, LAWS, n=3, cutoff=0.6) or list(LAWS)
        raise ValueError(f"law {entry!r} is unknown; name one of {', '.join(near)}, or make one with analysis.law(...)")
    return LAWS[entry]
