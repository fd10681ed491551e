"""What a run is: everything that determines its result, and nothing else."""

from typing import Literal, Self

import pydantic

from scaling import parametrization as parametrizations
from scaling import schema
from scaling.config import data as datas
from scaling.config import families, optimizers, schedules, tasks

DType = Literal["float32", "bfloat16"]


class Precision(schema.Config):
    """The dtype of the forward and backward pass, and the dtype in which parameters are kept."""

    compute: DType
    parameters: DType = "float32"


class Run(schema.Config):
    """One training of one model: everything that determines its result.

    `tokens` are training tokens seen, a multiple of `batch_size` examples of `context` positions. `clip` bounds the
    global norm of the gradient. `z_loss` weighs log²Z of the softmax of a task that has one (Chowdhery et al.
    2204.02311, section 5).
    """

    model: families.Family
    parametrization: parametrizations.Parametrization
    data: datas.Data
    context: pydantic.PositiveInt
    batch_size: pydantic.PositiveInt
    tokens: pydantic.PositiveInt
    optimizer: optimizers.Optimizer
    schedule: schedules.Schedule
    precision: Precision
    clip: pydantic.PositiveFloat | None = None
    z_loss: pydantic.NonNegativeFloat = 0.0
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)
    task: tasks.Task = schema.added(tasks.CausalLM())

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
        self.data.check(self.context)
        self.task.check(self.data)
        optimizers.check_parametrization(self.optimizer, self.parametrization.kind)
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
        """How many values a token may have; 0 for data without a vocabulary."""
        return self.data.vocabulary_size or 0

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

    def run_id(self, data_sha256: str) -> str:
        """The run id: 16 hex digits that follow from all that determines its result.

        Data count by their content, not by where they lie.
        """
        settings = self.identity()
        settings["data"].pop("source", None)
        return schema.digest({"run": settings, "data_sha256": data_sha256})[:16]
