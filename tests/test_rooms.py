"""Who may import whom: the rooms of the house, read from the source and from a fresh interpreter."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "jax", "flax", "optax", "orbax", "wandb", "pandas", "matplotlib", "scipy", "tensorflow", "tensorflow_datasets",
    "grain", "submitit",
)  # fmt: skip


def modules(package: str) -> dict[str, Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(path: Path, *, deferred: bool) -> set[str]:
    """What a file imports, in full names; `deferred` counts imports inside functions too, but never type checking."""

    def visit(node: ast.AST) -> set[str]:
        found: set[str] = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
                continue
            if isinstance(child, ast.Import):
                found |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom) and child.module:
                found |= {child.module, *(f"{child.module}.{alias.name}" for alias in child.names)}
            found |= visit(child)
        return found

    return visit(ast.parse(path.read_text()))


def reaches(names: set[str], *rooms: str) -> set[str]:
    return {name for name in names for room in rooms if name == room or name.startswith(room + ".")}


# From top to bottom: a room imports itself and rooms above it, inside functions too.
ORDER = (
    "human", "schema", "registry", "tables", "counting", "parametrization", "devices", "storage", "config", "memory",
    "store", "data", "planning", "models", "tasks", "training", "worker", "launch", "checks", "commands", "cli",
)  # fmt: skip
SCALING, ANALYSIS = modules("scaling"), modules("analysis")


def room(module: str) -> int:
    """The place in `ORDER` of a module's room; the package itself is above all."""
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else -1


def known(names: set[str]) -> set[str]:
    """Those of the names that are modules of `scaling`."""
    return {name for name in names if name in SCALING}


@pytest.mark.parametrize("module", SCALING)
def test_a_room_imports_rooms_above_it(module: str) -> None:
    found = known(imports(SCALING[module], deferred=True))
    assert {name for name in found if room(name) > room(module)} == set()


def test_no_two_modules_import_each_other() -> None:
    """At import time: what a file imports outside functions, in any number of steps, never leads back to it."""
    graph = {}
    for name, path in SCALING.items():  # of a package that a file lies in, it imports parts, not the package
        found = known(imports(path, deferred=False))
        graph[name] = {other for other in found if not f"{name}.".startswith(f"{other}.")}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " imports ".join((*above[above.index(name) :], name))
        if name not in done:
            for each in sorted(graph[name]):
                visit(each, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_registry_is_the_only_way_down() -> None:
    """Modules are named in strings, so that they are imported when first used, in one file."""
    dynamic = {name for name, path in SCALING.items() if "import_module(" in path.read_text()}
    assert dynamic == {"scaling.registry"}


OUTSIDE = (
    (lambda m: not m.startswith(("scaling.commands", "scaling.cli")), ("analysis", "experiments", "configs")),
    (lambda m: not m.startswith("scaling.training"), ("orbax",)),
)


@pytest.mark.parametrize("module", SCALING)
def test_what_lies_outside_is_imported_where_it_belongs(module: str) -> None:
    found = imports(SCALING[module], deferred=True)
    assert {name for applies, names in OUTSIDE if applies(module) for name in reaches(found, *names)} == set()


@pytest.mark.parametrize("module", ANALYSIS)
def test_the_analysis_knows_no_training(module: str) -> None:
    found = imports(ANALYSIS[module], deferred=True)
    assert reaches(found, "scaling", "experiments", "flax", "optax", "orbax") == set()


LIGHT = [
    "scaling", "scaling.config", "scaling.counting", "scaling.cli", "scaling.planning.plan", "scaling.config.grids",
    "scaling.config.rates", "scaling.store", "scaling.store.lease", "scaling.store.record", "scaling.config.loading",
    "scaling.launch.launchers.local", "scaling.launch.launchers.slurm", "scaling.launch.launchers.ray",
    "scaling.launch.launchers.tpu", "scaling.commands.planning", "scaling.commands.sweeping",
    "scaling.commands.cleaning", "scaling.commands.doctor", "scaling.devices", "scaling.memory", "scaling.store.gc",
]  # fmt: skip


def test_what_plans_and_launches_imports_nothing_heavy() -> None:
    """One interpreter imports them one after another: what is loaded after each must be light."""
    code = (
        f"import importlib, sys\nfor name in {LIGHT}:\n    importlib.import_module(name)\n"
        f"    found = [m for m in {HEAVY} if m in sys.modules]\n    if found: print(name, found); break"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert shown.stdout == ""


def test_a_worker_imports_nothing_that_its_first_step_does_not_need() -> None:
    unused = ("orbax", "pandas", "scipy", "matplotlib", "wandb", "grain", "tensorflow_datasets")
    code = (
        "import sys, scaling.commands.sweeping, scaling.worker.main, scaling.training.loop\n"
        f"print([m for m in {unused} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("module", [*SCALING, *ANALYSIS])
def test_every_module_says_what_it_is_and_stays_short(module: str) -> None:
    path = {**SCALING, **ANALYSIS}[module]
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert len(text.splitlines()) <= 400
    assert path.stem != "utils"


@pytest.mark.parametrize("folder", ["scaling", "analysis", "experiments", "configs", "benchmarks"])
def test_every_folder_is_a_package(folder: str) -> None:
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert [str(each) for each in folders if not (each / "__init__.py").is_file()] == []


def test_a_class_name_means_one_class() -> None:
    where: dict[str, list[str]] = {}
    for package in ("scaling", "analysis", "experiments"):
        for name, path in modules(package).items():
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(name)
    assert {name: places for name, places in where.items() if len(places) > 1} == {}
