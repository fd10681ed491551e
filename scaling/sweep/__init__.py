"""Sweeps: the algebra of grids, the plan, learning-rate tuning, the store of results and the worker that fills it.

Nothing here imports JAX but the worker. `analysis` may import `store`.
"""
