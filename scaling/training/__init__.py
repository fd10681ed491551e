"""Trains a pack of runs from their configs to their outcomes."""
