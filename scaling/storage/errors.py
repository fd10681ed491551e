"""What reading data and stores raises: each message gives the value, the rule it breaks and the remedy."""

import errno


class DataError(ValueError):
    """The data cannot serve this config as it stands: empty, too short, unreadable, or in a form we cannot read."""


class MissingDataError(FileNotFoundError):
    """A dataset or file that the config names is not there."""


class DiskSpaceError(OSError):
    """The disk has less room than the cache needs."""

    errno = errno.ENOSPC  # as of any full disk, which workers wait for


class UnreadableError(ValueError):
    """A file of a store is damaged, missing from a run, or written by another version: it cannot be read here."""


class OtherVersionError(UnreadableError):
    """A file of a store is of another version, which this one must not clean up after."""
