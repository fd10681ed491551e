"""The kind of an error that ended a training, by which `endings` decides whether to try the run again."""

import typing
from typing import Literal

from scaling.storage import retry
from scaling.training import processes

Kind = Literal["infrastructure", "out_of_memory", "bug"]

# Status codes of absl, with which XLA begins an error about a peer, a network or a device that is gone.
GONE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "DATA_LOSS")
# Words of the libraries for collectives in an INTERNAL or UNKNOWN error of XLA.
COLLECTIVE = ("gloo", "nccl", "connection reset", "connection closed", "socket", "peer")


def kind(error: BaseException) -> Kind:
    """The kind of an error that ended a training."""
    if isinstance(error, processes.PartedError):
        return typing.cast(Kind, error.kind)
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if retry.is_transient(error):
        return "infrastructure"
    if type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError"):
        code, _, said = str(error).partition(":")
        if code == "RESOURCE_EXHAUSTED":
            return "out_of_memory"
        if code in GONE or (code in ("INTERNAL", "UNKNOWN") and any(word in said.lower() for word in COLLECTIVE)):
            return "infrastructure"
    cause = error.__cause__ or error.__context__
    return "bug" if cause is None else kind(cause)
