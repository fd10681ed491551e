"""How well networks of growing width learn a function: a family, data and a task of one's own, and their sweep."""

from typing import Any, Literal

import numpy as np

from scaling import config, parametrization, tables
from scaling.config import grids, optimizers, schedules
from scaling.data import corpus


class Network(tables.Family):
    """y = output · tanh(input · x)."""

    kind: Literal["network"] = "network"

    def weights(self, vocabulary_size: int, context: int) -> tuple[tables.Weight, ...]:
        shapes = {"input": (8, self.width), "output": (self.width, 1)}
        return tuple(tables.Weight(name, "hidden", shape, ("", ""), shape[0]) for name, shape in shapes.items())

    def build(self, builder: Any) -> Any:
        from flax import nnx

        return nnx.Dict({name: builder.param(name) for name in ("input", "output")})


class Sine(config.Data):
    """Points x, and y the sine of their first coordinate."""

    kind: Literal["sine"] = "sine"

    def find(self) -> Any:
        x = np.random.default_rng(0).standard_normal((768, 8), np.float32)
        train, validation = ({"x": part, "y": np.sin(part[:, 0])} for part in (x[256:], x[:256]))
        return corpus.ArrayCorpus(train, validation)


class Regression(config.Task):
    """Squared error where x is seen with noise; and how often the sign is right, each example weighed by |y|."""

    kind: Literal["regression"] = "regression"

    def draw(self, example: dict[str, Any], key: Any) -> dict[str, Any]:
        from jax import random

        return {**example, "x": example["x"] + 0.1 * random.normal(key, example["x"].shape)}

    def measure(self, model: Any, batch: dict[str, Any], options: Any) -> dict[str, Any]:
        import jax.numpy as jnp

        found, y = (jnp.tanh(batch["x"] @ model["input"][...]) @ model["output"][...])[:, 0], batch["y"]
        return {"loss": (found - y) ** 2, "sign": (jnp.float32(found * y > 0), abs(y))}


def sweep() -> config.Sweep:
    return config.Sweep(name="own", grid=grids.Axis(field="model.width", values=(8, 32)), base=config.Run(
        model=Network(width=8, depth=1), data=Sine(), task=Regression(), optimizer=optimizers.Sgd(learning_rate=0.1),
        parametrization=parametrization.Standard(), precision=config.Precision(compute="float32"),
        schedule=schedules.Constant(warmup=schedules.WarmupTokens(tokens=64)), context=1, batch_size=32, tokens=1920,
    ))  # fmt: skip
