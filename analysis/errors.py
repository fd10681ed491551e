"""The one error type with which the analysis refuses what would make a worthless law."""


class Refused(ValueError):  # noqa: N818  (an answer, not an accident: the data cannot carry what was asked)
    """The data cannot support the fit that was asked for; the message names the value, the rule and the remedy."""
