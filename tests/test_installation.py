"""What `make` installs: the versions of constraints.txt, for each Python that it names, with the newest that runs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
(PYTHONS,) = [line.removeprefix("# Pythons: ").split() for line in LINES if line.startswith("# Pythons: ")]


def applies(requirement: Requirement, python: str, extra: str = "") -> bool:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


def pins(python: str) -> list[Requirement]:
    """The lines of constraints.txt that pip obeys under this Python."""
    return [pin for pin in map(Requirement, filter(lambda x: x[0] != "#", LINES)) if applies(pin, python)]


def needed(python: str) -> set[str]:
    """What the project and its `dev` extra bring under this Python, as far as what is installed here declares it."""
    todo = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            try:
                declared = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # only other Pythons need it
                continue
            todo += [each for each in map(Requirement, declared) if applies(each, python, extra)]
    return {name for name, _ in seen}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_version_is_pinned_once(python: str) -> None:
    names = [canonicalize_name(pin.name) for pin in pins(python)]
    assert sorted(names) == sorted(set(names))
    assert needed(python) - set(names) == set()
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins(python))


def test_the_pythons_are_the_newest_first_down_to_the_oldest_that_is_supported() -> None:
    assert sorted(PYTHONS, key=lambda python: int(python.split(".")[1]), reverse=True) == PYTHONS
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(python in supported for python in PYTHONS)
    major, minor = PYTHONS[-1].split(".")
    assert f"{major}.{int(minor) - 1}" not in supported


# The choice of a Python, among commands that only say what a Python would

TOOLS = ("cp", "grep", "mkdir", "sort", "touch")
COMMAND = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$1 $2" in
"-V ") echo "Python {version}" ;;
"-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-c import ensurepip"*) echo "$0" ;;
"-c "*) exit {old} ;;
esac
"""
# What a command of that name on the path does before it starts the interpreter.
FAILS = "exit 127"
NO_PIP = 'case "$2" in *ensurepip*) exit 1 ;; esac'
SHIM = 'case "${PYENV_VERSION-}" in 3.13.*) ;; *) exit 127 ;; esac'
ALL = ("3.14", "3.13", "3.12", "3.11")


class Machine:
    """A machine with these Pythons, and nothing else that an installation needs."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.venv = folder / "bin", folder / "log", folder / "venv"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def put(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def python(self, version: str, first: str = "") -> None:
        major, minor, _ = version.split(".")
        self.put(f"real-{version}", COMMAND.format(log=self.log, version=version, old=int(int(minor) < 11)))
        self.put(f"python{major}.{minor}", f'#!/bin/sh\n{first}\nexec "{self.bin}/real-{version}" "$@"\n')

    def install(self, *pythons: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [ROOT / ".ci" / "venv", self.venv, *pythons]
        clean = {key: value for key, value in os.environ.items() if key != "PYENV_VERSION"}
        return subprocess.run(
            command, cwd=ROOT, env={**clean, **environment, "PATH": str(self.bin)}, capture_output=True, text=True
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("there", "asked", "environment", "taken"),
    [
        ({"3.13.1": "", "3.12.4": "", "3.11.7": ""}, ALL, {}, "3.13.1"),
        ({"3.14.0": FAILS, "3.12.4": "", "3.11.7": ""}, ALL, {}, "3.12.4"),
        ({"3.13.1": NO_PIP, "3.12.4": ""}, ALL, {}, "3.12.4"),
        ({"3.13.1": SHIM, "3.11.7": ""}, ALL, {}, "3.13.1"),  # by asking pyenv
        ({"3.13.1": SHIM, "3.11.7": ""}, ("python3.13",), {}, "3.13.1"),
        ({"3.13.1": SHIM, "3.11.7": ""}, ALL, {"PYENV_VERSION": "3.11.7"}, "3.11.7"),
        ({"3.13.1": SHIM, "3.11.7": ""}, ALL, {"PYENV_VERSION": "3.13.1"}, "3.13.1"),
        ({"3.13.1": "", "3.11.7": ""}, ("3.11",), {}, "3.11.7"),
    ],
)
def test_the_newest_that_runs_is_taken_and_said(
    machine: Machine, there: dict[str, str], asked: tuple[str, ...], environment: dict[str, str], taken: str
) -> None:
    machine.put("pyenv", "#!/bin/sh\necho 3.11.7\necho 3.13.1\necho 3.13.1-dev\n")
    for version, first in there.items():
        machine.python(version, first)
    ended = machine.install(*asked, **environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{machine.venv}: Python {taken} of {machine.bin / f'real-{taken}'}\n"
    assert f"{machine.venv}/bin/python -m pip install --quiet --no-compile" in machine.log.read_text()


def test_where_none_can_be_taken_that_is_said(machine: Machine) -> None:
    machine.python("3.12.4", FAILS)
    machine.python("3.10.2")
    ended = machine.install(*ALL)
    assert ended.returncode == 3
    assert ended.stderr.startswith("no Python of 3.14 3.13 3.12 3.11 runs here")
    ended = machine.install("python3.10")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Python 3.10.2 at ")
    assert "Python 3.11 or newer is needed" in ended.stderr
    assert not machine.venv.exists()


def test_an_environment_of_another_python_is_made_anew_and_one_that_is_up_to_date_is_left(machine: Machine) -> None:
    made, installed = f"-m venv --clear {machine.venv}", "pip install"

    def counts(*asked: str) -> tuple[int, int]:
        machine.log.write_text("")
        assert machine.install(*asked).returncode == 0
        text = machine.log.read_text()
        return text.count(made), text.count(installed)

    machine.python("3.12.4")
    machine.python("3.11.7")
    assert counts("3.11") == (1, 2)
    assert counts("3.11") == (0, 0)
    assert counts(*ALL) == (1, 2)
    os.utime(machine.venv / "installed", (0, 0))
    assert counts(*ALL) == (0, 2)
