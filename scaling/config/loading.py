"""Reading a person's files: Python that defines `sweep()` or a kind of one's own, JSON stored with a sweep or a run."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from scaling import config, schema
from scaling.config import imports


def load(path: str | Path, overrides: Sequence[str] = ()) -> config.Sweep:
    """The sweep of a file, with overrides of the form FIELD=VALUE applied and checked.

    A `.py` file has a function `sweep()` without arguments, and may import modules that lie beside it (`imports`). A
    `.json` file is a stored `sweep.json`, or the `config.json` of one run, which becomes a sweep of that run alone.
    Raises ValueError with the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; give a Python file with a function sweep(), or a stored JSON config"
        )
    if path.suffix == ".py":
        sweep = _from_python(path)
    elif path.suffix == ".json":
        sweep = _from_json(path)
    else:
        raise ValueError(f"{path} is neither .py nor .json; a sweep is a Python file, or the JSON stored with it")
    if not overrides:
        return sweep
    return sweep.edit(dict(schema.parse_override(sweep, text) for text in overrides))


def module(path: Path) -> ModuleType:
    """The module of a Python file, which may import what lies beside it (`imports`); its kinds are known from then on.

    Raises ValueError where there is no such file.
    """
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"there is no Python file {path}; give the path of one that ends in .py")
    imports.allow(path)
    name = f"scaling_sweep_{path.stem}_{schema.digest(str(path.absolute()))[:8]}"  # which no other module has
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # so that new families defined in it can be found by name
    spec.loader.exec_module(loaded)
    return loaded


def _from_python(path: Path) -> config.Sweep:
    loaded = module(path)
    if not callable(getattr(loaded, "sweep", None)):
        raise ValueError(
            f"{path} has no function sweep(); define one that takes nothing and returns a scaling.config.Sweep"
        )
    sweep = loaded.sweep()
    if not isinstance(sweep, config.Sweep):
        raise ValueError(f"sweep() of {path} returns a {type(sweep).__name__}; it must return a scaling.config.Sweep")
    return sweep


def _from_json(path: Path) -> config.Sweep:
    try:
        content: Any = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); give the file that was stored with a sweep or a run"
        ) from error
    if isinstance(content, dict) and "run_id" in content and "run" in content:
        run = config.Run.model_validate(content["run"])
        return config.Sweep(name=f"run-{content['run_id']}", base=run)
    if isinstance(content, dict) and "config" in content and "members" in content:
        content = content["config"]
    return config.Sweep.model_validate(content)
