"""What a program is compiled for: a run, how it is computed, the form of its batches, the devices, the model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from scaling import config, counting, models, registry, tasks
from scaling.config import families
from scaling.data import examples
from scaling.models import checks
from scaling.models.ops import kernels
from scaling.training import compiling, mesh, states


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the functions of a step are given beside arrays. `create` makes the model from a seed, `graph` is its form.

    `members` runs of the shapes of `run` are computed at once.
    """

    run: config.Run
    execution: config.Execution
    members: int
    layout: examples.Layout
    devices: jax.sharding.Mesh
    create: Callable[..., nnx.Module]
    graph: nnx.GraphDef[Any]
    direction: Any

    @functools.cached_property
    def weights(self) -> dict[str, families.Weight]:
        """The model's table of weights, by name."""
        return {weight.name: weight for weight in self.run.weights}

    @functools.cached_property
    def multipliers(self) -> dict[str, float]:
        """What multiplies the learning rate of each weight."""
        rule = self.run.parametrization.learning_rate_multiplier
        return {name: rule(weight, self.run.model) for name, weight in self.weights.items()}

    def decayed(self, name: str) -> bool:
        """Whether weight decay shrinks a weight: matrices and embeddings that learn."""
        weight = self.weights[name]
        return weight.learns and weight.role not in ("vector", "position")

    def model(self, params: states.Params) -> Any:
        """The model with these parameters."""
        return nnx.merge(self.graph, states.unflat(params))

    def options(self, z_loss: Array | float) -> tasks.Options:
        """What the task is given beside the model and the batch."""
        return tasks.Options(z_loss, self.loss_chunk)

    def loss_chunk(self, tokens: int) -> int | None:
        """Tokens whose logits exist at once in one member's forward pass of `tokens`; None for all."""
        vocabulary_size, tensor = self.run.vocabulary_size, self.devices.shape["tensor"]
        return counting.loss_chunk(
            self.execution.loss_chunk,
            tokens=tokens,
            vocabulary_size=vocabulary_size,
            width=self.run.model.width,
            shards=mesh.batch_shards(self.devices) * (tensor if vocabulary_size % tensor == 0 else 1),
            members=self.members,
        )


def of(run: config.Run, execution: config.Execution, members: int, layout: examples.Layout) -> Setup:
    """The setup on the devices of this process and of those that compute with it.

    Raises ValueError where the batch or a weight does not divide over them, or where a family that is to be causal is
    not.
    """
    devices = mesh.make(execution.mesh)
    _check_batch(run, execution, devices)
    mesh.check(devices, run.weights)
    checked = registry.ours(type(run.model))  # by the tests
    if not checked and (run.model.causal or run.task.causal):
        checks.check_causal(run.model, run.context, compiling.once(0))
    create = functools.partial(
        models.create,
        run.model,
        vocabulary_size=run.vocabulary_size,
        context=run.context,
        parametrization=run.parametrization,
        compute_dtype=run.precision.compute,
        parameter_dtype=run.precision.parameters,
        layers="scan" if execution.scans(run.model.depth, jax.default_backend() == "cpu") else "unroll",
        attend=kernels.Attend(
            execution.attention,
            kernels.Chip.of(devices.devices.flat[0]),
            functools.partial(mesh.sharding, devices),
        ),
        remat="gathers" if execution.remat == "none" and devices.shape["fsdp"] > 1 else execution.remat,
        place=functools.partial(mesh.place, devices) if devices.size > 1 else None,
    )
    graph = nnx.graphdef(nnx.eval_shape(lambda: create(seed=jax.random.key(0))))
    direction = run.optimizer.direction({weight.name: weight for weight in run.weights})
    return Setup(run, execution, members, layout, devices, create, graph, direction)


def _check_batch(run: config.Run, execution: config.Execution, devices: jax.sharding.Mesh) -> None:
    micro = execution.sequences(run.batch_size)
    shards = mesh.batch_shards(devices)
    if micro % shards:
        raise ValueError(
            f"{micro} sequences do not split over {shards} shards (mesh data × fsdp); "
            "choose a multiple for batch_size and execution.microbatch, or fewer data shards"
        )
