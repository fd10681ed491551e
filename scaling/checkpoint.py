"""The only file that knows Orbax: save a run's state at a step, find the newest one, restore it.

Every attempt at a run writes to a folder of its own; a later attempt restores the newest step of all of them. Orbax is
imported when something large is first saved or restored: a run's first steps do not wait for it, and small states, of
which a sweep has many, are written as one file of NumPy's.

Of several processes that train a run together each writes its part, by Orbax, and reads what it needs. Process 0 alone
looks for checkpoints and removes them, so that all go on from the same one. Other processes and devices may restore
them than saved them.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from scaling import processes

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Tree = TypeVar("Tree")
KEPT = 2  # the newest checkpoint, and the one before it should the newest be unreadable
# Up to so many bytes of one process a checkpoint is one file: at 1.6 MB 0.06 of Orbax's CPU time to write (3 of 52 ms)
# and 0.25 to restore (5 of 20 ms), and Orbax need not be imported.
SMALL_BYTES = 2**23
FILE = "state.npz"


class AnotherConfigError(ValueError):
    """A checkpoint belongs to another configuration than the run that would go on from it."""


class DamagedError(ValueError):
    """There are checkpoints of a run, and none can be read."""


class Checkpoints:
    """The checkpoints of one run: `folders` of its attempts, oldest first; only the last is written to.

    `fingerprint` names the configuration: a checkpoint of another one is refused. The steps of `keep` stay when newer
    ones are saved: other runs start from them.
    """

    def __init__(self, folders: Sequence[Path], fingerprint: str, keep: Sequence[int] = ()):
        self.folders = [Path(folder).absolute() for folder in folders]
        self.fingerprint = fingerprint
        self.keep = keep
        self._writer: ocp.CheckpointManager | None = None

    def restore(self, shapes: Tree, at: int | None = None) -> tuple[Tree, dict[str, Any]] | None:
        """The state of the newest readable step and the notes saved with it, or None where there is no checkpoint.

        With `at` only that step will do. `shapes` gives structure, shapes, dtypes and shardings. Raises ValueError for
        a checkpoint of another config, and where there are checkpoints and none can be read.
        """
        damaged = ""
        for step, place in sorted(processes.by_one(lambda: self._found(at)), reverse=True):
            folder = self.folders[place]
            read, wrong = None, ""
            try:
                read = self._read(step, folder, shapes)
            except AnotherConfigError:
                raise
            except Exception as error:  # whatever a file cut short makes Orbax raise: the checkpoint before it may do
                wrong = f"{folder / str(step)}: {type(error).__name__}: {error}\n"
            wrong = "".join(processes.gather(wrong))
            if read is not None and not wrong:
                return read
            damaged += wrong
        if damaged:
            raise DamagedError(
                f"none of the checkpoints of this run can be read; remove them to start it anew\n{damaged}"
            )
        return None

    def _found(self, at: int | None) -> list[list[int]]:
        """Each step that there is a checkpoint of, and in which of the folders."""
        return [[step, i] for i, folder in enumerate(self.folders) for step in steps(folder) if at in (None, step)]

    def _read(self, step: int, folder: Path, shapes: Tree) -> tuple[Tree, dict[str, Any]]:
        if (folder / str(step) / FILE).exists():
            return self._load(step, folder, shapes)
        import orbax.checkpoint as ocp

        with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
            notes = manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
            self._check(folder / str(step), notes)
            return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))).state, notes

    def _load(self, step: int, folder: Path, shapes: Tree) -> tuple[Tree, dict[str, Any]]:
        """What `_dump` wrote. Raises ValueError, KeyError or what NumPy makes of a file that was cut short."""

        def place(path: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
            array = stored[jax.tree_util.keystr(path)]
            if array.dtype.kind == "V":  # as NumPy reads the types that it does not know, such as bfloat16
                array = array.view(wanted.dtype)
            if array.shape != wanted.shape or array.dtype != wanted.dtype:
                raise ValueError(f"{path} is {array.dtype}{array.shape}, not {wanted.dtype}{wanted.shape}")
            return jax.make_array_from_callback(array.shape, wanted.sharding, array.__getitem__)

        with np.load(folder / str(step) / FILE, allow_pickle=False) as stored:
            notes = json.loads(stored["notes"].tobytes())
            self._check(folder / str(step), notes)
            return jax.tree_util.tree_map_with_path(place, shapes), notes

    def _check(self, place: Path, notes: dict[str, Any]) -> None:
        if notes["fingerprint"] != self.fingerprint:
            raise AnotherConfigError(
                f"{place} is a checkpoint of another config ({notes['fingerprint']}, not {self.fingerprint}); remove "
                "the folder or run the config that it belongs to"
            )

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Save: a large state in the background, once it is copied off the devices. Raises OSError for a full disk."""
        notes = {**notes, "step": step, "fingerprint": self.fingerprint}
        if size_bytes(state) <= SMALL_BYTES and not processes.several():
            self._dump(step, state, notes)
            return
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        if self._writer is None:
            folder = self.folders[-1]
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, state, len(self.keep))
            kept = [managers.LatestN(KEPT), managers.CustomSteps(self.keep)]
            options = ocp.CheckpointManagerOptions(preservation_policy=managers.AnyPreservationPolicy(kept))
            self._writer = ocp.CheckpointManager(folder, options=options)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            notes=ocp.args.JsonSave(notes),
        )
        self._writer.save(step, args=arguments)

    def _dump(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Write one file, in a folder that has its name only once it is whole; then drop what need not stay."""
        folder = self.folders[-1]
        folder.mkdir(parents=True, exist_ok=True)
        if not steps(folder):
            check_space(folder, state, len(self.keep))
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
        draft, final = folder / f"{step}.draft", folder / str(step)
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir()
        with open(draft / FILE, "wb") as file:
            arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
            np.savez(file, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        for old in sorted(steps(folder))[:-KEPT]:
            if old not in self.keep:
                shutil.rmtree(folder / str(old))

    def close(self) -> None:
        """Wait until everything is written."""
        if self._writer is not None:
            self._writer.wait_until_finished()
            self._writer.close()
            self._writer = None

    def remove(self) -> None:
        """Remove the checkpoints of all attempts: the run is over and nothing needs them."""
        self.close()
        for folder in self.folders:
            if processes.leads() and folder.is_dir():
                shutil.rmtree(folder)

    def remove_older_attempts(self) -> None:
        """Remove what earlier attempts left, once this attempt has written a checkpoint of its own.

        An attempt that has steps to keep which this one lacks stays.
        """
        self.close()
        if not processes.leads():
            return
        own = steps(self.folders[-1])
        for folder in self.folders[:-1]:
            if own and folder.is_dir() and not set(self.keep) & set(steps(folder)) - set(own):
                shutil.rmtree(folder)


def remove_all_but(folders: Sequence[Path], kept: int | None) -> None:
    """Remove the checkpoints of a run that is over, but for one step, where that is given."""
    for folder in folders:
        for step in steps(folder):
            if step != kept:
                dropped = folder / f"{step}.dropped"  # no longer a checkpoint, from one moment to the next
                with contextlib.suppress(FileNotFoundError):  # another worker is at it
                    (folder / str(step)).rename(dropped)
                    shutil.rmtree(dropped)


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder; an unfinished one has another name until it is renamed."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def size_bytes(state: Any) -> int:
    """Bytes of the arrays of a state, or of their shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def check_space(folder: Path, state: Any, keep: int = 0) -> None:
    """Refuse, before anything is written, a disk that cannot hold the checkpoints kept and the one being written.

    `keep` is the number of those that stay beside the newest. The folder need not exist yet.
    """
    count = KEPT + 1 + keep
    needed = count * size_bytes(state)
    free = processes.by_one(lambda: shutil.disk_usage(_existing(folder)).free)
    if needed > free:
        raise OSError(
            f"checkpoints of this run need {needed / 1e9:.3g} GB ({count} × {needed / count / 1e9:.3g} GB) and "
            f"{folder} has {free / 1e9:.3g} GB free; free some space or put the store on a larger disk"
        )


def _existing(folder: Path) -> Path:
    """The nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
