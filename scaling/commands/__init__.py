"""What the subcommands of `scaling` do: they join the planner, the store, the launcher and the analysis.

Only `scaling.cli` imports this room. It is the only one in `scaling` that imports `analysis`.
"""
