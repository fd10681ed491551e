"""How runs are computed: nothing here changes a result beyond rounding."""

from typing import Literal, Self

import pydantic

from scaling import schema


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

    @property
    def shared(self) -> Self:
        """What executions have in common that one compiled program serves: what only the loop around it reads is as by
        default.
        """
        between = ("evaluations", "checkpoint_seconds", "keep_last_checkpoint", "pack", "trunks")
        return self.edit({name: type(self).model_fields[name].default for name in between})

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
