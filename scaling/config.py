"""What a run and a sweep are: frozen, typed, JSON both ways. No JAX here.

A `Run` holds all that determines a result, and nothing else; `Execution` holds how it is computed, which does not
change a result beyond rounding. A `Sweep` is a base run, a grid over it, a rule for learning rates and an execution.
"""

from typing import Any, Literal, Self

import pydantic

from scaling import families, optim, schema
from scaling import parametrization as parametrizations
from scaling.data import corpus
from scaling.sweep import grid as grids
from scaling.sweep import rates

DType = Literal["float32", "bfloat16"]


class Precision(schema.Config):
    """The dtype of the forward and backward pass, and the dtype in which parameters are kept."""

    compute: DType
    parameters: DType = "float32"


class Run(schema.Config):
    """One training of one model: everything that determines its result.

    `tokens` are training tokens seen, a multiple of `batch_size` sequences of `context` tokens. `clip` bounds the
    global norm of the gradient. `z_loss` weighs log²Z of the softmax (Chowdhery et al. 2204.02311, section 5).
    """

    model: families.Family
    parametrization: parametrizations.Parametrization
    data: corpus.Data
    context: pydantic.PositiveInt
    batch_size: pydantic.PositiveInt
    tokens: pydantic.PositiveInt
    optimizer: optim.Optimizer
    schedule: optim.Schedule
    precision: Precision
    clip: pydantic.PositiveFloat | None = None
    z_loss: pydantic.NonNegativeFloat = 0.0
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.tokens < self.batch_tokens:
            raise ValueError(
                f"{self.tokens} tokens are fewer than one batch of {self.batch_tokens} "
                f"({self.batch_size} × {self.context}); train on more tokens or make the batch smaller"
            )
        if self.tokens % self.batch_tokens:
            near = round(self.tokens / self.batch_tokens) * self.batch_tokens
            raise ValueError(
                f"{self.tokens} tokens are no whole number of batches of {self.batch_tokens}; the nearest is {near}"
            )
        if self.data.validation_tokens % self.context:
            near = max(1, round(self.data.validation_tokens / self.context)) * self.context
            raise ValueError(
                f"data.validation_tokens {self.data.validation_tokens} is no multiple of context {self.context}; "
                f"the nearest is {near}"
            )
        optim.check_parametrization(self.optimizer, self.parametrization.kind)
        self.schedule.warmup_steps(self.steps, self.batch_tokens)
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.batch_size * self.context

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens

    @property
    def vocabulary_size(self) -> int:
        """Entries of the tokenizer's vocabulary."""
        return self.data.tokenizer.vocabulary_size

    @property
    def shared(self) -> Self:
        """What runs have in common that one compiled program serves: all its arguments are set to fixed values."""
        return self.edit(
            {
                "optimizer.learning_rate": 1.0, "optimizer.weight_decay": 0.0, "optimizer.independent": True,
                "parametrization.init_scale": 1.0, "tokens": self.batch_tokens, "seed": 0, "clip": None, "z_loss": 0.0,
                "schedule": {"kind": "constant", "warmup": {"kind": "fraction", "fraction": 0.0}},
            }
        )  # fmt: skip

    @property
    def weights(self) -> tuple[families.Weight, ...]:
        """The model's table of weights."""
        return self.model.weights(self.vocabulary_size, self.context)

    def settings(self) -> dict[str, Any]:
        """What is stored of a run, as JSON values: all but what is younger than stored runs and as it was for them."""
        settings = self.model_dump(mode="json")
        if settings["parametrization"]["init_scale"] == 1.0:
            settings["parametrization"].pop("init_scale")
        return settings

    def run_id(self, data_sha256: str) -> str:
        """The name of this run: 16 hex digits that follow from all that determines its result.

        The corpus counts by its content, not by where it lies.
        """
        settings = self.settings()
        settings["data"].pop("source")
        return schema.digest({"run": settings, "data_sha256": data_sha256})[:16]


class Mesh(schema.Config):
    """Devices along each axis; their product is the number of devices used. `data` None takes all that are left."""

    data: pydantic.PositiveInt | None = None
    fsdp: pydantic.PositiveInt = 1
    tensor: pydantic.PositiveInt = 1

    @property
    def least(self) -> int:
        """The fewest devices that a run needs."""
        return (self.data or 1) * self.fsdp * self.tensor


class Execution(schema.Config):
    """How runs are computed. Nothing here changes a result, but for the rounding of another order of sums."""

    mesh: Mesh = Mesh()
    # Sequences of one forward pass. None: the whole batch; "auto": the most whose compiled step fits the device.
    microbatch: pydantic.PositiveInt | Literal["auto"] | None = "auto"
    layers: Literal["auto", "scan", "unroll"] = "auto"
    remat: Literal["none", "full", "dots"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # cuDNN and splash are flash, on GPUs and TPUs
    # Tokens whose logits exist at once. None: all of a forward pass; "auto": all, or as many as `counting` finds small.
    loss_chunk: pydantic.PositiveInt | Literal["auto"] | None = "auto"
    steps_per_dispatch: pydantic.PositiveInt = 32
    evaluations: pydantic.PositiveInt = 1  # validations a run, equally spaced; the last is the result
    checkpoint_seconds: pydantic.NonNegativeFloat = 60.0
    keep_last_checkpoint: bool = True
    # Runs that share a program trained as one: as many as given, or as pay on the device.
    pack: pydantic.PositiveInt | Literal["auto"] = "auto"
    # Whether runs that are alike but for their length start from one trunk, where their schedule allows it.
    trunks: Literal["auto", "off"] = "auto"
    noise_scale: bool = False  # estimate the gradient noise scale from microbatches, or from halves of the batch

    def scans(self, depth: int, cpu: bool) -> bool:
        """Whether layers run in a loop. "auto": deep models, which compile in constant time so.

        A loop copies all that the backward pass needs to and from stacks: on an H200 24 layers of 350 M parameters take
        0.81 of its time written out, and 21 seconds to compile instead of 11.

        On CPU loops run at 0.53 to 0.63 of the speed; but there XLA merges the recomputation of written-out layers with
        the first computation, and remat saves nothing (226 against 1092 MB of temporary buffers at 6 M parameters).
        """
        if self.layers != "auto":
            return self.layers == "scan"
        return depth > (16 if cpu else 32) or (cpu and self.remat != "none")

    def sequences(self, batch_size: int) -> int:
        """Sequences of one forward pass in training; where that is "auto", as many as there can be.

        Raises ValueError where they do not divide the batch, or the noise scale would have but one part of it.
        """
        size = self.microbatch if isinstance(self.microbatch, int) else batch_size
        if batch_size % size:
            raise ValueError(f"execution.microbatch {size} does not divide batch_size {batch_size}; choose a divisor")
        if self.noise_scale and size == batch_size:
            if batch_size % 2:
                raise ValueError(
                    f"execution.noise_scale compares two halves of a batch, and batch_size {batch_size} is odd; choose "
                    "an even one, or an execution.microbatch below it"
                )
            return batch_size // 2
        return size


class Tracking(schema.Config):
    """Where metrics go besides the store. wandb "online" needs WANDB_API_KEY or a login; "offline" needs neither."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "scaling"
    entity: str | None = None


class Sweep(schema.Config):
    """A named set of runs: a base run, a grid over it, a rule for the learning rates, and how to compute them."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: Run
    grid: grids.Grid = grids.Single()
    learning_rate: rates.Rule = rates.AsGiven()
    execution: Execution = Execution()
    tracking: Tracking = Tracking()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        self.learning_rate.check(self.base)
        if self.name.endswith(".tune"):
            raise ValueError(f"name {self.name!r} ends as the tune stage of a sweep does; drop the ending .tune")
        return self

    def points(self) -> list[grids.Point]:
        """Every run of the grid once, in the grid's order, learning rates as in the base run (see `rates`)."""
        unique: dict[Run, grids.Point] = {}
        for point in self.grid.expand(grids.Point(self.base, {"role": "single"})):
            self.execution.sequences(point.run.batch_size)
            unique.setdefault(point.run, grids.Point(point.run, {"family": point.run.model.kind, **point.labels}))
        return list(unique.values())
