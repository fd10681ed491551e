"""What the subcommands of `scaling` do: they join the planner, the store, the launcher and the analysis.

Only `scaling.cli` imports this package. It is the only one in `scaling` that imports `analysis`.
"""
