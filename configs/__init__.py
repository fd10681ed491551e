"""Sweeps that a person starts from: each file defines `sweep()`, which returns a `scaling.config.Sweep`."""
