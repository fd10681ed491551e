"""Properties that every family and option must have: causality, one tree, one function whatever way it runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling import counting, parametrization
from scaling.config import families
from scaling.models import initialisation
from scaling.models.ops import products
from tests.models import small


def names_and_shapes(parameters: Any) -> dict[str, tuple[int, ...]]:
    return {".".join(path): value.shape for path, value in nnx.to_flat_state(parameters)}


@small.every_family
def test_no_position_sees_a_later_token(family: families.Family) -> None:
    graph, parameters = small.split(small.create(family))
    tokens = jnp.arange(small.CONTEXT)[None]  # each position its own row of the embedding, whose last rows are unused
    direction = jax.random.normal(jax.random.key(1), (family.width,))

    def outputs(parameters: Any) -> jax.Array:
        return nnx.merge(graph, parameters).features(tokens)[0] @ direction

    influence = small.jit(lambda parameters: jax.jacrev(outputs)(parameters)["embedding"][...])(parameters)
    influence = np.abs(influence).max(axis=-1)[:, : small.CONTEXT]
    assert np.all(influence[np.triu_indices(small.CONTEXT, k=1)] == 0.0)
    assert np.all(influence[np.tril_indices(small.CONTEXT)] > 0.0)


@small.every_family
def test_the_tree_is_the_table_of_weights(family: families.Family) -> None:
    model = nnx.eval_shape(lambda: small.create(family, parameter_dtype="bfloat16"))
    parameters = nnx.state(model, nnx.Param)
    table = family.weights(small.VOCABULARY, small.CONTEXT)
    assert names_and_shapes(parameters) == {weight.name: weight.full_shape for weight in table}
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(parameters))
    held = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert held == counting.params(family, small.VOCABULARY, small.CONTEXT)


@pytest.mark.parametrize("name", ["gpt2", "lstm"])
def test_the_model_is_the_same_however_it_is_run(name: str) -> None:
    family = small.FAMILIES[name]
    results = {}
    for way in ("unroll none", "scan none", "scan full", "unroll dots"):
        mode, remat = way.split()
        graph, parameters = small.split(small.create(family, layers=mode, remat=remat))
        gradient = small.jit(jax.value_and_grad(functools.partial(small.loss, graph)))
        results[way] = gradient(parameters, small.tokens())
    base = jax.tree.leaves(results.pop("unroll none"))
    assert base[0] > 0.5 * np.log(small.VOCABULARY)
    assert all(jnp.any(leaf != 0.0) for leaf in base)  # every parameter takes part
    for way, result in results.items():
        for one, other in zip(base, jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6, err_msg=way)


@pytest.mark.parametrize(("inputs", "outputs", "barriers"), [(8, 4, 1), (4, 8, 0), (8, 8, 0)])
def test_the_gradient_of_a_product_is_the_same_in_every_order(inputs: int, outputs: int, barriers: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (16, inputs), (inputs, outputs), (16, outputs)
    x, weight, upstream = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))

    def pulled(product: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., Any]:
        return jax.jit(lambda x, weight, upstream: jax.vjp(product, x, weight)[1](upstream))

    ours, plain = pulled(products.product), pulled(jnp.matmul)
    for one, other in zip(ours(x, weight, upstream), plain(x, weight, upstream), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)  # sums of float32 in another order
    traced = ours.trace(x, weight, upstream)
    # Accelerators multiply transposed matrices at full speed, and are left to do so.
    for platform, count in (("cpu", barriers), ("cuda", 0)):
        assert traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier") == count


def test_epsilon_is_that_of_every_norm() -> None:
    model = small.create(families.Transformer.modern(16, 2, 2).edit({"epsilon": 0.5}))
    attention = model.layers.attention
    norms = (model.norm, model.layers.mlp_norm, model.layers.attention_norm, attention.query_norm, attention.key_norm)
    assert [norm.epsilon for norm in norms] == [0.5] * 5
    x = jnp.arange(4.0)[None]
    np.testing.assert_allclose(model.norm.ops.norm(x, jnp.ones(4), False, 0.5), x / np.sqrt(3.5 + 0.5), rtol=1e-6)


def test_layers_scanned_are_a_loop_in_the_program() -> None:
    family = small.FAMILIES["gpt2"]
    for mode, loops in (("scan", 1), ("unroll", 0)):
        graph, parameters = small.split(small.create(family, layers=mode))
        program = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(small.tokens()))(parameters)  # noqa: B023
        assert sum(str(equation.primitive) == "scan" for equation in program.eqns) == loops


def test_values_depend_on_seed_name_and_layer_alone() -> None:
    shallow = small.create(families.Transformer.gpt2(16, 2, 2), seed=3)
    deep = small.create(families.Transformer.modern(16, 4, 2), seed=jax.random.key(3), layers="scan", remat="full")
    other = small.create(families.Transformer.gpt2(16, 2, 2), seed=4)
    query = shallow.layers.attention.query[...]
    np.testing.assert_allclose(query, deep.layers.attention.query[:2], rtol=1e-6)
    assert not np.array_equal(query[0], query[1])
    assert not np.array_equal(query, shallow.layers.attention.key[...])
    assert not np.array_equal(query, other.layers.attention.query[...])


def test_initial_values_are_normal_of_the_stated_size() -> None:
    family = families.Transformer.gpt2(64, 3, 4)
    rules = parametrization.Standard()
    model = small.create(family, vocabulary_size=300, context=50, parametrization=rules)
    state = {".".join(path): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for weight in family.weights(300, 50):
        values = state[weight.name]
        if weight.role == "vector":
            assert np.all(values == weight.fill), weight.name
            continue
        for layer in values if weight.stack else (values,):
            scaled = layer / rules.init_std(weight, family)
            deviations = 5 / np.sqrt(scaled.size)
            assert abs(scaled.mean()) < deviations, weight.name
            assert abs((scaled**2).mean() - 1) < 1.5 * deviations, weight.name
            assert abs((scaled**4).mean() - 3) < 10 * deviations, weight.name


def test_weights_drawn_one_by_one_are_those_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = small.FAMILIES["lstm"].weights(200, 8)
    drawn = tuple(weight for weight in weights if weight.role != "vector")
    together = initialisation.normal(jax.random.key(0), drawn, (1.0,) * len(drawn))
    monkeypatch.setattr(initialisation, "_DRAWN_TOGETHER", 0)
    alone = initialisation.normal.__wrapped__(jax.random.key(0), drawn, (1.0,) * len(drawn))
    for name, values in together.items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["grouped keys, rotary", "lstm"])
def test_bfloat16_computes_near_float32_and_stores_float32(name: str) -> None:
    results = {}
    for dtype in ("float32", "bfloat16"):
        graph, parameters = small.split(small.create(small.FAMILIES[name], compute_dtype=dtype))
        features, logits = jax.eval_shape(lambda p: _features_and_logits(graph, p), parameters)  # noqa: B023
        assert (features.dtype, logits.dtype) == (dtype, jnp.float32)
        gradient = small.jit(jax.value_and_grad(functools.partial(small.loss, graph)))(parameters, small.tokens())
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((parameters, gradient)))
        results[dtype] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
    error = jnp.linalg.norm(results["bfloat16"] - results["float32"]) / jnp.linalg.norm(results["float32"])
    assert 0 < error < 0.05


def _features_and_logits(graph: Any, parameters: Any) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graph, parameters)
    return model.features(small.tokens()), model(small.tokens())


def test_a_tied_head_is_the_embedding() -> None:
    tied = small.create(families.Transformer.modern(16, 2, 2, tied=True))
    untied = small.create(families.Transformer.modern(16, 2, 2, tied=False))
    assert tied.output is None
    untied.output[...] = tied.embedding[...].T
    np.testing.assert_allclose(small.run(tied), small.run(untied), rtol=1e-5, atol=1e-6)


def test_grouped_keys_are_full_keys_with_repeated_weights() -> None:
    grouped = small.FAMILIES["grouped keys, rotary"]
    full = grouped.edit({"kv_heads": None})
    one, other = small.create(grouped), small.create(full)
    for name in ("key", "value"):
        weights = getattr(one.layers.attention, name)[...]
        getattr(other.layers.attention, name)[...] = jnp.repeat(weights, 2, axis=2)
    np.testing.assert_allclose(small.run(one), small.run(other), rtol=1e-4, atol=1e-5)


@small.every_family
def test_a_shorter_sequence_has_the_logits_of_the_longer_ones_start(family: families.Family) -> None:
    graph, parameters = small.split(small.create(family))

    def both(parameters: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, parameters)
        return model(small.tokens()), model(small.tokens()[:, :5])

    longer, shorter = small.jit(both)(parameters)
    np.testing.assert_allclose(longer[:, :5], shorter, rtol=1e-4, atol=1e-5)


def test_a_sequence_beyond_the_learned_positions_is_refused() -> None:
    model = nnx.eval_shape(lambda: small.create(small.FAMILIES["gpt2"]))
    graph, parameters = small.split(model)
    with pytest.raises(ValueError, match=r"9 tokens.*8 learned positions"):
        jax.eval_shape(lambda p: nnx.merge(graph, p)(small.tokens(time=9)), parameters)
