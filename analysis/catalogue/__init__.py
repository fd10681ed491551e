"""The laws that ship with the analysis, a file a subject; `analysis.laws.LAWS` collects them by name.

A module here holds plain functions and the `Law`s made of them, and imports `analysis.forms` only. Whatever `Law` a
module defines at its top level is in `LAWS`.
"""
