"""The noise between seeds, the ruler beside which every effect is read."""

import dataclasses

import numpy as np
import pandas as pd

from analysis import checks, settings

CONFIG = (
    "family", "role", "params", "params_non_embedding", "params_with_head", "tokens", "unique_tokens", "flops",
    "flops_budget", "batch_tokens", "context", "vocabulary_size", "tokenizer_id", "data_sha256", "validation_id",
    "precision", "parametrization", "optimizer", "schedule", "learning_rate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of the loss between seeds (nats per token); NaN with a `message` where it is not measured."""

    sd: float
    degrees_of_freedom: int
    groups: int
    message: str


def seed_noise(frame: pd.DataFrame, loss: str = "loss") -> SeedNoise:
    """The pooled within-group deviation sqrt(Σ_g Σ_i (L_gi − mean_g)² / Σ_g (n_g − 1)).

    A group is the runs that agree in every recorded column of their configuration but the seed. A group that has one
    seed twice differs in something that the frame does not record, and is left out.
    """
    if "seed" not in frame.columns:
        return SeedNoise(np.nan, 0, 0, "seed noise not measured: no column 'seed'")
    chosen = checks.runs(frame).frame
    alike = _configuration(chosen)
    if not alike:
        return SeedNoise(np.nan, 0, 0, "seed noise not measured: no column that tells one configuration from another")
    losses = pd.Series(checks.column(chosen, loss, "the seed noise"), index=chosen.index)
    squares, freedom, groups, unclear = 0.0, 0, 0, 0
    for _, rows in chosen.groupby(alike, dropna=False):
        if len(rows) < 2:
            continue
        if rows["seed"].duplicated().any():
            unclear += 1
            continue
        group = losses[rows.index]
        squares += float(((group - group.mean()) ** 2).sum())
        freedom += len(group) - 1
        groups += 1
    left_out = f"; {unclear} groups left out (one seed twice: they differ in something not recorded)" if unclear else ""
    if not freedom:
        return SeedNoise(np.nan, 0, 0, f"seed noise not measured: no configuration was run with two seeds{left_out}")
    sd = float(np.sqrt(squares / freedom))
    message = f"seed noise {sd:.4f} nats/token (pooled over {groups} configurations, {freedom} degrees of freedom)"
    return SeedNoise(sd, freedom, groups, message + left_out)


def _configuration(frame: pd.DataFrame) -> list[pd.Series]:
    """The columns that tell one configuration from another, but for the seed."""
    recorded = [frame[name] for name in CONFIG if name in frame.columns and not frame[name].isna().all()]
    return recorded + [settings.values(frame[name]) for name in settings.fields(frame) if name != "seed"]
