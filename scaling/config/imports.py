"""What a sweep's Python file imports from beside it: found from its text, importable, and read to be sent elsewhere.

`import my_family` in a sweep file, or in what it imports so, means my_family.py or the package my_family in the file's
own folder, whatever folder the process runs in. Names are looked up in the text of the files, so that the folder itself
never joins `sys.path`: nothing else in it is found by a library that looks for an optional module.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

OWN = ("scaling", "analysis", "experiments", "configs")  # this project, also for a sweep file in its checkout


class BesideFinder(importlib.abc.MetaPathFinder):
    """Finds the modules that lie beside sweep files, each by its name in the folder of the file that imports it."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of a name, where a sweep file imports it from beside it."""
        return _in(self.folders[fullname], fullname) if fullname in self.folders else None


FINDER = BesideFinder()


def allow(path: Path) -> None:
    """Let a sweep file import what lies beside it.

    Raises ValueError where a name could mean two modules: one beside the file and one that is installed, or modules
    beside two sweep files of this process.
    """
    folder = path.absolute().parent
    specs = _beside(path)
    for name, spec in specs.items():
        for other in (_installed(name, folder), _loaded(name, spec), _allowed(name, folder)):
            if other is not None:
                raise ValueError(
                    f"{path} imports {name!r}, which is {_place(spec)} beside it and also {other}; rename the one "
                    "beside it"
                )
    FINDER.folders |= dict.fromkeys(specs, folder)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)  # before sys.path, which may begin with the folder that the process runs in


def sources(path: Path) -> dict[str, str]:
    """The text of a sweep file, and of every file beside it that it imports, by paths relative to its folder.

    Packages are taken whole. Raises ValueError where one is no Python source.
    """
    folder = path.absolute().parent
    files = [path.absolute(), *(file for spec in _beside(path).values() for file in _files(spec))]
    for file in files:
        if file.suffix != ".py":
            raise ValueError(f"{path} imports {file}, which is no Python source; install it where workers run")
    return {file.relative_to(folder).as_posix(): file.read_text("utf-8") for file in dict.fromkeys(files)}


def _beside(path: Path) -> dict[str, ModuleSpec]:
    """The modules beside a file that it imports, directly or through others of them, by their names."""
    importlib.invalidate_caches()  # a file may be new
    folder = path.absolute().parent
    specs: dict[str, ModuleSpec] = {}
    pending = [path.absolute()]
    while pending:
        for name in _imported(pending.pop(), folder):
            spec = None if name in OWN or name in specs else _in(folder, name)
            # Python prefers any module to a folder without __init__.py: one of data or logs takes no name away.
            if spec is not None and not (spec.origin is None and _installed(name, folder)):
                specs[name] = spec
                pending += [file for file in _files(spec) if file.suffix == ".py"]
    return specs


def _imported(file: Path, folder: Path) -> Iterator[str]:
    """The first parts of the names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and file.parent == folder:
            raise ValueError(
                f"{file}, line {node.lineno}: the file is in no package, so that `from {'.' * node.level}"
                f"{node.module or ''} import` finds nothing; write `import NAME` for NAME.py beside it"
            )


def _in(folder: Path, name: str) -> ModuleSpec | None:
    return importlib.machinery.PathFinder.find_spec(name, [str(folder)])


def _files(spec: ModuleSpec) -> list[Path]:
    if spec.submodule_search_locations is not None:
        return sorted(file for place in spec.submodule_search_locations for file in Path(place).rglob("*.py"))
    return [Path(str(spec.origin))]


def _place(spec: ModuleSpec | None) -> str | None:
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return os.path.realpath(next(iter(spec.submodule_search_locations)))
    return os.path.realpath(str(spec.origin)) if spec.has_location else spec.origin


def _installed(name: str, folder: Path) -> str | None:
    """Where a module is that every process finds: of Python itself, or installed. Not in this folder or the present."""
    left_out = (folder, Path.cwd())
    places = [place for place in sys.path if place and Path(place).absolute() not in left_out]
    specs = [importlib.machinery.PathFinder.find_spec(name, places)]
    specs += [finder.find_spec(name, None) for finder in sys.meta_path if _is_other(finder)]
    return next((_place(spec) for spec in specs if spec is not None), None)


def _is_other(finder: object) -> bool:
    """Whether a finder is one of what is installed, for example of an editable installation."""
    return hasattr(finder, "find_spec") and finder not in (FINDER, importlib.machinery.PathFinder)


def _loaded(name: str, spec: ModuleSpec) -> str | None:
    """Where the module of this name comes from that the process has, if it is not the one of `spec`."""
    present = sys.modules.get(name)
    if present is None:
        return None
    there = _place(present.__spec__)
    return None if there == _place(spec) else there or "in this process"


def _allowed(name: str, folder: Path) -> str | None:
    other = FINDER.folders.get(name, folder)
    return None if other == folder else f"in {other}, beside another sweep file of this process"
