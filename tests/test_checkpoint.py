"""Checkpoints: what is saved comes back, the newest of all attempts counts, a damaged one does not stop a run."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.storage import backends, directories
from scaling.training import checkpoint

# Orbax leaves futures behind where a checkpoint cannot be read, which may end after the loop that they were for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, params=["small", "by Orbax", "in a bucket", "in a bucket, behind"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to write a checkpoint: the states here are small enough for one file, and to be sent at once.

    A bucket's directory is used upon a folder here; tests of storages and of a whole sweep have a real server.
    """
    if request.param in ("by Orbax", "in a bucket, behind"):
        monkeypatch.setattr(checkpoint, "SMALL_BYTES", 0)
    if "bucket" in request.param:
        monkeypatch.setattr(directories, "at", lambda place: directories.BucketDirectory(backends.Folder(Path(place))))
    return str(request.param)


def state(value: float) -> dict[str, Any]:
    return {
        "params": {"a.b": jnp.full((3, 2), value), "c": jnp.full((4,), value, jnp.bfloat16)},
        "optimizer": (jnp.asarray(int(value), jnp.int32), [jnp.full((3, 2), -value)]),
    }


def shapes() -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0.0))


def save(folders: list[Path], steps: list[int], fingerprint: str = "mine") -> None:
    saved = checkpoint.Checkpoints(folders, fingerprint)
    for step in steps:
        saved.save(step, state(float(step)), {"seconds": step / 2})
    saved.close()


def restored(folders: list[Path], fingerprint: str = "mine") -> tuple[Any, dict[str, Any]]:
    found = checkpoint.Checkpoints(folders, fingerprint).restore(shapes())
    assert found is not None
    return found


def same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save([tmp_path / "1"], [7])
    found, notes = restored([tmp_path / "1"])
    same(found, state(7.0))
    assert (notes["step"], notes["seconds"], notes["fingerprint"]) == (7, 3.5, "mine")


def test_nothing_is_restored_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert checkpoint.Checkpoints([tmp_path / "no", tmp_path / "empty"], "mine").restore(shapes()) is None
    assert not (tmp_path / "no").exists()


def test_the_newest_step_of_all_attempts_is_restored(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("000001", "000002", "000003")]
    save(folders[:1], [5, 30])
    save(folders[:2], [40])
    save(folders[:3], [20])
    same(restored(folders)[0], state(40.0))


def test_a_save_writes_to_the_last_folder_and_keeps_two(tmp_path: Path) -> None:
    folders = [tmp_path / "000001", tmp_path / "000002"]
    save(folders, [1, 2, 3, 4])
    assert not folders[0].exists()
    assert sorted(int(p.name) for p in folders[1].iterdir() if p.name.isdecimal()) == [3, 4]


def test_an_unfinished_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    save([tmp_path], [3])
    shutil.copytree(tmp_path / "3", tmp_path / "9.orbax-checkpoint-tmp-12")
    same(restored([tmp_path])[0], state(3.0))


def test_a_checkpoint_of_other_shapes_is_not_taken(tmp_path: Path) -> None:
    save([tmp_path], [3])
    wider = jax.tree.map(lambda s: jax.ShapeDtypeStruct((*s.shape, 2), s.dtype, sharding=s.sharding), shapes())
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.Checkpoints([tmp_path], "mine").restore(wider)


def test_steps_to_keep_stay(tmp_path: Path) -> None:
    saved = checkpoint.Checkpoints([tmp_path], "mine", keep=[1])
    for step in (1, 2, 3, 4):
        saved.save(step, state(float(step)), {})
    saved.close()
    assert directories.at(tmp_path).steps() == [1, 3, 4]
    found = checkpoint.Checkpoints([tmp_path], "mine").restore(shapes(), at=1)
    assert found is not None
    same(found[0], state(1.0))


def test_small_states_are_one_file_and_restored_without_orbax(tmp_path: Path, kind: str) -> None:
    save([tmp_path], [3])
    files = [path.name for path in (tmp_path / "3").rglob("*") if path.is_file()]
    assert (files == [directories.FILE]) == (kind != "by Orbax")


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path, damage: str) -> None:
    save([tmp_path], [3, 4])
    for path in (p for p in (tmp_path / "4").rglob("*") if p.is_file()):
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
    if damage == "empty":
        shutil.rmtree(tmp_path / "4")
        (tmp_path / "4").mkdir()
    found, notes = restored([tmp_path])
    same(found, state(3.0))
    assert notes["step"] == 3


def test_where_every_checkpoint_is_damaged_the_error_says_so(tmp_path: Path) -> None:
    save([tmp_path], [3])
    shutil.rmtree(tmp_path / "3")
    (tmp_path / "3").mkdir()
    with pytest.raises(
        ValueError, match=r"none of the checkpoints of this run can be read; remove them to start it again"
    ):
        restored([tmp_path])


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    save([tmp_path], [3, 4], "theirs")
    with pytest.raises(
        ValueError, match=r"4 is a checkpoint of another config \(theirs, not mine\); remove the folder"
    ):
        restored([tmp_path])


def test_all_attempts_are_removed_together(tmp_path: Path) -> None:
    folders = [tmp_path / "000001", tmp_path / "000002"]
    save(folders[:1], [1])
    saved = checkpoint.Checkpoints(folders, "mine")
    saved.save(2, state(2.0), {})
    saved.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_that_is_over_one_step_stays_and_no_empty_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "000001", tmp_path / "000002"]
    save(folders[:1], [1, 2])
    save(folders, [3, 4])
    checkpoint.remove_all_but(folders, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    same(restored(folders)[0], state(4.0))


def test_older_attempts_are_kept_until_this_one_has_written(tmp_path: Path) -> None:
    folders = [tmp_path / "000001", tmp_path / "000002"]
    save(folders[:1], [1])
    saved = checkpoint.Checkpoints(folders, "mine")
    saved.remove_older_attempts()
    assert folders[0].exists()
    saved.save(2, state(2.0), {})
    saved.remove_older_attempts()
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    same(restored(folders)[0], state(2.0))


def test_the_bytes_of_a_state_are_counted() -> None:
    assert checkpoint.size_bytes(state(1.0)) == checkpoint.size_bytes(shapes()) == 24 + 8 + 4 + 24


def test_space_is_asked_for_three_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=180))
    checkpoint.check_space(tmp_path, state(1.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=179))
    with pytest.raises(OSError, match="free some space or put the store on a larger disk"):
        checkpoint.check_space(tmp_path, state(1.0))
