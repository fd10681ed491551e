"""What a run learns to do. How a kind does it is in `scaling.tasks`; a task of one's own defines the methods itself.

A batch is a dictionary of arrays that lead with the axis of examples. One that holds `weights` (≥ 0, an example each or
a position each) weighs the loss by them.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from scaling import registry, schema

if TYPE_CHECKING:
    from scaling.config import data as datas

Batch = dict[str, Any]


class Task(schema.Variant):
    """What a batch means, what is minimised and what is measured. A task of one's own defines `measure`.

    Every number is a sum over examples with a denominator of its own; sums are added over devices, microbatches and
    batches of validation before they are divided, so that none depends on how it is computed.

    `causal`: a model that sees later positions is refused, since the task would give the answer away.
    """

    causal: ClassVar[bool] = False

    def check(self, data: "datas.Data") -> None:
        """Raise ValueError where the task cannot be done on these data."""

    @property
    def draws(self) -> bool:
        """Whether `draw` is defined."""
        return type(self).draw is not Task.draw or registry.function(self, "draw") is not None

    def draw(self, example: Batch, key: Any) -> Batch:
        """One example (no leading axis) with what is random of it, drawn from a JAX key: a mask, noise, weights.

        In training the key follows from (seed, step, place in the batch), in validation from the validation set and
        the example, so that all runs are judged on the same draws.
        """
        draw = registry.function(self, "draw")
        return example if draw is None else draw(self, example, key)

    def measure(self, model: Any, batch: Batch, options: Any) -> dict[str, Any]:
        """By name, a value for every example (examples, …); `loss` is what a run is judged by.

        A bare array is averaged with the weights of the batch; (values, weights) with weights of its own.
        """
        return registry.required(self, "measure")(self, model, batch, options)

    def objective(self, model: Any, batch: Batch, options: Any) -> tuple[Any, Any]:
        """What a step minimises, and the loss that it reports: means, or weighted sums of a batch with `weights`.

        By default both are the `loss` of `measure`. `options` are `scaling.tasks.Options`.
        """
        objective = registry.function(self, "objective")
        if objective is not None:
            return objective(self, model, batch, options)
        loss, weights = self.measure(model, batch, options)["loss"], batch.get("weights")
        if isinstance(loss, tuple) or (weights is not None and weights.shape != loss.shape):
            raise ValueError(
                f"the loss of {type(self).__name__}.measure is to be an array of the shape of the batch's `weights`, "
                "where it has them: these are what the loss is weighed by"
            )
        value = loss.mean() if weights is None else (loss * weights).sum()
        return value, value

    def bytes_predicted(self, batch: Batch, token_bytes: Any) -> int | None:
        """Bytes of text that the sum of losses of a batch (NumPy arrays) encodes; None where that has no meaning."""
        count = registry.function(self, "bytes_predicted")
        return None if count is None else count(self, batch, token_bytes)


class CausalLM(Task):
    """Predict each token from those before it: mean −log p in nats a token."""

    kind: Literal["causal_lm"] = "causal_lm"
    causal: ClassVar[bool] = True

    def check(self, data: "datas.Data") -> None:
        if data.vocabulary_size is None:
            raise ValueError(
                f"the task {self.kind!r} predicts tokens, and data of kind {data.kind!r} have no vocabulary; "
                "give the run a `task` of another kind"
            )
