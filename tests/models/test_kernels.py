"""Flash attention of accelerators against the reference: splash interpreted here, cuDNN only as far as its call.

cuDNN runs on GPUs alone; benchmarks/gpu.py holds its values to the reference there.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from scaling import config
from scaling.config import families
from scaling.models.ops import attention, kernels
from scaling.training import programs
from tests import conftest
from tests.models import small

HOPPER, AMPERE, TPU = kernels.Chip("cuda", 9.0), kernels.Chip("cuda", 8.0), kernels.Chip("tpu")
interpreted = functools.partial(kernels.splash, interpret=True)


def inputs(groups: int, time: int, size: int, dtype: str = "float32", heads: int = 2) -> tuple[jax.Array, ...]:
    """Queries, keys, values and the gradient of what they give."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (heads, groups, groups, heads)
    return tuple(jax.random.normal(k, (2, time, n, size), dtype) for k, n in zip(keys, shapes, strict=True))


def reference(query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float, causal: bool) -> jax.Array:
    return attention.attention(query, key, value, scale=scale, bias=None, causal=causal)


def with_gradients(function: Callable[..., jax.Array], causal: bool = True) -> Callable[..., Any]:
    """The result for queries, keys and values, and their gradients from that of the result."""

    def both(query: jax.Array, key: jax.Array, value: jax.Array, upstream: jax.Array) -> Any:
        result, pull = jax.vjp(functools.partial(function, scale=0.2, causal=causal), query, key, value)
        return result, *pull(upstream)

    return both


@pytest.mark.parametrize(
    ("groups", "time", "size", "dtype", "causal"),
    [
        (2, 256, 64, "float32", True),
        (2, 256, 64, "float32", False),
        (1, 128, 40, "float32", True),  # filled up to 64
        (1, 256, 64, "bfloat16", True),
    ],
)
def test_splash_is_the_reference(groups: int, time: int, size: int, dtype: str, causal: bool) -> None:
    """float32 up to the order of sums, in which splash's running maximum rescales; bfloat16, of whose 2⁻⁸ a few

    roundings add up, no further from the exact result than twice the reference is."""
    arrays = inputs(groups, time, size, dtype)
    found = small.jit(with_gradients(interpreted, causal))(*arrays)
    plain = small.jit(with_gradients(reference, causal))
    exact, near = plain(*(x.astype(jnp.float32) for x in arrays)), plain(*arrays)
    for one, other, rounded in zip(found, exact, near, strict=True):
        assert one.dtype == dtype
        error, allowed = jnp.linalg.norm(one - other), jnp.linalg.norm(rounded - other)
        assert error <= max(2 * allowed, 2e-6 * jnp.linalg.norm(other))


def test_splash_of_a_pack_is_that_of_its_members() -> None:
    arrays = tuple(jnp.stack([x, x[::-1]]) for x in inputs(1, 128, 64))
    together = small.jit(jax.vmap(with_gradients(interpreted)))(*arrays)
    plain = small.jit(with_gradients(reference))
    for member in range(2):
        alone = plain(*(x[member] for x in arrays))
        for one, other in zip(together, alone, strict=True):  # up to the order of float32 sums
            np.testing.assert_allclose(one[member], other, rtol=1e-4, atol=1e-5)


def test_each_device_attends_to_its_own_heads_and_sequences() -> None:
    """Four devices, heads and groups split or, where two groups do not split by four, whole."""
    code = (
        "import functools, jax, numpy as np\nfrom scaling import config\nfrom scaling.training import mesh\n"
        "from scaling.models.ops import kernels\n"
        "from tests.models import test_kernels as t\n"
        "for settings in ({'fsdp': 2, 'tensor': 2}, {'tensor': 4}):\n"
        "    layout = functools.partial(mesh.sharding, mesh.make(config.Mesh(**settings)))\n"
        "    arrays = t.inputs(2, 128, 64, heads=4)\n"
        "    def split(*x, **how): return kernels.on_each_device("
        "functools.partial(t.interpreted, **how), layout, *x)\n"
        "    placed = [jax.device_put(x, layout(x.shape, ('batch', None, 'heads', None))) for x in arrays]\n"
        "    found = jax.jit(t.with_gradients(split))(*placed)\n"
        "    print([int(x.sharding.shard_shape(x.shape)[a]) for x in found[:2] for a in (0, 2)])\n"
        "    for one, other in zip(found, jax.jit(t.with_gradients(t.reference))(*arrays)):\n"
        "        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)\n"
    )
    flags = f"--xla_force_host_platform_device_count=4 {conftest.FAST_COMPILE}"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0] == "[1, 2, 1, 2]"  # of two sequences one, of four heads two


@pytest.fixture
def cudnn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX asks the library for its version even where it only writes the program."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)


@pytest.mark.usefixtures("cudnn_is_found")
@pytest.mark.parametrize("chip", [HOPPER, TPU], ids=["cuda", "tpu"])
def test_a_model_on_an_accelerator_calls_its_kernel_and_holds_no_scores(chip: kernels.Chip) -> None:
    """The program of the gradient of a pack of three for another platform, in bfloat16.

    Under "dots" the kernel's results are kept, and it runs forward once.
    """
    model = families.Transformer.gpt2(128, 2, 2)
    attend = kernels.Attend("auto", chip)
    create = functools.partial(small.create, model, context=256, compute_dtype="bfloat16", layers="scan", remat="dots")
    texts = []
    for how in (attend, kernels.Attend("xla")):
        graph, state = nnx.split(nnx.eval_shape(functools.partial(create, attend=how)))

        def total(state: Any, tokens: jax.Array, graph: Any = graph) -> jax.Array:
            return jnp.square(nnx.merge(graph, state)(tokens)).mean()

        shapes = state, jax.ShapeDtypeStruct((4, 256), jnp.int32)
        pack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), shapes)
        traced = jax.jit(jax.vmap(jax.grad(total))).trace(*pack)
        texts.append(traced.lower(lowering_platforms=(chip.platform,)).as_text())
    kernel, plain = texts
    calls = {"cuda": {"@__cudnn$fmhaSoftmax": 2, "@__cudnn$fmhaSoftmaxBackward": 1}, "tpu": {"@tpu_custom_call": 3}}
    for call, number in calls[chip.platform].items():  # one forward; backward one of cuDNN, two of splash
        assert kernel.count(call) == number
    scores = f"x{attention.BLOCK}x256xf32"  # of the last block of queries
    assert scores in plain
    assert scores not in kernel
    assert "x256x256x" not in kernel.replace("256x256xi1", "")


SERVED: list[tuple[str, kernels.Chip, dict[str, Any], str]] = [
    ("auto", kernels.Chip("cpu"), {}, "xla"),
    ("auto", kernels.Chip("rocm"), {}, "xla"),
    ("auto", HOPPER, {}, "cudnn"),
    ("auto", HOPPER, {"dtype": "float32"}, "xla"),
    ("auto", HOPPER, {"biased": True}, "xla"),
    ("auto", HOPPER, {"head_size": 256}, "cudnn"),
    ("auto", AMPERE, {"head_size": 256}, "xla"),
    ("auto", kernels.Chip("cuda", 7.5), {}, "xla"),
    ("auto", TPU, {"dtype": "float32"}, "splash"),
    ("auto", TPU, {"context": 1000}, "xla"),
    ("auto", TPU, {"biased": True}, "xla"),
    ("xla", HOPPER, {}, "xla"),
    ("cudnn", AMPERE, {}, "cudnn"),
    ("splash", TPU, {}, "splash"),
]


@pytest.mark.parametrize(("name", "chip", "changes", "expected"), SERVED)
def test_what_serves(name: Any, chip: kernels.Chip, changes: dict[str, Any], expected: str) -> None:
    case = {"context": 1024, "head_size": 64, "dtype": "bfloat16", "biased": False, **changes}
    assert kernels.Attend(name, chip).chosen(**case) == expected


REFUSED: list[tuple[str, kernels.Chip, dict[str, Any], str]] = [
    ("cudnn", kernels.Chip("cpu"), {}, 'attention "cudnn" needs an NVIDIA GPU and the platform is cpu; use "xla"'),
    ("splash", HOPPER, {}, 'attention "splash" needs a TPU and the platform is cuda; use "xla"'),
    ("cudnn", HOPPER, {"dtype": "float32"}, 'not float32; use "xla", or precision.compute "bfloat16"'),
    ("cudnn", HOPPER, {"head_size": 60}, "multiple of 8 up to 256, not 60"),
    ("cudnn", AMPERE, {"head_size": 160}, "multiple of 8 up to 128, not 160"),
    ("cudnn", kernels.Chip("cuda", 7.5), {}, "compute capability 8.0 and the GPU has 7.5"),
    ("cudnn", HOPPER, {"biased": True}, "no bias to the scores, which ALiBi positions need"),
    ("splash", TPU, {"biased": True}, "no bias to the scores, which ALiBi positions need"),
    ("splash", TPU, {"context": 192}, "multiple of 128, not 192"),
]


@pytest.mark.parametrize(("name", "chip", "changes", "message"), REFUSED)
def test_what_cannot_be_served_is_refused(name: Any, chip: kernels.Chip, changes: dict[str, Any], message: str) -> None:
    case = {"context": 1024, "head_size": 64, "dtype": "bfloat16", "biased": False, **changes}
    with pytest.raises(ValueError, match=message):
        kernels.Attend(name, chip).chosen(**case)


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_a_run_that_asks_for_a_kernel_of_another_chip_is_refused(
    tiny: Callable[..., config.Run], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(ValueError, match=rf'execution.attention "{name}" needs .* the platform is cpu; use "xla"'):
        programs.program(tiny(), config.Execution(attention=name))


def test_here_the_reference_attends() -> None:
    assert kernels.Attend("auto", kernels.Chip.of(jax.devices()[0])).chosen(256, 64, "bfloat16", False) == "xla"
