"""Parameters, FLOPs and memory of a run under named conventions, from the config alone: no arrays, no JAX.

Every number comes from the family's table of weights and its `mixing_flops`. A law states which convention it used;
the names below are the columns of a result. Counts are exact integers where they count things, floats where they are
FLOPs.
"""

import functools
import math
from typing import Literal, NamedTuple

from scaling import tables

Remat = Literal["none", "full", "dots"]

# The largest logits, in float32 on one device, that are held whole. Chunks of this size are matmuls of thousands of
# rows at every vocabulary in use, and their weight's gradient, read and written once a chunk, is small beside them.
LOGITS_BYTES = 2**29
CHUNK_WIDTHS = 4


@functools.lru_cache(maxsize=512)
def _weights(model: tables.Family, vocabulary_size: int, context: int) -> tuple[tables.Weight, ...]:
    """The table of a model, made once a size: a plan counts thousands of runs of few sizes."""
    return model.weights(vocabulary_size, context)


def params(model: tables.Family, vocabulary_size: int, context: int) -> int:
    """All parameters: the size of the real parameter tree."""
    return sum(weight.size for weight in _weights(model, vocabulary_size, context))


def params_non_embedding(model: tables.Family, vocabulary_size: int, context: int) -> int:
    """Parameters without token embedding, positions and output matrix (N of Kaplan et al. 2001.08361, section 2.1)."""
    return sum(
        weight.size for weight in _weights(model, vocabulary_size, context) if weight.role in ("hidden", "vector")
    )


def params_with_head(model: tables.Family, vocabulary_size: int, context: int) -> int:
    """params_non_embedding + vocabulary_size · width, whether or not the head is tied to the embedding.

    The head is a matmul a token and so takes part in the compute (Porian et al. 2406.19146, section 3.1).
    """
    return params_non_embedding(model, vocabulary_size, context) + vocabulary_size * model.width


class Matmuls(NamedTuple):
    """FLOPs a token of all matmuls of a model, by pass."""

    forward: float
    head: float  # the part of forward that is the head
    mixing: float  # the part of forward without weights
    backward: float

    @property
    def total(self) -> float:
        """Of a training step."""
        return self.forward + self.backward


def matmuls(model: tables.Family, vocabulary_size: int, context: int, mixing: float) -> Matmuls:
    """FLOPs a token of each pass, where attention takes `mixing` forward.

    A weight takes 2 · size · used forward, as many for its gradient if it learns, and as many for the gradient of its
    input where a weight before it learns, by stage and layer. Attention takes 2 · mixing backward, in the layers whose
    first matmuls, or a weight before those, learn. A tied embedding is also the head, after all others.
    """
    table = _weights(model, vocabulary_size, context)
    lowest = min((weight.stage for weight in table if weight.learns), default=math.inf)
    stacks = {_stack(weight) for weight in table if weight.learns}

    def reached(weight: tables.Weight, below: float) -> int:
        """Layers of a weight in which a weight before it learns."""
        layers = max(weight.stack, 1)
        if lowest < below:
            return layers
        return layers - 1 if weight.stack and _stack(weight) in stacks else 0

    forward = backward = head = 0.0
    first: tables.Weight | None = None  # of the matmuls of a layer
    for weight in table:
        layers, one = max(weight.stack, 1), 2.0 * math.prod(weight.shape) * weight.used
        forward += layers * one
        backward += one * (weight.learns * layers + reached(weight, weight.stage))
        head += one if weight.role == "output" else 0.0
        if weight.used and weight.stack and (first is None or weight.stage < first.stage):
            first = weight
    if model.tied:
        one = 2.0 * vocabulary_size * model.width
        learns = any(weight.learns for weight in table if weight.role == "embedding")
        forward, head, backward = forward + one, head + one, backward + one * (learns + (lowest < math.inf))
    if mixing:
        share = 1.0 if first is None else reached(first, first.stage + 1) / first.stack
        forward, backward = forward + mixing, backward + 2.0 * share * mixing
    return Matmuls(forward, head, mixing, backward)


def _stack(weight: tables.Weight) -> str:
    """The stack of layers that a weight is part of, by the first part of its name; empty for a weight of none."""
    return weight.name.split(".")[0] if weight.stack else ""


def passes(model: tables.Family, vocabulary_size: int, context: int) -> Matmuls:
    """Exact FLOPs a token of each pass, without recomputation, where attention meets only the keys that it must."""
    return matmuls(model, vocabulary_size, context, model.mixing_flops(context))


def flops_per_token(model: tables.Family, vocabulary_size: int, context: int) -> float:
    """Exact training FLOPs a token, with the head, without recomputation.

    Where all weights learn they are 3 · (2 · weights in matmuls + mixing_flops), else see `matmuls`. A decoder's
    attention meets (context + 1) / 2 keys a query: 4 · depth · attention_width · (context + 1) / 2 forward (the causal
    half of the count in Hoffmann et al. 2203.15556, appendix F, and Chowdhery et al. 2204.02311, appendix B). Norms,
    softmax and the optimizer are not counted.
    """
    return passes(model, vocabulary_size, context).total


def flops(model: tables.Family, vocabulary_size: int, context: int, tokens: float) -> float:
    """Exact training FLOPs of a run: flops_per_token · tokens."""
    return flops_per_token(model, vocabulary_size, context) * tokens


def flops_6nd(model: tables.Family, vocabulary_size: int, context: int, tokens: float) -> float:
    """6 · params_non_embedding · tokens (Kaplan et al. 2001.08361, section 2.1)."""
    return 6.0 * params_non_embedding(model, vocabulary_size, context) * tokens


def flops_hardware(
    model: tables.Family, vocabulary_size: int, context: int, tokens: float, remat: Remat = "none"
) -> float:
    """What the device multiplies: the whole attention square, and forward matmuls repeated by remat.

    "full" repeats the layers but for the projection that ends each: the backward pass does not need its result, which
    is only added to the stream. "dots" repeats attention alone. `remat` is `execution.remat`. Laws and MFU use
    `flops`; this count equals the matmuls of the compiled step.
    """
    counted = matmuls(model, vocabulary_size, context, model.mixing_flops_square(context))
    again = counted.mixing if remat == "dots" else 0.0
    if remat == "full":
        ends = [weight.size for weight in _weights(model, vocabulary_size, context) if weight.residual][-1:]
        again = counted.forward - counted.head - 2.0 * sum(ends)
    return (counted.total + again) * tokens


def loss_chunk(
    setting: int | Literal["auto"] | None,
    *,
    tokens: int,
    vocabulary_size: int,
    width: int,
    shards: int = 1,
    members: int = 1,
) -> int | None:
    """Tokens whose logits exist at once in a forward pass of `tokens`, or None for all of them.

    `setting` is `execution.loss_chunk`. "auto" cuts the pass only where the logits of all `members` of a pack are more
    than LOGITS_BYTES on a device, `shards` of which share them, and then into the largest chunks that are not, though
    not into less than CHUNK_WIDTHS · `width` tokens: the gradient of the head is read and written once a chunk, and
    would else cost as much as the logits.
    """
    if setting == "auto":
        setting = shards * max(LOGITS_BYTES // (4 * max(1, vocabulary_size) * members), CHUNK_WIDTHS * width)
    return None if setting is None or setting >= tokens else max(1, setting)


def memory_bytes(
    model: tables.Family,
    vocabulary_size: int,
    context: int,
    *,
    sequences: float,
    state_floats_per_param: float,
    parameter_bytes: int = 4,
    compute_bytes: float = 4,
    remat: Remat = "none",
    accumulated: bool = False,
    scanned: bool = False,
    scores: bool = True,
    logits_chunk: int | None = None,
    members: int = 1,
    parameter_shards: int = 1,
) -> float:
    """Bytes of a training step at its peak on one device: state, gradients, and a forward and backward pass.

    With P parameters, of which a device holds 1/`parameter_shards`, and T tokens of `sequences` sequences on it:

    - state: P parameters, and `state_floats_per_param` · P float32 of the optimizer (AdamW 2), updated in place;
    - gradients: 1.25 P (clipping and the update hold a part of them twice), and P more where microbatches are
      `accumulated`;
    - layers: T · depth · `activation_floats`, half as much again where layers are `scanned`: a loop stacks every
      intermediate that it keeps, where written-out layers recompute the cheap ones within fused kernels. Under remat
      "full" T · (depth · width + `activation_floats` of one layer). "dots" is taken as none, an upper bound;
    - working space: T · `working_floats`, the gradients within the layer that is being differentiated;
    - logits and their gradient: 2.5 · vocabulary in float32 for every token (2 to 2.6 were found: XLA orders them in
      several ways), or for `logits_chunk` of them, which also sums the gradient of the head in float32.

    `compute_bytes` are those of an activation. All of it is there `members` times for a pack. It is compared with
    what XLA compiles and with what a process takes by `benchmarks.memory`.
    """
    total = params(model, vocabulary_size, context) / parameter_shards
    tokens = sequences * context
    layer = model.activation_floats(context, scores)
    kept = model.depth * layer * (1.5 if scanned else 1.0) + model.working_floats(context, scores)
    if remat == "full":
        kept = model.depth * model.width + layer
    head = 0.0 if logits_chunk is None else 4.0 * vocabulary_size * model.width / parameter_shards
    return members * (
        (2.25 + accumulated) * parameter_bytes * total
        + 4.0 * state_floats_per_param * total
        + compute_bytes * tokens * kept
        + 2.5 * 4.0 * min(tokens, logits_chunk or tokens) * vocabulary_size
        + head
    )


def tokens_for_flops(model: tables.Family, vocabulary_size: int, context: int, flops: float, batch_tokens: int) -> int:
    """Tokens, in whole batches, whose exact training FLOPs come closest to a budget.

    Raises ValueError where the budget does not buy one batch.
    """
    one_batch = flops_per_token(model, vocabulary_size, context) * batch_tokens
    if not math.isfinite(flops) or flops < one_batch:
        raise ValueError(
            f"{flops:.3g} FLOPs buy less than one batch of {batch_tokens} tokens, which costs {one_batch:.3g}; "
            "raise the budget, or take a smaller model or batch"
        )
    return round(flops / one_batch) * batch_tokens
