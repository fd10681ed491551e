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


@pytest.mark.parametrize(
    "module", [m for m in modules("scaling") if not m.startswith(("scaling.commands", "scaling.cli"))]
)
def test_nothing_in_scaling_knows_the_analysis_or_the_experiments(module: str) -> None:
    assert reaches(imports(modules("scaling")[module], deferred=True), "analysis", "experiments", "configs") == set()


@pytest.mark.parametrize("module", modules("analysis"))
def test_the_analysis_knows_no_models_and_no_training(module: str) -> None:
    training = (
        "models",
        "loop",
        "members",
        "step",
        "optim",
        "data",
        "mesh",
        "checkpoint",
        "launch",
        "tracking",
        "cli",
        "commands",
    )
    names = imports(modules("analysis")[module], deferred=True)
    assert reaches(names, *(f"scaling.{room}" for room in training), "experiments") == set()
    assert reaches(names, "flax", "optax", "orbax") == set()


@pytest.mark.parametrize(
    "module", [m for m in modules("scaling") if not m.startswith(("scaling.commands", "scaling.cli"))]
)
def test_only_the_command_line_imports_the_commands(module: str) -> None:
    assert reaches(imports(modules("scaling")[module], deferred=True), "scaling.commands", "scaling.cli") == set()


@pytest.mark.parametrize("module", [m for m in modules("scaling") if m != "scaling.training.checkpoint"])
def test_only_checkpoint_knows_orbax(module: str) -> None:
    assert reaches(imports(modules("scaling")[module], deferred=True), "orbax") == set()


@pytest.mark.parametrize("module", [m for m in modules("scaling") if m.startswith("scaling.models")])
def test_models_know_no_data_and_no_training(module: str) -> None:
    rooms = ("data", "loop", "members", "step", "optim", "loss", "sweep", "launch", "checkpoint", "config", "tracking")
    assert reaches(imports(modules("scaling")[module], deferred=True), *(f"scaling.{room}" for room in rooms)) == set()


@pytest.mark.parametrize("module", [m for m in modules("scaling") if m.startswith("scaling.data")])
def test_data_knows_no_models_no_loop_and_no_sweeps(module: str) -> None:
    rooms = ("models", "loop", "members", "step", "optim", "sweep", "launch", "config")
    assert reaches(imports(modules("scaling")[module], deferred=True), *(f"scaling.{room}" for room in rooms)) == set()


LIGHT = [
    "scaling", "scaling.config", "scaling.counting", "scaling.cli", "scaling.planning.plan", "scaling.config.grids",
    "scaling.config.rates", "scaling.store",
    "scaling.store.lease", "scaling.store.record", "scaling.config.loading",
    "scaling.launch.local", "scaling.launch.slurm", "scaling.launch.ray", "scaling.commands.planning",
    "scaling.commands.sweeping", "scaling.commands.cleaning", "scaling.commands.doctor", "scaling.devices",
    "scaling.memory", "scaling.store.gc",
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


@pytest.mark.parametrize("module", [*modules("scaling"), *modules("analysis")])
def test_every_module_says_what_it_is_and_stays_short(module: str) -> None:
    path = {**modules("scaling"), **modules("analysis")}[module]
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert len(text.splitlines()) <= 420
    assert path.stem != "utils"


@pytest.mark.parametrize("folder", ["scaling", "analysis", "experiments", "configs", "benchmarks"])
def test_every_folder_is_a_package(folder: str) -> None:
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert [str(each) for each in folders if not (each / "__init__.py").is_file()] == []
