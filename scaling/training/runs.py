"""A run while it trains: what the loop is given, how far it is, what its next steps need, and how it ended.

The loop advances a pack of these together; this module handles one run.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from scaling import config, counting
from scaling.data import batches
from scaling.data import corpus as corpora
from scaling.storage import backends
from scaling.training import checkpoint, evaluation, noise, processes, programs, states


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, at which step, with its validation loss and its standard error.

    `metrics` are the task's other measurements: `metric/<name>` and `metric/<name>_se`. `start` is the step of the
    trunk at which the run began, 0 where it has none. `seconds` are those of the devices: a member of a pack counts its
    share.
    """

    status: Literal["finished", "diverged", "stopped"]
    reason: str
    step: int
    seconds: float
    loss: float | None = None
    loss_se: float | None = None
    bits_per_byte: float | None = None
    start: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Where a branch starts: the trunk's checkpoints, its run id, and the step at which the branch leaves it."""

    checkpoints: Sequence[backends.Place]
    run_id: str
    step: int


@dataclasses.dataclass(eq=False)
class TrainingRun:
    """A run to be trained, where its traces go, and, once `prepare` was called, how far it is.

    `checkpoints` are where those of the attempts lie, oldest first, the last one this attempt's own. `record` takes
    rows of metrics: `kind` "train" (one a step) and "validation". The run is saved and left when `stop()` is true.
    After the steps of `branches` a checkpoint is saved and kept, for the branches that start there. `save` is given
    what writes a checkpoint: to do it when all that was recorded before is safe, and again where what failed may pass.
    """

    run: config.Run
    checkpoints: Sequence[backends.Place]
    record: Callable[[list[dict[str, Any]]], None]
    stop: Callable[[], bool]
    trunk: Trunk | None = None
    branches: Sequence[int] = ()
    save: Callable[[Callable[[], None]], object] = lambda write: write()

    def prepare(self, index: int, execution: config.Execution, corpus: corpora.Corpus) -> None:
        """Make what training needs, as the member `index` of a pack."""
        run = self.run
        self.index = index
        self.rates = run.schedule.values(run.optimizer.learning_rate, run.steps, run.batch_tokens)
        self.decays = run.optimizer.decay(self.rates).astype(np.float32)
        self.batches = batches.Batches(corpus.train_examples(run.context), run.batch_size, run.seed)
        self.saved = checkpoint.Checkpoints(self.checkpoints, run.run_id(corpus.data_sha256), self.branches)
        self.ends = evaluation_steps(run.steps, execution.evaluations)
        self.stops = sorted({*self.ends, *self.branches})
        self.keep_last = execution.keep_last_checkpoint
        self.flops_per_token = counting.flops_per_token(run.model, run.vocabulary_size, run.context)
        self.at = self.start = 0
        self.seconds = self.recorded = 0.0  # on the devices; up to the last rows that were recorded
        self.moments: list[tuple[np.ndarray, np.ndarray]] = []  # of the gradient, since the last validation
        self.saved_at: int | None = None
        self.outcome: Outcome | None = None

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None

    def begin(self, program: programs.Program) -> states.State:
        """The state to go on from: of its own newest checkpoint, of its trunk, or of its seed."""
        restored = self.saved.restore(program.shapes)
        if restored is not None:
            state, notes = restored
            self.at, self.start = notes["step"], notes.get("start", 0)
            self.seconds = self.recorded = notes["seconds"]
            return state
        if self.trunk is not None:
            restored = _from_trunk(self.trunk, program)
        if restored is None:
            return program.init(np.uint32(self.run.seed), np.float32(self.run.parametrization.init_scale))
        self.at = self.start = restored[1]["step"]
        return restored[0]

    def cost(self, steps: int) -> dict[str, Any]:
        """What `steps` steps have cost, those of the trunk too."""
        tokens = steps * self.run.batch_tokens
        return {"step": steps, "tokens": tokens, "flops": tokens * self.flops_per_token}

    def read(self, start: int, values: Mapping[str, np.ndarray], peak: float | None) -> None:
        """Record the metrics of steps from `start` on, and note a divergence. Rates of work are means over them."""
        bad = np.flatnonzero(~np.isfinite(values["loss"]) | ~np.isfinite(values["gradient_norm"]))
        count = len(values["loss"])
        speed = count * self.run.batch_tokens / max(self.seconds - self.recorded, 1e-9)
        self.recorded = self.seconds
        if "gradient_squared" in values:
            self.moments.append((values["gradient_squared"], values["gradient_variance"]))
        work = {"tokens_per_second": speed, "flops_per_second": speed * self.flops_per_token}
        if peak is not None:
            work["mfu"] = work["flops_per_second"] / peak
        self.record(
            [
                {
                    "kind": "train",
                    **self.cost(start + i + 1),
                    **{name: float(column[i]) for name, column in values.items()},
                    "learning_rate": float(self.rates[start + i]),
                    **work,
                }
                for i in range(count)
            ]
        )
        if len(bad):
            first = int(bad[0])
            loss, norm = values["loss"][first], values["gradient_norm"][first]
            self.end("diverged", f"training loss is {loss} and gradient norm {norm} at step {start + first + 1}")

    def validated(self, result: evaluation.Validation) -> None:
        """Record a validation, unless the run has ended; the last one is its result."""
        if not self.going:
            return
        row = {"kind": "validation", **self.cost(self.at), "seconds": self.seconds, **result.columns}
        if self.moments:
            squared, variance = map(np.concatenate, zip(*self.moments, strict=True))
            row |= dataclasses.asdict(noise.scale(squared, variance, self.run.context))
            self.moments.clear()
        self.record([row])
        if not math.isfinite(result.loss):
            self.end("diverged", f"validation loss is {result.loss} at step {self.at}")
        elif self.at == self.run.steps:
            measured = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
            self.outcome = Outcome("finished", "", self.at, self.seconds, **measured, start=self.start)

    def save_checkpoint(self, program: programs.Program, pack: states.State) -> None:
        """Save in the background, unless there is a checkpoint of this step or the run has not ended well."""
        if self.saved_at != self.at and (self.outcome is None or self.outcome.status == "finished"):
            state, notes = program.member(pack, self.index), {"seconds": self.seconds, "start": self.start}
            self.save(lambda: self.saved.save(self.at, state, notes))
            self.saved_at = self.at

    def end(self, status: Literal["diverged", "stopped"], reason: str) -> None:
        """Note an end without a result, unless the run has ended."""
        if self.going:
            self.outcome = Outcome(status, reason, self.at, self.seconds, start=self.start)

    def close(self, program: programs.Program, pack: states.State) -> None:
        """Remove checkpoints no longer needed, after the run has ended: the last one of a finished run may stay."""
        assert self.outcome is not None
        if self.outcome.status != "stopped":
            keep = bool(self.keep_last and self.outcome.status == "finished")  # a diverged state is of no use
            if keep:
                self.save_checkpoint(program, pack)
            # else another may have the run by now, restoring what would be removed
            if not processes.by_leader(self.stop):
                if keep or self.branches:
                    self.saved.remove_older_attempts()
                else:
                    self.saved.remove()
        self.saved.close()


def _from_trunk(trunk: Trunk, program: programs.Program) -> tuple[states.State, dict[str, Any]] | None:
    """The state of a trunk where a branch leaves it; None where it has been removed or is damaged: the branch is then
    the same run from its seed."""
    try:
        return checkpoint.Checkpoints(trunk.checkpoints, trunk.run_id).restore(program.shapes, trunk.step)
    except checkpoint.DamagedError:
        return None


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """Steps after which to validate: equally spaced, the last one at the end."""
    return sorted({max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)})
