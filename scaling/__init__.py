"""Train things: configs, planner, models, data, training loop, store and launchers of scaling-law sweeps.

Importing this package starts no backend and imports no JAX. `analysis` may import `scaling.store.store` and
`scaling.counting`; nothing here but the command line imports `analysis`.
"""
