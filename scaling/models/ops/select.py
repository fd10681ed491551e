"""Which implementation of each operation a device gets, chosen once when a model is built."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxtyping import Array

from scaling.models.ops import kernels, lean, plain


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations whose best form depends on the device; each means the same on all of them.

    `norm(x, scale, centred, epsilon)`, `gelu(x)`, `rows(table, indices)`, and `split(stack, depth)` compute what
    `plain` says. `in_rows` and `apart` give x itself: `in_rows` fixes its layout in memory, and `apart` keeps the
    product that gives it from being fused with the sum that takes it.
    """

    norm: Callable[[Array, Array, bool, float], Array] = plain.norm
    gelu: Callable[[Array], Array] = plain.gelu
    rows: Callable[[Array, Array], Array] = plain.rows
    split: Callable[[Array, int], Sequence[Array]] = plain.split
    in_rows: Callable[[Array], Array] = plain.same
    apart: Callable[[Array], Array] = plain.same


PLAIN = Ops()
NARROW_ON_CUDA = Ops(gelu=lean.gelu, rows=lean.rows, in_rows=lean.in_rows)
WIDE_ON_CUDA = dataclasses.replace(NARROW_ON_CUDA, norm=lean.norm, split=lean.split, apart=lean.apart)


def for_device(chip: kernels.Chip, width: int) -> Ops:
    """The operations of a model of some width on a chip."""
    if chip.platform != "cuda":
        return PLAIN
    return WIDE_ON_CUDA if width >= lean.WIDE else NARROW_ON_CUDA
