"""Where the time of a training step goes: its plain matmuls and its attention timed alone, in either library.

The rest of a step (norms, activation, loss, optimizer, and what arrays cost that are no longer in the cache) is what
remains. The matmuls alone are the ceiling: no step of these shapes is faster on this library.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 0.1  # of timing each product
CALLS = 3  # of each product at least; the median counts


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Seconds of one step in one library, and of its parts alone; exact FLOPs of the matmuls."""

    step: float
    matmuls: float
    attention: float
    matmul_flops: float

    @property
    def rest(self) -> float:
        """The share of the step that is neither: below zero where parts alone take longer than within the step."""
        return 1.0 - (self.matmuls + self.attention) / self.step


def products(spec: Mapping[str, Any], fused: bool) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how often) of a step's products with weights; `fused`: queries, keys and values by one."""
    width, depth = spec["width"], spec["depth"]
    projections = [(width, 3 * width, depth), (width, width, depth)] if fused else [(width, width, 4 * depth)]
    return [
        *projections,
        (width, 4 * width, depth),
        (4 * width, width, depth),
        (width, spec["vocabulary"], 1),
    ]


def matmul_flops(spec: Mapping[str, Any]) -> float:
    """FLOPs of all products of a step with weights: forward, for the inputs' gradient and for the weights'."""
    rows = spec["batch"] * spec["context"]
    return sum(6.0 * rows * inputs * outputs * times for inputs, outputs, times in products(spec, fused=True))


def anatomy(spec: Mapping[str, Any], tokens_per_second: float, parts: Mapping[str, float]) -> Anatomy:
    """From the speed of a contender's step and what its library said of the parts alone."""
    step = spec["batch"] * spec["context"] / tokens_per_second
    return Anatomy(step, parts["matmul_seconds"], parts["attention_seconds"], matmul_flops(spec))


def table(rows: Sequence[tuple[str, int, Anatomy, Anatomy]], peak: float) -> str:
    """Lines: size and context down; for ours and for PyTorch the matmuls' speed alone and the shares of a step."""
    head = f"{'step ms':>9} {'matmuls alone':>20} {'matmuls':>8} {'attention':>9} {'rest':>5}"
    lines = [f"{'':>14} | {'ours':^55} | {'PyTorch, the faster':^55}", f"{'size':>6} {'context':>7} | {head} | {head}"]
    for name, context, *both in rows:
        cells = []
        for one in both:
            speed = one.matmul_flops / one.matmuls
            alone = f"{speed / 1e9:.0f} GFLOP/s ({speed / peak:.0%})"
            cells.append(
                f"{1e3 * one.step:>9.1f} {alone:>20} {one.matmuls / one.step:>8.0%} {one.attention / one.step:>9.0%} "
                f"{one.rest:>5.0%}"
            )
        lines.append(f"{name:>6} {context:>7} | {cells[0]} | {cells[1]}")
    return "\n".join(lines)
