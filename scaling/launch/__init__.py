"""Launchers: each only starts workers on machines; the store alone coordinates them. Nothing here imports JAX."""
