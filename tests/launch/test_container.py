"""The Dockerfile, as far as it can be checked without a container engine: its words agree with the rest."""

import re
import shlex
import tomllib
from pathlib import Path

from scaling.launch.launchers.tpu import gke, vm
from tests import test_installation
from tests.launch import golden

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    found = [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", "").splitlines()]
    return [(word, rest) for word, rest in found]


def arguments(word: str) -> list[str]:
    return [rest for each, rest in instructions() if each == word]


def test_what_is_copied_is_there_is_not_ignored_and_is_what_the_code_needs() -> None:
    copied = [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) == kept == set(vm.CODE)
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(packages) <= set(copied)


def test_what_is_installed_is_an_extra_of_ours_under_the_constraints() -> None:
    (install,) = [rest for rest in arguments("RUN") if rest.startswith("pip install")]
    words = shlex.split(install)
    assert words[words.index("--constraint") + 1] == "constraints.txt"
    extras = re.fullmatch(r"\.\[\$EXTRA,(.*)\]", words[-1])
    assert extras is not None
    assert {"tpu", "cuda", *extras[1].split(",")} <= set(PROJECT["optional-dependencies"])
    (allowed,) = re.findall(r"case \"\$EXTRA\" in (.*?)\)", " ".join(arguments("RUN")))
    assert allowed.split(" | ") == ["tpu", "cuda"]


def test_python_is_one_of_the_constraints_that_has_the_newest_jax_and_a_tpu_vm_has_the_same() -> None:
    (version,) = re.findall(r"^python:(\d\.\d+)-slim$", "\n".join(arguments("FROM")))
    assert version in test_installation.PYTHONS
    assert jax(version) == jax(test_installation.PYTHONS[0])
    assert f"uv venv --quiet --python {version} venv" in Path(vm.__file__).with_name("vm_worker.sh").read_text()


def jax(python: str) -> list[str]:
    return [str(pin) for pin in test_installation.pins(python) if pin.name in ("jax", "jaxlib")]


def test_it_starts_our_command_and_not_as_root() -> None:
    assert arguments("ENTRYPOINT") == ['["scaling"]']
    assert PROJECT["scripts"]["scaling"] == "scaling.cli:main"
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert arguments("USER") == ["scaling"]
    # The manifest names its own command, user and folder, so that it works with images made from this one, too.
    text = gke.files(golden.GKE, golden.JOB)["jobset.yaml"]
    assert "- python\n" in text
    assert "runAsUser: 0" in text
