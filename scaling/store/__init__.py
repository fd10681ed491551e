"""The store of results: what it holds, who may write it, and how it is read. No JAX here."""

from scaling.store.store import (
    COLUMNS,
    FORMAT,
    MEASURED,
    OF_RUN,
    OPEN,
    PLANNED,
    RUN_ID,
    SEGMENT,
    SWEEP_NAME,
    Member,
    Status,
    Store,
    SweepRecord,
)

__all__ = [
    "COLUMNS", "FORMAT", "MEASURED", "OF_RUN", "OPEN", "PLANNED", "RUN_ID", "SEGMENT", "SWEEP_NAME", "Member", "Status",
    "Store", "SweepRecord",
]  # fmt: skip
