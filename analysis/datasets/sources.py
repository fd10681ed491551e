"""The table of public tables: `ENTRIES`, by name.

A SHA-256 is given only where the bytes of the source at that commit are known; an entry without one has no download.
"""

from analysis.datasets import curves, families, runs
from analysis.datasets.entry import Entry

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (*runs.ENTRIES, *families.ENTRIES, *curves.ENTRIES)}
