"""Results of an earlier commit, kept: proof that a change of the code changes no run's name and no number.

`python -m tests.goldens record FILE` and `… compare FILE` (see `__main__`); `ids.json`, `store` and
`continued.json` are tested by `tests/test_goldens.py`.
"""
