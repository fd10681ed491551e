"""The store of results: what it holds, who may write it, and how it is read. No JAX here."""

from scaling.store.columns import COLUMNS, MEASURED, OF_RUN
from scaling.store.layout import (
    DAMAGED,
    FORMAT,
    OPEN,
    PLANNED,
    RUN_ID,
    SEGMENT,
    SWEEP_NAME,
    Status,
    SweepMember,
    SweepRecord,
)
from scaling.store.store import Store

__all__ = [
    "COLUMNS", "DAMAGED", "FORMAT", "MEASURED", "OF_RUN", "OPEN", "PLANNED", "RUN_ID", "SEGMENT", "SWEEP_NAME",
    "Status", "Store", "SweepMember", "SweepRecord",
]  # fmt: skip
