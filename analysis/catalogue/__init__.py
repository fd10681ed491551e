"""The laws that ship with the analysis, a file a subject; `analysis.laws.LAWS` collects them by name.

A module here holds plain functions and the `Law`s made of them, and imports `analysis.forms` only (and `starting`, what
their starting rules share). Whatever `Law` a module of `laws.SUBJECTS` defines at its top level is in `LAWS`.
"""
