"""The coordinate check (Yang et al. 2203.03466, appendix D.1): what a few steps change must not depend on size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from scaling import parametrization
from scaling.config import families
from scaling.models import stacking
from tests.models import small

STEPS = 4
RATE = 2e-2
WIDTHS = (32, 256)
DEPTHS = (2, 16)
BASE = families.Transformer(
    width=32, depth=2, heads=2, norm="rmsnorm", position="none", mlp="gelu", biases=True, qk_norm=False
)
MUP = parametrization.MuP(base_width=32, base_depth=2, base_head_size=16)


@functools.cache  # the smallest model is the same of both tests
def changes(family: families.Family, rules: parametrization.Parametrization) -> dict[str, float]:
    """Root mean square of what `STEPS` steps of Adam change in each coordinate of the stream and of the logits."""
    table = {weight.name: weight for weight in family.weights(small.VOCABULARY, small.CONTEXT)}
    rates = {name: RATE * rules.learning_rate_multiplier(weight, family) for name, weight in table.items()}
    graph = nnx.graphdef(nnx.eval_shape(lambda: small.create(family, parametrization=rules, layers="scan")))
    adam = optax.scale_by_adam(eps=1e-12)
    tokens = small.tokens(batch=4)

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = small.create(family, parametrization=rules, layers="scan", seed=key)
        start = nnx.state(model, nnx.Param)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            parameters, state = carry
            direction, state = adam.update(jax.grad(lambda p: small.loss(graph, p, tokens))(parameters), state)
            paths, structure = jax.tree_util.tree_flatten_with_path(direction)
            scaled = [-rates[".".join(key.key for key in path[:-1])] * leaf for path, leaf in paths]
            return (optax.apply_updates(parameters, jax.tree.unflatten(structure, scaled)), state), None

        (end, _), _ = jax.lax.scan(step, (start, adam.init(start)), None, STEPS)
        before, after = measure(start), measure(end)
        return tuple(jnp.square(b - a).mean() for a, b in zip(before, after, strict=True))

    def measure(parameters: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, parameters)
        stream = stacking.apply_layers(
            model.layers, model.embedder(tokens), None, None, depth=family.depth, layers="scan", remat="none"
        )
        return stream, model(tokens)

    squares = [small.jit(run)(jax.random.key(seed)) for seed in range(2)]
    stream, logits = np.sqrt(np.mean(squares, axis=0))
    return {"stream": float(stream), "logits": float(logits)}


def slopes(sizes: tuple[int, ...], models: list[families.Family], rules: Any) -> dict[str, float]:
    """Exponent of each change in the size."""
    rows = [changes(model, rules) for model in models]
    return {name: float(np.polyfit(np.log(sizes), np.log([row[name] for row in rows]), 1)[0]) for name in rows[0]}


def wide() -> list[families.Family]:
    return [BASE.resize(width, 2, width // 16) for width in WIDTHS]


def deep() -> list[families.Family]:
    return [BASE.resize(32, depth, 2) for depth in DEPTHS]


@pytest.mark.parametrize(("sizes", "models"), [(WIDTHS, wide()), (DEPTHS, deep())], ids=["width", "depth"])
def test_mup_changes_every_size_alike_and_standard_does_not(sizes: tuple[int, ...], models: Any) -> None:
    mup, standard = slopes(sizes, models, MUP), slopes(sizes, models, parametrization.Standard())
    assert all(abs(slope) < 0.1 for slope in mup.values()), mup
    assert max(standard.values()) > 0.3, standard
