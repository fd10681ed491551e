"""Runnable comparisons, never part of the tests: what they measure is printed with the machine that it was measured on.

`train_step` sets our training step beside an equal GPT-2 in PyTorch. It may import `scaling`; nothing imports it but a
test of its pure parts. `gpt2_torch` imports nothing of ours, so that it runs where PyTorch is and JAX is not.
"""
