"""Launchers: each only starts workers on machines; the store alone coordinates them. Nothing here imports JAX."""

from typing import Literal

Kind = Literal["local", "slurm", "ray", "tpu"]
