"""The one table of result columns: what each is called, its type and unit, what it means and where it comes from.

What writes, reads, checks or documents a column reads this table; `docs/columns.md` is made from it. Beside these
columns, a row may have any number of measurements called `metric/<name>` and `metric/<name>_se`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

Origin = Literal["place", "config", "measured", "status"]

METRIC = "metric/"  # how the names of a task's own measurements begin


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a result, and of any table that the analysis reads.

    `origin`: the run's place in the store, its config and corpus, a measurement, or how it ended. `pooled` says whether
    runs that differ in it may share a fit of a law that does not have it as an input, as `analysis.settings` has it.
    `fields` are the dotted config fields that it stands for.
    """

    name: str
    dtype: Literal["string", "int", "float"]
    unit: str
    meaning: str
    origin: Origin
    pooled: bool = True
    fields: tuple[str, ...] = ()


TABLE = (
    Column("run_id", "string", "", "name of the run: a hash of what determines its result", "place"),
    Column("sweep", "string", "", "the sweep that it was trained or is listed in", "place"),
    Column("family", "string", "", "kind of model", "config", False, ("model.kind",)),
    Column("role", "string", "", "single, branch of a trunk, or trunk, which is no run of a law", "place"),
    Column("parent_run_id", "string", "", "the trunk that a branch starts from", "place"),
    Column("width", "int", "", "width of the model", "config", fields=("model.width",)),
    Column("depth", "int", "layers", "depth of the model", "config", fields=("model.depth",)),
    Column("params", "int", "", "parameters: all weights, a tied head once", "config"),
    Column("params_non_embedding", "int", "", "parameters without embeddings and head", "config"),
    Column("params_with_head", "int", "", "parameters without embeddings, with the head", "config"),
    Column("tokens", "int", "tokens", "training tokens seen: examples × context", "config", fields=("tokens",)),
    Column("examples", "int", "", "training examples seen", "config"),
    Column("unique_tokens", "int", "tokens", "tokens of the training split", "config", False, ("data.train_tokens",)),
    Column("epochs", "float", "", "tokens / unique_tokens", "config"),
    Column("flops", "float", "FLOP", "training cost of the whole run: exact count of matmuls and attention", "config"),
    Column("flops_spent", "float", "FLOP", "of these, what the run itself trained: less where it branches", "config"),
    Column("flops_6nd", "float", "FLOP", "6 · params_non_embedding · tokens", "config"),
    Column("batch_tokens", "int", "tokens", "tokens of one optimizer step", "config", fields=("batch_size",)),
    Column("context", "int", "tokens", "positions of one example", "config", False, ("context",)),
    Column("vocabulary_size", "int", "", "entries of the tokenizer", "config", False,
           ("data.tokenizer.vocabulary_size",)),
    Column("tokenizer_id", "string", "", "identity of the tokenizer", "config", False, ("data.tokenizer.kind",)),
    Column("data_sha256", "string", "", "digest of the documents of both splits", "config"),
    Column("validation_id", "string", "", "digest of the validation tokens", "config", False,
           ("data.validation_tokens",)),
    Column("precision", "string", "", "dtype of compute, and of parameters where it is another", "config", False,
           ("precision.compute", "precision.parameters")),
    Column("parametrization", "string", "", "kind of parametrization", "config", False, ("parametrization.kind",)),
    Column("optimizer", "string", "", "kind of optimizer", "config", False, ("optimizer.kind",)),
    Column("schedule", "string", "", "kind of learning-rate schedule", "config", False, ("schedule.kind",)),
    Column("learning_rate", "float", "", "peak learning rate", "config", fields=("optimizer.learning_rate",)),
    Column("seed", "int", "", "seed of initial weights and of the order of data", "config", fields=("seed",)),
    Column("loss", "float", "nats a token", "validation loss of the last step", "measured"),
    Column("loss_se", "float", "nats a token", "standard error of the loss over the validation set", "measured"),
    Column("perplexity", "float", "", "exp(loss); missing without a vocabulary", "measured"),
    Column("bits_per_byte", "float", "bits a byte", "loss by bytes of text; missing without bytes", "measured"),
    Column("seconds", "float", "s", "training time without compiling", "measured"),
    Column("device", "string", "", "kind of device that it was trained on", "status"),
    Column("status", "string", "", "planned, running, finished, diverged, failed or damaged", "status"),
    Column("reason", "string", "", "why it is not finished", "status"),
)  # fmt: skip

COLUMNS = tuple(column.name for column in TABLE)
MEASURED = tuple(column.name for column in TABLE if column.origin == "measured")  # missing until a run has ended
OF_RUN = ("sweep", "family", "role", "params", "params_non_embedding", "learning_rate", "seed")  # repeated in curves


def measured(name: str) -> bool:
    """Whether a column holds a measurement: one of the table, or of the open set `metric/<name>`."""
    return name in MEASURED or name.startswith(METRIC)


def ordered(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of every column of the table, in its order, and the task's own measurements after them.

    Raises KeyError where one is missing that does not follow from the others.
    """
    row = derived(row)
    return {name: row[name] for name in (*COLUMNS, *(name for name in row if name.startswith(METRIC)))}


def derived(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row, or a point of a curve, with the columns that follow from others and that it lacks: rows of earlier
    versions have neither `perplexity` nor `examples`."""
    more: dict[str, Any] = {}
    if "perplexity" not in row and "loss" in row:
        wordless = "vocabulary_size" in row and row["vocabulary_size"] is None  # a loss that is no cross-entropy
        more["perplexity"] = None if row["loss"] is None or wordless else perplexity(row["loss"])
    if "examples" not in row and row.get("context"):
        more["examples"] = row["tokens"] // row["context"]
    return {**row, **more}


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is no float."""
    return math.exp(loss) if loss < 709.0 else math.inf


def document() -> str:
    """The table as a page of the documentation."""
    lines = [
        "# Columns of a result",
        "",
        "Made from the table in `scaling/store/columns.py`; a test fails where the two differ.",
        "",
        "`pooled`: whether runs that differ in the column may share a fit of a law that does not have it as an input.",
        "After these come a task's own measurements, `metric/<name>` with `metric/<name>_se`, the labels of a sweep,",
        "and every config field in which the runs differ, under its dotted name (`optimizer.weight_decay`).",
        "",
        "| column | type | unit | meaning | from | pooled | config fields |",
        "|---|---|---|---|---|---|---|",
    ]
    for column in TABLE:
        fields = ", ".join(f"`{field}`" for field in column.fields)
        cells = (f"`{column.name}`", column.dtype, column.unit, column.meaning, column.origin,
                 "yes" if column.pooled else "no", fields)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
