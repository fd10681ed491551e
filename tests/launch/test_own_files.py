"""A sweep file that imports what lies beside it: a family, a tracker and a launcher, as users write them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from scaling import config, store
from scaling.config import imports, loading
from scaling.launch import launcher
from scaling.launch.launchers import ray as rays
from tests import command, conftest

FILES = {
    "own.py": f"""
        import my_family
        from my_tools.launching import Mine
        from my_tools import tracking
        from scaling import config

        def sweep():
            model = {{"kind": "my_lstm", "width": 8, "depth": 1}}
            base = config.Run.model_validate({{**{conftest.TINY!r}, "model": model}})
            return config.Sweep(name="own", base=base, trackers=(tracking.Lines(file="lines.txt"),))
        """,
    "my_family.py": """
        from typing import Literal

        from scaling.config import families

        class MyLstm(families.Lstm):
            kind: Literal["my_lstm"] = "my_lstm"

            def build(self, builder):
                import my_layers

                return my_layers.build(self, builder)
        """,
    "my_layers.py": "from scaling.models.lstm import build",
    "my_tools/__init__.py": "",
    "my_tools/launching.py": """
        from scaling.launch.launchers import local

        class Mine(local.Local):
            kind: str = "mine"
            loud: bool = False

            def start(self, job):
                print("mine starts", job.runs, "loudly" if self.loud else "quietly")
                return super().start(job)
        """,
    "my_tools/tracking.py": """
        from pathlib import Path

        from scaling import config

        class Lines(config.Tracker):
            kind: str = "lines"
            file: Path

            def log(self, rows):
                with open(self.file, "a") as file:
                    file.writelines(f"{row['kind']} {row['step']}\\n" for row in rows)
        """,
    "json5.py": "raise ImportError('nobody imports this')",
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """The first of the files, written with the others."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        (folder / name).write_text("".join(f"{line[margin:]}\n" for line in lines))
    return folder / next(iter(files))


def test_a_sweep_of_ones_own_files_is_planned_tried_and_trained_from_anywhere(tmp_path: Path) -> None:
    file = write(tmp_path / "mine", FILES)
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "my_family.py").write_text("raise ImportError('of the folder that the process runs in')")
    for arguments in (["plan", file], ["train", file, "--steps", "2"]):
        shown = command.process(*arguments, cwd=here)
        assert shown.code == 0, shown.err
        assert "my_lstm" in shown.out
    shown = command.process(
        "sweep", file, "--workers", "1", "--launcher", "mine", "--cluster", "loud=true", "--store", "results", cwd=here
    )
    assert shown.code == 0, shown.out + shown.err
    assert "mine starts 1 loudly" in shown.out
    results = store.Store(here / "results")
    assert list(results.statuses("own").values()) == ["finished"]
    lines = (here / "lines.txt").read_text().splitlines()
    assert len([line for line in lines if line.startswith("train ")]) == 20
    assert lines[-1] == "validation 20"
    # The stored config names kinds that nobody knows without the file.
    stored = here / "results" / "sweeps" / "own" / "sweep.json"
    shown = command.here("plan", stored, cwd=here)
    assert shown.code == 2
    assert "no Family of kind 'my_lstm'" in shown.err
    assert "give the Python file that defines it" in shown.err


def test_the_files_that_are_imported_are_sent_and_no_others(tmp_path: Path) -> None:
    file = write(tmp_path, FILES)
    sent = imports.sources(file)
    assert set(sent) == set(FILES) - {"json5.py"}
    assert next(iter(sent)) == "own.py"
    assert all(text == (tmp_path / name).read_text() for name, text in sent.items())


def test_a_node_that_does_not_see_the_files_gets_them(tmp_path: Path) -> None:
    file = write(tmp_path / "mine", FILES)
    job = launcher.Job("s3://bucket/store", "own", config.Mesh(), 1, config_path=file)
    command, sources = job.worker_command("python of the launcher"), job.sources()
    assert rays.on_node(command, sources) == [sys.executable, *command[1:]]
    (tmp_path / "mine" / "my_layers.py").write_text("changed = True")  # as of a node with an older copy
    *words, path = rays.on_node(command, sources)
    assert words == [sys.executable, *command[1:-1]]
    assert Path(path).parent != file.parent
    assert imports.sources(Path(path)) == sources
    plain = launcher.Job("s3://bucket/store", "own", config.Mesh(), 1)
    assert rays.on_node(plain.worker_command(), plain.sources())[1:] == plain.worker_command()[1:]


SWEEP = """
    {imported}
    from scaling import config
    def sweep():
        return config.Sweep(name="own", base=config.Run.model_validate({run!r}))
    """


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"rich.py": ""}, r"imports 'rich', which is .*rich.py beside it and also .*rich; rename the one beside it"),
        ({"statistics.py": ""}, "imports 'statistics', which is .* and also .*statistics.py"),
        ({"itertools.py": ""}, "imports 'itertools', which is .* and also built-in"),
        ({"helper.py": "import platform", "platform.py": ""}, "imports 'platform', which is"),
        ({".helper.py": ""}, r"line 2: the file is in no package, .* write `import NAME` for NAME.py beside it"),
    ],
)
def test_a_name_that_could_mean_two_modules_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    name = next(iter(files)).removesuffix(".py")
    imported = f"from {name} import x" if name.startswith(".") else f"import {name}"
    file = write(tmp_path, {"own.py": SWEEP.format(imported=imported, run=conftest.TINY), **files})
    with pytest.raises(ValueError, match=message):
        loading.load(file)
    assert not {"helper", "platform"} & set(imports.FINDER.folders)


def test_what_is_beside_and_not_imported_or_only_data_takes_no_name_away(tmp_path: Path) -> None:
    files = {"own.py": SWEEP.format(imported="import rich.table, scaling", run=conftest.TINY), "statistics.py": "1 / 0"}
    for name in ("rich", "scaling", "experiments"):  # logs, or a checkout of this project
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.py").write_text("1 / 0")
    assert loading.load(write(tmp_path, files)).name == "own"


def test_modules_of_one_name_beside_two_sweeps_of_a_process_are_refused(tmp_path: Path) -> None:
    text = SWEEP.format(imported="import my_shared_name", run=conftest.TINY)
    first, second = (
        write(tmp_path / each, {"own.py": text, "my_shared_name.py": f"place = {each!r}"}) for each in ("a", "b")
    )
    assert loading.load(first) == loading.load(first)
    with pytest.raises(ValueError, match=r"imports 'my_shared_name', which is .*/b/my_shared_name.py beside it and"):
        loading.load(second)
    assert sys.modules["my_shared_name"].place == "a"


def test_a_launcher_that_nobody_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"name": "own", "base": conftest.TINY}))
    shown = command.here("sweep", "own.json", "--launcher", "slrum", cwd=tmp_path)
    assert shown.code == 2
    known = "choose one of local, ray, slurm, tpu, or define it in the sweep's file"
    assert f"there is no launcher 'slrum'; did you mean 'slurm'? {known}" in shown.err
    shown = command.here("sweep", "--help", cwd=tmp_path)
    assert "{local,ray,slurm,tpu}" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.json"]
