"""Flash attention of accelerators behind the seam of `attention`: cuDNN on NVIDIA GPUs, splash on TPUs.

An implementation is chosen where a model is traced, since shapes and dtypes are known there. Kernels are not split
over devices by the compiler, so each device runs them on its own heads and sequences.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scaling.models.ops import attention

Name = Literal["auto", "xla", "cudnn", "splash"]
# The sharding of an array over the mesh from its shape and what each dimension means.
Layout = Callable[[tuple[int, ...], tuple[str | None, ...]], jax.sharding.NamedSharding]

LANES = 128  # of a TPU's vector unit: blocks of the sequence are multiples of it
BLOCKS = (512, 256, 128)  # queries and keys of a tile of splash; the largest that divides the context
PRIMITIVES = ("dot_product_attention_fwd_wrapper", "pallas_call")  # JAX's names of the kernels' forward passes


@dataclasses.dataclass(frozen=True)
class Chip:
    """What decides which kernels a device has: `platform` is cpu, cuda, rocm or tpu, `capability` that of CUDA."""

    platform: str
    capability: float = 0.0

    @classmethod
    def of(cls, device: jax.Device) -> "Chip":
        """The chip of a device."""
        if device.platform != "gpu":
            return cls(device.platform)
        if "cuda" not in device.client.platform_version:
            return cls("rocm")
        return cls("cuda", float(device.compute_capability))


@dataclasses.dataclass(frozen=True)
class Attend:
    """`attention.attention` by the implementation `name`; "auto" takes the chip's own kernel where its rules hold.

    `layout` says how arrays lie on a mesh of several devices. Raises ValueError, when a model is traced, where a named
    implementation cannot serve it.
    """

    name: Name = "xla"
    chip: Chip = Chip("cpu")
    layout: Layout | None = None

    def __call__(
        self,
        query: Float[Array, "batch time heads size"],
        key: Float[Array, "batch time groups size"],
        value: Float[Array, "batch time groups size"],
        *,
        scale: float,
        bias: Float[Array, "heads time time"] | None,
        causal: bool,
    ) -> Float[Array, "batch time heads size"]:
        name = self.chosen(query.shape[1], query.shape[3], query.dtype, bias is not None)
        if name == "xla":
            return attention.attention(query, key, value, scale=scale, bias=bias, causal=causal)
        kernel = functools.partial({"cudnn": cudnn, "splash": splash}[name], scale=scale, causal=causal)
        return on_each_device(kernel, self.layout, query, key, value)

    def chosen(self, context: int, head_size: int, dtype: Any, biased: bool) -> str:
        """The implementation that serves these; where one is named that cannot, a ValueError says why."""
        if self.name == "xla":
            return "xla"
        if self.name == "auto":
            own = {"cuda": "cudnn", "tpu": "splash"}.get(self.chip.platform, "xla")
            return "xla" if own != "xla" and refusal(own, self.chip, context, head_size, dtype, biased) else own
        reason = refusal(self.name, self.chip, context, head_size, dtype, biased)
        if reason:
            raise ValueError(f'execution.attention "{self.name}" {reason}, or let "auto" choose')
        return self.name


def refusal(name: str, chip: Chip, context: int, head_size: int, dtype: Any, biased: bool) -> str | None:
    """Why "cudnn" or "splash" cannot serve, with the remedy, or None.

    The rules are those of JAX's `dot_product_attention` and of splash attention, and two of ours: no bias, which cuDNN
    would round to the dtype of the queries and splash does not take.
    """
    platform, rest = ("cuda", "an NVIDIA GPU") if name == "cudnn" else ("tpu", "a TPU")
    if chip.platform != platform:
        return f'needs {rest} and the platform is {chip.platform}; use "xla"'
    if biased:
        return 'adds no bias to the scores, which ALiBi positions need; use "xla", or other positions'
    if name == "splash":
        if context % LANES:
            return f'needs a context that is a multiple of {LANES}, not {context}; use "xla", or another context'
        return None
    if chip.capability < 8.0:
        return f'needs compute capability 8.0 and the GPU has {chip.capability}; use "xla"'
    if jnp.dtype(dtype).name not in ("bfloat16", "float16"):
        return f'computes in bfloat16, not {jnp.dtype(dtype).name}; use "xla", or precision.compute "bfloat16"'
    largest = 256 if chip.capability >= 9.0 else 128
    if head_size % 8 or head_size > largest:
        return f'needs a head size that is a multiple of 8 up to {largest}, not {head_size}; use "xla", or other heads'
    return None


def cudnn(
    query: Float[Array, "batch time heads size"],
    key: Float[Array, "batch time groups size"],
    value: Float[Array, "batch time groups size"],
    *,
    scale: float,
    causal: bool,
) -> Float[Array, "batch time heads size"]:
    """cuDNN's flash attention, which keeps no scores (Dao et al. 2205.14135)."""
    return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=causal, implementation="cudnn")


def splash(
    query: Float[Array, "batch time heads size"],
    key: Float[Array, "batch time groups size"],
    value: Float[Array, "batch time groups size"],
    *,
    scale: float,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "batch time heads size"]:
    """JAX's splash attention, which skips the blocks above the diagonal if `causal`.

    `interpret` runs it on any device, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    time, heads, size = query.shape[1:]
    block = next(block for block in BLOCKS if time % block == 0)
    mask = library.CausalMask if causal else library.FullMask
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask((time, time))] * heads),
        block_sizes=library.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
            block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip

    def laid(x: Float[Array, "batch time n size"]) -> Float[Array, "batch n time padded"]:
        """Heads first, each filled with zeros to half a vector, the least that splash is used with elsewhere."""
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, 0), (0, -size % (LANES // 2))))

    mixed = jax.vmap(kernel)(laid(query * scale), laid(key), laid(value))
    return jnp.swapaxes(mixed, 1, 2)[..., :size]


def on_each_device(
    kernel: Callable[[Array, Array, Array], Array], layout: Layout | None, query: Array, key: Array, value: Array
) -> Array:
    """The kernel on each device's own sequences, and heads where heads and their groups both divide."""
    meaning: tuple[str | None, ...] = ("batch", None, "heads", None)
    if layout is None or layout(query.shape, meaning).mesh.size == 1:
        return kernel(query, key, value)
    if layout(query.shape, meaning).spec != layout(key.shape, meaning).spec:
        meaning = ("batch", None, None, None)
    where = layout(query.shape, meaning)
    split = jax.shard_map(kernel, mesh=where.mesh, in_specs=where.spec, out_specs=where.spec, check_vma=False)
    return split(query, key, value)
