"""From the bytes of a public file to its tidy table: one function a source, and `read` for tables already tidy.

Each function returns the columns that its entry in `sources` lists, in SI units, before any renaming; the rules are
those of the source's authors where there are any, and are named.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis import errors

CLARK_NAMES = {
    "hyper_id": "run",
    "router_type": "router",
    "num_experts": "experts",
    "dense_parameter_count": "params_active",
    "total_parameter_count": "params_total",
    "flops_per_step": "flops_forward_per_step",
    "loss_pile": "loss_pile_europarl",
}
CLARK_ORDER = (
    "run", "router", "experts", "k", "routing_frequency", "flop_increase", "d_model", "num_blocks", "num_heads",
    "kqv_size", "seed", "model_size_label", "params_active", "params_total", "flops_forward_per_step", "step",
    "loss_validation", "loss_c4", "loss_curation_corpus", "loss_lambada", "loss_pile_europarl", "loss_wikitext103",
    "default_config",
)  # fmt: skip
TAO_NAMES = {
    "Non_vocab_parameters": "params_non_vocab",
    "num_characters": "characters",
    "FLOPs": "flops",
    "Lossu": "loss_unigram_normalised",
}
DIVERGED = 5.0  # StepLaw: a smoothed loss above this, in nats per token, is a run that diverged


@dataclasses.dataclass(frozen=True)
class By:
    """A convention that differs between rows: the text for each value of a column."""

    column: str
    texts: Mapping[str, str]


def read(path: pathlib.Path) -> pd.DataFrame:
    """The table in a CSV or parquet file; `Refused` where it is neither."""
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas and pyarrow raise these for text, encoding and format alike
        raise errors.Refused(
            f"{path} cannot be read as {path.suffix[1:]} ({error}); put the whole file there"
        ) from error


def parquet(content: bytes) -> pd.DataFrame:
    """A parquet file, as it is."""
    return pd.read_parquet(io.BytesIO(content))


def gzipped(content: bytes) -> pd.DataFrame:
    """A compressed CSV file, as it is."""
    return pd.read_csv(io.BytesIO(content), compression="gzip")


def besiroglu(content: bytes) -> pd.DataFrame:
    """Points read off a figure: `tokens` and the rows left out of the published fit by the authors' own rules."""
    raw = pd.read_csv(io.BytesIO(content))
    params, flops, loss = raw["Model Size"], raw["Training FLOP"], raw["loss"]
    excluded = (loss >= loss.nlargest(5).min()).astype(np.int64)  # the notebook drops the 5 largest losses
    return pd.DataFrame(
        {
            "params": params,
            "tokens": flops / (6 * params),
            "flops": flops,
            "loss": loss,
            "excluded_in_published_fit": excluded,
        }
    )


def clark(content: bytes) -> pd.DataFrame:
    """The last evaluation of each run, in order of the runs' numbers."""
    raw = pd.read_csv(io.BytesIO(content), compression="gzip").rename(columns=CLARK_NAMES)
    last = raw.sort_values(["run", "step"]).groupby("run").tail(1).reset_index(drop=True)
    whole = ["params_active", "params_total"]
    last[whole] = last[whole].astype(np.int64)
    default = (last["k"] == 1) & (last["routing_frequency"] == 0.5) & (last["flop_increase"] == 1)
    return last.assign(default_config=(default & (last["seed"] == 42)).astype(np.int64))[list(CLARK_ORDER)]


def tao(content: bytes) -> pd.DataFrame:
    """Checkpoints, in the order of the file; tokens from C = 6 (N_nv + N_v) D, which is how the source counts C."""
    frame = pd.read_csv(io.BytesIO(content)).rename(columns=TAO_NAMES)
    whole = ["params_non_vocab", "vocab_size", "embed_dim"]
    frame[whole] = frame[whole].astype(np.int64)
    frame["params_vocab"] = frame["vocab_size"] * frame["embed_dim"]
    frame["tokens"] = frame["flops"] / (6.0 * (frame["params_non_vocab"] + frame["params_vocab"]))
    run = frame.groupby(["params_non_vocab", "vocab_size"], sort=False)
    frame["run"] = run.ngroup()
    frame["is_last"] = (run.cumcount(ascending=False) == 0).astype(np.int64)
    return frame[
        ["run", "params_non_vocab", "params_vocab", "vocab_size", "embed_dim", "characters", "tokens", "flops",
         "loss_unigram_normalised", "is_last"]
    ]  # fmt: skip


def alabdulmohsin(content: bytes) -> pd.DataFrame:
    """Language curves without exact repeats (each LM row is there four times), sorted by curve and examples seen."""
    raw = pd.read_csv(io.BytesIO(content), dtype={"Model": str}).drop_duplicates()
    task = raw["Task"].str.replace(r"^\('(\w+)', '([\w-]+)'\)$", r"\1_\2", regex=True)
    sizes = {"NMT": 3e8, "BB": 2.62e8}  # the README's; a language model is named by its own size
    params = [sizes[domain] if domain in sizes else float(model) for domain, model in raw[["Domain", "Model"]].values]
    frame = pd.DataFrame(
        {
            "domain": raw["Domain"],
            "task": task,
            "model": raw["Model"],
            "params_approx": params,
            "seen": raw["Seen Examples"].astype(np.int64),
            "loss": raw["Loss"],
            "split": raw["Training"].map({1: "fit", 0: "extrapolate"}),
        }
    )
    return frame.sort_values(["domain", "task", "model", "seen"], ignore_index=True)


def steplaw(frame: pd.DataFrame) -> pd.DataFrame:
    """With a `status`: the source keeps runs that diverged."""
    status = np.where(frame["smoothed_loss"] > DIVERGED, "diverged", "finished").tolist()
    return frame.assign(status=status)
