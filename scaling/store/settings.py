"""The config fields of runs under dotted names, read in bulk, and those in which runs differ."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaling import config, schema
from scaling.storage import atomic, backends, errors
from scaling.store import columns, layout

Part = Mapping[str, Any]  # the fields of one part of a run's config (`optimizer`), by dotted name

PLACE = "data.source."  # fields that say where the data lies; what they hold is identified by `data_sha256`


@dataclasses.dataclass
class RunSettings:
    """The fields of many runs. They are kept by part of the config, of which most runs of a sweep share most."""

    runs: dict[str, tuple[Part, ...]] = dataclasses.field(default_factory=dict)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)  # why a run's fields are not known
    _parts: dict[tuple[str, str], Part] = dataclasses.field(default_factory=dict)
    _last: dict[str, tuple[Any, Part]] = dataclasses.field(default_factory=dict)  # most runs are alike the one before

    def read(self, files: backends.Storage, run_ids: Iterable[str]) -> None:
        """Read the configs of runs that are not known yet: configs never change."""
        keys = {f"runs/{run_id}/config.json": run_id for run_id in run_ids if run_id not in self.runs}
        contents = files.read_many(list(keys))
        for key, run_id in keys.items():
            path = f"{files}/{key}"
            self.damaged.pop(run_id, None)
            try:
                if key not in contents:
                    raise errors.UnreadableError(f"{path} is missing; {atomic.remedy(path)}")
                stored = atomic.parse(contents[key], path)
                layout.check_config(path, stored)
                self.add(run_id, stored["run"])
            except errors.UnreadableError as error:  # the other runs are read all the same, and this one's row says why
                self.damaged[run_id] = str(error)

    def add(self, run_id: str, run: Mapping[str, Any]) -> None:
        """Take in the fields of a run, as `Run.identity` gives them."""
        parts = []
        for name, field in config.Run.model_fields.items():
            part = run.get(name, field.default)
            last = self._last.get(name)
            if last is None or last[0] != part:
                last = self._last[name] = part, self._fields(name, field.annotation, part)
            parts.append(last[1])
        self.runs[run_id] = tuple(parts)

    def of(self, run_id: str, fields: Iterable[str]) -> dict[str, Any]:
        """The values of fields; None where a run lacks one."""
        parts = self.runs.get(run_id, ())
        return {field: next((part[field] for part in parts if field in part), None) for field in fields}

    def _fields(self, name: str, annotation: Any, part: Any) -> Part:
        key = (name, repr(part))
        if key not in self._parts:
            self._parts[key] = schema.dotted(annotation, part, name)
        return self._parts[key]

    def all(self, run_ids: Iterable[str]) -> list[str]:
        """Every field of the runs, in the order of the config."""
        fields: dict[str, None] = {}
        for parts in zip(*(self.runs[run_id] for run_id in run_ids if run_id in self.runs), strict=True):
            for part in {id(part): part for part in parts}.values():
                fields |= dict.fromkeys(part)
        return list(fields)

    def differing(self, run_ids: Iterable[str], *, one_corpus: bool) -> list[str]:
        """The fields in which runs differ, in the order of the config.

        Where the data lies does not count for runs of `one_corpus`.
        """
        fields = []
        for parts in zip(*(self.runs[run_id] for run_id in run_ids if run_id in self.runs), strict=True):
            distinct = {id(part): part for part in parts}.values()
            if len(distinct) > 1:
                names = dict.fromkeys(name for part in distinct for name in part)
                fields += [name for name in names if len({repr(part.get(name)) for part in distinct}) > 1]
        return [name for name in fields if not (one_corpus and name.startswith(PLACE))]


def beside(fields: Sequence[str], shown: Iterable[str]) -> list[str]:
    """Those of the fields that no column of a table stands for which shows these columns already."""
    said = {field for column in columns.TABLE if column.name in set(shown) for field in column.fields}
    return [field for field in fields if field not in said]
