"""The LSTM language model of `families.Lstm` (Hochreiter and Schmidhuber 1997)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scaling.config import families
from scaling.models import builder as builders
from scaling.models import language, layers


class Recurrence(layers.Layer):
    """One LSTM layer over all time steps, from a state of zeros:

    i, f, o, g = x·input + h·recurrent + bias;  c = σ(f + 1)·c + σ(i)·tanh(g);  h = σ(o)·tanh(c).

    The 1 opens the forget gate at the start of training (Jozefowicz et al. 2015).
    """

    def __init__(self, builder: builders.Builder):
        super().__init__(builder)
        self.input = builder.param("input")
        self.recurrent = builder.param("recurrent")
        self.bias = builder.param("bias")

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        recurrent = self.read(self.recurrent)
        # The inputs of all steps in one matmul; only h·recurrent has to wait for the step before.
        inputs = jnp.einsum("btd,dg->tbg", x, self.read(self.input)) + self.read(self.bias)

        def step(
            carry: tuple[Float[Array, "batch width"], Float[Array, "batch width"]], gates: Float[Array, "batch gates"]
        ) -> tuple[tuple[Float[Array, "batch width"], Float[Array, "batch width"]], Float[Array, "batch width"]]:
            hidden, cell = carry
            gates = (gates + hidden @ recurrent).astype(jnp.float32)
            enter, forget, leave, candidate = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            hidden = (jax.nn.sigmoid(leave) * jnp.tanh(cell)).astype(self.dtype)
            return (hidden, cell), hidden

        batch, _, width = x.shape
        start = jnp.zeros((batch, width), self.dtype), jnp.zeros((batch, width), jnp.float32)
        _, hidden = jax.lax.scan(step, start, inputs)
        return self.place(jnp.swapaxes(hidden, 0, 1), ("batch", None, None))


def build(family: families.Lstm, builder: builders.Builder) -> language.LanguageModel:
    """The module of a family."""
    return language.LanguageModel(builder, Recurrence(builder.within("layers")))
