"""The layers that families share: reading and multiplying weights, and norms."""

import math
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scaling.models import builder as builders
from scaling.models.ops import products, select


class Layer(nnx.Module):
    """A module that computes in one dtype whatever its parameters are stored in.

    It runs as a builder, or another layer, says: in its dtype, laid out over its mesh, by its device's operations.
    """

    def __init__(self, like: Union[builders.Builder, "Layer"]):
        self.dtype: np.dtype[Any] = like.dtype
        self.place: builders.Place = like.place
        self.ops: select.Ops = like.ops

    def read(self, parameter: nnx.Param, dtype: DTypeLike | None = None) -> Float[Array, "..."]:
        """The parameter's values in the compute dtype, or in another, as they are needed on each device.

        One that does not learn has no gradient.
        """
        values = parameter[...] if parameter.learns else jax.lax.stop_gradient(parameter[...])
        return self.place(values.astype(dtype or self.dtype), parameter.axes)

    def matmul(
        self, x: Float[Array, "..."], weight: nnx.Param, bias: nnx.Param | None = None, summed: int = 1
    ) -> Float[Array, "..."]:
        """x times a weight over the last `summed` axes of x, as one product of two matrices.

        Batch and time are one axis for it: XLA on CPU would else copy whole activations into another layout for the
        gradient of the weight (6–22% of a step at 0.4 M parameters).
        """
        batch, outputs = x.shape[: x.ndim - summed], weight.shape[summed:]
        inputs = math.prod(weight.shape[:summed])
        flat, matrix = x.reshape(-1, inputs), self.read(weight).reshape(inputs, -1)
        result = products.product(flat, matrix) if x.dtype == jnp.float32 else flat @ matrix
        if bias is not None:
            result = result + self.read(bias).reshape(-1)
        return result.reshape(*batch, *outputs)


class Norm(Layer):
    """RMSNorm x / √(mean x² + ε) · scale (Zhang and Sennrich 1910.07467), over the last axis.

    With a bias in the table it is LayerNorm (Ba et al. 1607.06450): the mean is taken off first and the bias added.
    Statistics in float32.
    """

    def __init__(self, builder: builders.Builder, epsilon: float):
        super().__init__(builder)
        self.epsilon = epsilon
        self.scale = builder.param("scale")
        self.bias = builder.optional("bias")

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        x = self.ops.norm(x, self.read(self.scale, jnp.float32), self.bias is not None, self.epsilon)
        if self.bias is not None:
            x = x + self.read(self.bias, jnp.float32)
        return x.astype(self.dtype)
