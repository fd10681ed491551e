"""What is stored of a run before it is trained: its resolved config, and every column that can be counted from it.

No JAX here: a plan of a thousand runs counts them all.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import pydantic

from scaling import config, counting, human, schema, store
from scaling.storage import errors
from scaling.store import columns as table


class Identity(Protocol):
    """What a run's record says of its corpus; a `scaling.data.corpus.Corpus` has these."""

    @property
    def data_sha256(self) -> str: ...
    @property
    def unique_tokens(self) -> int: ...
    @property
    def validation_id(self) -> str: ...
    @property
    def tokenizer_id(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Stored:
    """The identity of a corpus as a record holds it."""

    data_sha256: str
    unique_tokens: int
    validation_id: str
    tokenizer_id: str | None


def config_record(run: config.Run, corpus: Identity) -> dict[str, Any]:
    """What config.json holds: `read` gives back the run, which can be trained again."""
    return {
        "format": store.FORMAT,
        "run_id": run.run_id(corpus.data_sha256),
        "run": run.identity(),
        "data": {field.name: getattr(corpus, field.name) for field in dataclasses.fields(Stored)},
    }


def read(record: Mapping[str, Any]) -> tuple[config.Run, Stored]:
    """The run and the identity of its corpus. Raises UnreadableError where the run's id does not follow from them."""
    run = config.Run.model_validate(record["run"])
    corpus = Stored(**{field.name: record["data"][field.name] for field in dataclasses.fields(Stored)})
    run_id = run.run_id(corpus.data_sha256)
    if run_id != record["run_id"]:
        raise errors.UnreadableError(
            f"the config.json of run {record['run_id']} now has the id {run_id}: it was edited, or is of another "
            "version; start the run's sweep again, which rewrites it, or stores the run under its own id"
        )
    return run, corpus


def counted(results: store.Store, run_id: str) -> dict[str, Any]:
    """The columns of a run that follow from its config. Raises UnreadableError where that is damaged."""
    if run_id not in results.counted:
        stored = results.config(run_id)
        try:
            results.counted[run_id] = {"run_id": run_id, **columns(*read(stored))}
        except pydantic.ValidationError as error:
            path = f"{results.path}/runs/{run_id}/config.json"
            raise errors.UnreadableError(f"{path} is no run here: {schema.describe(error)}") from error
    return results.counted[run_id]


def columns(run: config.Run, corpus: Identity) -> dict[str, Any]:
    """Every column of a result that follows from the config: all but `sweep`, the measured ones and the status.

    `flops_spent` is what the run will have cost, all of `flops`: a run that starts from another one spends less.
    """
    size = (run.model, run.vocabulary_size, run.context)
    flops = counting.flops(*size, run.tokens)
    return {
        "family": run.model.kind,
        "role": "single",
        "parent_run_id": None,
        "width": run.model.width,
        "depth": run.model.depth,
        "params": counting.params(*size),
        "params_non_embedding": counting.params_non_embedding(*size),
        "params_with_head": counting.params_with_head(*size),
        "tokens": run.tokens,
        "examples": run.tokens // run.context,
        "unique_tokens": corpus.unique_tokens,
        "epochs": run.tokens / corpus.unique_tokens,
        "flops": flops,
        "flops_spent": flops,
        "flops_6nd": counting.flops_6nd(*size, run.tokens),
        "batch_tokens": run.batch_tokens,
        "context": run.context,
        "vocabulary_size": run.data.vocabulary_size,
        "tokenizer_id": corpus.tokenizer_id,
        "data_sha256": corpus.data_sha256,
        "validation_id": corpus.validation_id,
        "precision": precision(run.precision),
        "parametrization": run.parametrization.kind,
        "optimizer": run.optimizer.kind,
        "schedule": run.schedule.kind,
        "learning_rate": run.optimizer.learning_rate,
        "seed": run.seed,
    }


def precision(value: config.Precision) -> str:
    """One word for a precision: the dtype of compute, and that of the parameters where it is another."""
    return value.compute if value.compute == value.parameters else f"{value.compute}/{value.parameters}"


def describe(counted: Mapping[str, Any]) -> str:
    """A run in a few words: `transformer 64.2k params 1.2M tokens`."""
    return f"{counted['family']} {human.count(counted['params'])} params {human.count(counted['tokens'])} tokens"


def name_of(counted: Mapping[str, Any], run_id: str) -> str:
    """A run's name for people: what it is, and enough of its id to find it."""
    return f"{counted['family']}-{human.count(counted['params'])}-{human.count(counted['tokens'])}-{run_id[:6]}"


def without_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """A config record without the place of its corpus, which does not determine the result: its content does."""
    data = {key: value for key, value in record["run"]["data"].items() if key != "source"}
    return {**record, "run": {**record["run"], "data": data}}


def difference(old: Any, new: Any, field: str = "") -> str:
    """The first field in which two records differ: `run.tokens: 100 there, 200 here`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{field}.{key}" if field else str(key))
    return f"{field}: {old!r} there, {new!r} here"


def result_row(counted: Mapping[str, Any], labels: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The flat row of a run that ended: its counted columns, its place in a sweep, and what was measured of it.

    `flops` are those of the whole run, which count for a law; `flops_spent` those of the steps that it trained itself.
    """
    place = {key: labels[key] for key in ("family", "role", "parent_run_id") if key in labels}
    return table.ordered({**counted, **place, **measured})
