"""Predicting each token from those before it: the implementation of `scaling.config.tasks.CausalLM`."""

from typing import Any

import jax
import numpy as np

from scaling import tasks
from scaling.config import tasks as configs
from scaling.tasks import cross_entropy


def objective(
    task: configs.CausalLM, model: Any, batch: configs.Batch, options: tasks.Options
) -> tuple[jax.Array, jax.Array]:
    """mean −log p + z_loss · mean log²Z, and mean −log p, over all positions."""
    inputs, targets = _shifted(batch)
    chunk = options.loss_chunk(inputs.size)
    with jax.named_scope("forward"):
        features = model.features(inputs)
    with jax.named_scope("loss"):
        return cross_entropy.mean_loss(
            model.logits, model.head, features, targets, options.z_loss, chunk, batch.get("weights")
        )


def measure(task: configs.CausalLM, model: Any, batch: configs.Batch, options: tasks.Options) -> dict[str, jax.Array]:
    """−log p of every token."""
    inputs, targets = _shifted(batch)
    chunk = options.loss_chunk(inputs.size)
    return {"loss": cross_entropy.token_losses(model.logits, model.head, model.features(inputs), targets, chunk)}


def bytes_predicted(task: configs.CausalLM, batch: configs.Batch, token_bytes: np.ndarray) -> int:
    """Bytes of text that the targets stand for."""
    return int(token_bytes[batch["tokens"][:, 1:]].sum())


def _shifted(batch: configs.Batch) -> tuple[Any, Any]:
    """Inputs and targets: each token is predicted from those before it."""
    return batch["tokens"][:, :-1], batch["tokens"][:, 1:]
