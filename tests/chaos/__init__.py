"""Sweeps whose workers are killed, stopped, paused and left without a disk: `python -m tests.chaos`."""
