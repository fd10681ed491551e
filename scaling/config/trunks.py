"""Runs that begin alike share a trunk: trained once at the constant rate, it is the start of every branch. No JAX here.

Runs that differ only in how long they are, and whose schedule does not depend on that until the cooldown (`wsd`), are
the same run up to the cooldown of the shortest (Hägele et al. 2405.18392, section 4). A branch restores the trunk at
its own `branch_step` and cools down; its result is that of the whole run, whose name and cost it keeps.
"""

import collections
from collections.abc import Sequence

from scaling import config


def branch_step(run: config.Run) -> int:
    """Steps that a run has in common with a longer one; 0 where its schedule follows its length from the start."""
    return run.schedule.branch_step(run.steps, run.batch_tokens)


def own_trunk(run: config.Run) -> config.Run | None:
    """The run at the constant rate that `run` is until its cooldown, or None where it has no such part."""
    steps = branch_step(run)
    warmup = run.schedule.warmup_steps(run.steps, run.batch_tokens)
    if steps <= warmup:
        return None
    held = {"kind": "constant", "warmup": {"kind": "tokens", "tokens": warmup * run.batch_tokens}}
    return run.edit({"schedule": held, "tokens": steps * run.batch_tokens})


def of(runs: Sequence[config.Run]) -> dict[config.Run, tuple[config.Run, ...]]:
    """Each trunk that serves runs of two lengths or more, with its branches; other runs are trained alone."""
    groups: dict[str, list[tuple[config.Run, config.Run]]] = collections.defaultdict(list)
    for run in runs:
        own = own_trunk(run)
        if own is not None:
            groups[own.model_dump_json(exclude={"tokens"})].append((own, run))
    branches = {}
    for pairs in groups.values():
        if len({run.tokens for _, run in pairs}) > 1:
            longest = max((own for own, _ in pairs), key=lambda own: own.tokens)
            branches[longest] = tuple(run for _, run in pairs)
    return branches
