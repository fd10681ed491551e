"""The store of results: what it holds, who may write it, and how it is read. No JAX here."""

from scaling.store.columns import COLUMNS
from scaling.store.layout import DAMAGED, FORMAT, OPEN, SweepMember
from scaling.store.store import Store

__all__ = ["COLUMNS", "DAMAGED", "FORMAT", "OPEN", "Store", "SweepMember"]
