"""What a family is refused for before it trains: parameters that are not its table's, and features of the future."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling import models, parametrization, tables

# A shrunken copy is checked: its context has several blocks of attention and is cheap.
WIDTH, DEPTH, HEADS, VOCABULARY, CONTEXT = 16, 1, 2, 16, 96
ROUNDING = 1e-4  # of the features' root mean square: what a Fourier transform may carry back in time by rounding


def check_parameters(module: Any, family: tables.Family, table: Iterable[tables.Weight]) -> None:
    """Raises ValueError for a weight that is declared and not used, used and not declared, or of another shape."""
    weights = {weight.name: weight for weight in table}
    held = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(nnx.state(module))}
    name = type(family).__name__
    for unused in [weight for weight in weights if weight not in held]:
        raise ValueError(
            f"{name}.weights declares {unused!r} and the module does not hold it; set it in the module, "
            f'"{unused.replace(".", ": ")}" by builder.param, or take it out of the table'
        )
    for unknown in [path for path in held if path not in weights]:
        raise ValueError(
            f"the module of {name} holds {unknown!r}, which {name}.weights does not declare; add a Weight of this name "
            "to the table and make it with builder.param"
        )
    for path, value in held.items():
        if value.shape != weights[path].full_shape:
            raise ValueError(
                f"the module of {name} holds {path!r} in shape {value.shape} and {name}.weights declares "
                f"{weights[path].full_shape}; keep the array that builder.param gives"
            )


def check_causal(family: tables.Family, context: int, compiler_options: Mapping[str, Any]) -> None:
    """Raises ValueError where a position of a family's features depends on a later token.

    Later tokens are changed and earlier features compared, in a copy of the family of width 16, one layer and at most
    96 positions, or in the family itself where its rules forbid that size. It is done once a process for each form of a
    family and takes 0.2 to 0.5 s of a CPU, for large models too: to trace and compile the copy.
    """
    _check_causal(_shrunken(family), min(context, CONTEXT), tuple(sorted(compiler_options.items())))


def _shrunken(family: tables.Family) -> tables.Family:
    try:
        return family.resize(WIDTH, DEPTH, HEADS)
    except pydantic.ValidationError:  # a rule of the family ties its size to other fields
        return family


@functools.cache
def _check_causal(family: tables.Family, context: int, compiler_options: tuple[tuple[str, Any], ...]) -> None:
    module = nnx.eval_shape(
        lambda: models.create(
            family, vocabulary_size=VOCABULARY, context=context, parametrization=parametrization.Standard(),
            compute_dtype="float32", parameter_dtype="float32", layers="unroll", remat="none", seed=jax.random.key(0),
        )
    )  # fmt: skip
    random = np.random.default_rng(0)
    graph, state = nnx.split(module)
    # Also what begins at zero takes part.
    values = {
        weight.name: weight.fill + random.standard_normal(weight.full_shape, np.float32) / np.sqrt(weight.fan_in)
        for weight in family.weights(VOCABULARY, context)
    }
    state = nnx.from_flat_state({path: values[".".join(path)] for path, _ in nnx.to_flat_state(state)})

    @functools.partial(jax.jit, compiler_options=dict(compiler_options))
    def features(state: Any, tokens: Int[Array, "batch context"]) -> Float[Array, "batch context width"]:
        return nnx.merge(graph, state).features(tokens)

    tokens = random.integers(0, VOCABULARY, (1, context))
    with jax.default_device(jax.local_devices()[0]):
        before = np.asarray(features(state, tokens))
        for position in sorted({1, context // 3, 2 * context // 3, context - 1} - {0, context}):
            changed = tokens.copy()
            changed[:, position:] = (changed[:, position:] + 1 + random.integers(0, VOCABULARY - 1)) % VOCABULARY
            difference = np.abs(np.asarray(features(state, changed)) - before)[:, :position].max(axis=(0, 2))
            if difference.max() > ROUNDING * np.sqrt(np.mean(np.square(before))):
                first = int(np.argmax(difference > 0))
                raise ValueError(
                    f"{type(family).__name__} is not causal: in a sequence of {context} tokens its features "
                    f"at position {first} change with the tokens from position {position} on, which they are to "
                    "predict; mask what mixes over time, or set causal = False and take a task that may see them"
                )
