"""Results of an experiment's own grid with losses from a law that is known: nothing is trained."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments import papers
from scaling import config
from scaling.store import record

UNIQUE = 28_000_000

# L = E + A/N^α + B/D^β of total parameters and tokens: minima lie inside the grid of configs/demo.py
HOFFMANN = {"E": 0.6, "A": 40.0, "B": 156.0, "alpha": 0.35, "beta": 0.37}
OVERSHOOT = 0.03  # loss a run has on top until its learning rate has fallen, at its start

# L = ((N_c/N)^r + D_c/t)^α_D, r = α_N/α_D, of non-embedding parameters; N* ∝ C^(1/(1+r)), L* ∝ C^(−α_N/(1+r))
KAPLAN = {"N_c": 1.1e7, "D_c": 4e6, "alpha_N": 0.10, "alpha_D": 0.25}
LIMITED = {"D_c": 1.5e8, "alpha_D": 0.12}
LSTM = 1.03


class Identity:
    """A corpus as far as a record needs it."""

    data_sha256 = "a" * 64
    validation_id = "b" * 16
    tokenizer_id = "bytes"

    def __init__(self, data: config.Data):
        self.unique_tokens = data.train_tokens or UNIQUE


def rows(sweeps: Sequence[config.Sweep], loss: Callable[[dict], float]) -> pd.DataFrame:
    """A finished row for each run of the sweeps."""
    made = []
    for sweep in sweeps:
        for point in sweep.points():
            identity = Identity(point.run.data)
            row = {
                "run_id": point.run.run_id(identity.data_sha256), "sweep": sweep.name,
                **record.columns(point.run, identity), **point.labels, "status": "finished",
            }  # fmt: skip
            made.append({**row, "loss": loss(row)})
    return pd.DataFrame(made)


def hoffmann(sweeps: Sequence[config.Sweep], noise: float = 0.0) -> papers.Frames:
    """Final losses on the law, training losses above it by what the learning rate has still to fall."""
    random = np.random.default_rng(0)

    def law(n: float, d: np.ndarray | float) -> np.ndarray | float:
        return HOFFMANN["E"] + HOFFMANN["A"] / n ** HOFFMANN["alpha"] + HOFFMANN["B"] / d ** HOFFMANN["beta"]

    runs = rows(sweeps, lambda row: float(law(row["params"], row["tokens"])) * np.exp(noise * random.normal()))

    def history(run_id: str) -> pd.DataFrame:
        run = runs.set_index("run_id").loc[run_id]
        tokens = np.arange(run["batch_tokens"], run["tokens"] + 1, run["batch_tokens"], dtype=float)
        loss = law(run["params"], tokens) + OVERSHOOT * (1 - tokens / run["tokens"])
        return pd.DataFrame({"tokens": tokens, "flops": tokens * run["flops"] / run["tokens"], "loss": loss})

    return papers.Frames(runs, pd.DataFrame({"run_id": [], "step": [], "loss": []}), history)


def kaplan(sweeps: Sequence[config.Sweep], noise: float = 0.0, converged: bool = False) -> papers.Frames:
    """Learning curves on the law, final losses at their end, or as after endless training where `converged`."""
    random = np.random.default_rng(0)

    def law(row: dict, tokens: np.ndarray | float) -> np.ndarray | float:
        if row["unique_tokens"] < UNIQUE:
            over = 0.05 * (np.asarray(tokens) / row["tokens"] - 0.5) ** 2
            return (LIMITED["D_c"] / row["unique_tokens"]) ** LIMITED["alpha_D"] * (1 + over)
        data = 0.0 if converged and np.isscalar(tokens) else KAPLAN["D_c"] / tokens
        size = (KAPLAN["N_c"] / row["params_non_embedding"]) ** (KAPLAN["alpha_N"] / KAPLAN["alpha_D"])
        return (size + data) ** KAPLAN["alpha_D"] * (LSTM if row["family"] == "lstm" else 1.0)

    runs = rows(sweeps, lambda row: float(law(row, float(row["tokens"]))) * np.exp(noise * random.normal()))
    evaluations = {sweep.name: sweep.execution.evaluations for sweep in sweeps}
    curves = []
    for row in runs.to_dict("records"):
        count = evaluations[row["sweep"]]
        tokens = row["tokens"] * np.arange(1, count + 1) / count
        steps = np.round(tokens / row["batch_tokens"]).astype(int)
        loss = law(row, tokens) * np.exp(noise / 3 * random.normal(size=count))
        curves.append(pd.DataFrame({"run_id": row["run_id"], "step": steps, "tokens": tokens, "loss": loss}))
    return papers.Frames(runs, pd.concat(curves, ignore_index=True), lambda run: pd.DataFrame())
