"""The only file that knows Orbax: save a run's state at a step, find the newest one, restore it.

Each attempt at a run writes to its own directory; a later attempt restores the newest step of all of them. Orbax is
imported when something large is first saved or restored: a run's first steps do not wait for it, and small states, of
which a sweep has many, are written as one file of NumPy's. So are all states in a bucket, where Orbax's many files
would need a folder that processes share.

Of several processes that train a run together each writes its part, by Orbax, and reads what it needs; in a bucket
process 0 writes the whole, which every host gathers first and must have the memory for. Process 0 alone looks for
checkpoints and removes them, so that all go on from the same one. Other processes and devices may restore them than
saved them.
"""

import concurrent.futures
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import jax
import numpy as np

from scaling.storage import backends, cache, directories
from scaling.training import processes

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Tree = TypeVar("Tree")
KEPT = directories.KEPT
# Up to so many bytes of one process a checkpoint is one file: at 1.6 MB 0.06 of Orbax's CPU time to write (3 of 52 ms)
# and 0.25 to restore (5 of 20 ms), and Orbax need not be imported.
SMALL_BYTES = 2**23


class AnotherConfigError(ValueError):
    """A checkpoint belongs to another configuration than the run that would go on from it."""


class DamagedError(ValueError):
    """There are checkpoints of a run, and none can be read."""


class Checkpoints:
    """The checkpoints of one run: `places` of its attempts, oldest first; only the last is written to.

    `fingerprint` names the configuration: a checkpoint of another one is refused. The steps of `keep` stay when newer
    ones are saved: other runs start from them.
    """

    _saving: "ClassVar[Checkpoints | None]" = None  # whichever was saved last

    def __init__(self, places: Sequence[backends.Place], fingerprint: str, keep: Sequence[int] = ()):
        self.directories = [directories.at(place) for place in places]
        self.fingerprint = fingerprint
        self.keep = keep
        self._begun = False  # to save
        self._writer: ocp.CheckpointManager | None = None
        self._sender: concurrent.futures.ThreadPoolExecutor | None = None
        self._sent: concurrent.futures.Future[None] | None = None

    def restore(self, shapes: Tree, at: int | None = None) -> tuple[Tree, dict[str, Any]] | None:
        """The state of the newest readable step and the notes saved with it, or None where there is no checkpoint.

        With `at` only that step will do. `shapes` gives structure, shapes, dtypes and shardings. Raises ValueError for
        a checkpoint of another config, and where there are checkpoints and none can be read.
        """
        damaged = ""
        for step, number in sorted(processes.by_leader(lambda: self._steps(at)), reverse=True):
            place = self.directories[number]
            read, wrong = None, ""
            try:
                read = self._read(step, place, shapes)
            except AnotherConfigError:
                raise
            except Exception as error:  # whatever a file cut short makes Orbax raise: the checkpoint before it may do
                wrong = f"{place}/{step}: {type(error).__name__}: {error}\n"
            wrong = "".join(processes.gather(wrong))
            if read is not None and not wrong:
                return read
            damaged += wrong
        if damaged:
            raise DamagedError(
                f"none of the checkpoints of this run can be read; remove them to start it again\n{damaged}"
            )
        return None

    def _steps(self, at: int | None) -> list[list[int]]:
        """Each step that there is a checkpoint of, and in which of the directories."""
        return [[step, i] for i, each in enumerate(self.directories) for step in each.steps() if at in (None, step)]

    def _read(self, step: int, place: directories.CheckpointDirectory, shapes: Tree) -> tuple[Tree, dict[str, Any]]:
        with place.file(step) as path:
            if path.exists() or not isinstance(place, directories.LocalDirectory):
                return self._load(path, f"{place}/{step}", shapes)
        import orbax.checkpoint as ocp

        # Each process reads by itself: where one cannot, the others must not wait for it within Orbax.
        me = processes.index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
        )
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
        with ocp.CheckpointManager(place.path, options=options) as manager:
            notes = manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
            self._check(f"{place}/{step}", notes)
            return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))).state, notes

    def _load(self, file: Path, name: str, shapes: Tree) -> tuple[Tree, dict[str, Any]]:
        """What `_dump` wrote. Raises ValueError, KeyError or what NumPy makes of a file that was cut short."""

        def place(path: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
            array = stored[jax.tree_util.keystr(path)]
            if array.dtype.kind == "V":  # as NumPy reads the types that it does not know, such as bfloat16
                array = array.view(wanted.dtype)
            if array.shape != wanted.shape or array.dtype != wanted.dtype:
                raise ValueError(f"{path} is {array.dtype}{array.shape}, not {wanted.dtype}{wanted.shape}")
            return jax.make_array_from_callback(array.shape, wanted.sharding, array.__getitem__)

        with np.load(file, allow_pickle=False) as stored:
            notes = json.loads(stored["notes"].tobytes())
            self._check(name, notes)
            return jax.tree_util.tree_map_with_path(place, shapes), notes

    def _check(self, place: str, notes: dict[str, Any]) -> None:
        if notes["fingerprint"] != self.fingerprint:
            raise AnotherConfigError(
                f"{place} is a checkpoint of another config ({notes['fingerprint']}, not {self.fingerprint}); remove "
                "the folder or run the config that it belongs to"
            )

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Save: a large state in the background, once it is copied off the devices. Raises OSError for a full disk."""
        notes = {**notes, "step": step, "fingerprint": self.fingerprint}
        place = self.directories[-1]
        if not isinstance(place, directories.LocalDirectory):
            self._send(step, state, notes)
            return
        if not self._begun:
            check_space(place.path, state, len(self.keep))
            self._begun = True
        if size_bytes(state) <= SMALL_BYTES and not processes.several():
            self._put(step, _whole(state), notes)
            return
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        if self._writer is None:
            place.path.mkdir(parents=True, exist_ok=True)
            kept = [managers.LatestN(KEPT), managers.CustomSteps(self.keep)]
            options = ocp.CheckpointManagerOptions(preservation_policy=managers.AnyPreservationPolicy(kept))
            self._writer = ocp.CheckpointManager(place.path, options=options)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            notes=ocp.args.JsonSave(notes),
        )
        other, Checkpoints._saving = Checkpoints._saving, self
        if processes.several() and other is not None and other._writer is not None:
            other._writer.wait_until_finished()  # what processes wait for bears the same name in all that are saved
        self._writer.save(step, args=arguments)

    def _send(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Write to a bucket, in the background where that takes a while."""
        self._wait()
        leaves = _whole(state)
        if not processes.is_leader():
            return
        if size_bytes(state) <= SMALL_BYTES:
            self._put(step, leaves, notes)
            return
        if self._sender is None:
            self._sender = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._sent = self._sender.submit(self._put, step, leaves, notes)

    def _put(self, step: int, leaves: Mapping[str, np.ndarray], notes: dict[str, Any]) -> None:
        """Write one file; then drop what need not stay."""
        place = self.directories[-1]

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **leaves)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())

        place.put(step, write)
        for old in place.steps()[:-KEPT]:
            if old not in self.keep:
                place.drop(old)

    def _wait(self) -> None:
        """Wait until what is sent is there. Raises what went wrong with it."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def close(self) -> None:
        """Wait until everything is written."""
        if self._writer is not None:
            self._writer.wait_until_finished()
            self._writer.close()
            self._writer = None
        self._wait()
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None

    def remove(self) -> None:
        """Remove the checkpoints of all attempts: the run is over and nothing needs them."""
        self.close()
        if processes.is_leader():
            for place in self.directories:
                place.clear()

    def remove_older_attempts(self) -> None:
        """Remove what earlier attempts left, once this attempt has written a checkpoint of its own.

        An attempt that has steps to keep which this one lacks stays.
        """
        self.close()
        if not processes.is_leader():
            return
        own = self.directories[-1].steps()
        for place in self.directories[:-1]:
            if own and not set(self.keep) & set(place.steps()) - set(own):
                place.clear()


def _whole(state: Any) -> dict[str, np.ndarray]:
    """All numbers of a state on this host, by their path in it. To be called by all processes."""
    if processes.several():
        from jax.experimental import multihost_utils

        state = multihost_utils.process_allgather(state, tiled=True)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def remove_all_but(places: Sequence[backends.Place], kept: int | None) -> None:
    """Remove the checkpoints of a run that is over, but for one step, where that is given."""
    for place in map(directories.at, places):
        for step in place.steps():
            if step != kept:
                place.drop(step)
        if not place.steps():
            place.clear()


def size_bytes(state: Any) -> int:
    """Bytes of the arrays of a state, or of their shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def check_space(place: backends.Place, state: Any, keep: int = 0) -> None:
    """Refuse, before anything is written, a disk that cannot hold the checkpoints kept and the one being written.

    `keep` is the number of those that stay beside the newest. The folder need not exist yet; a bucket has room.
    """
    if isinstance(place, backends.Storage):
        return
    folder = Path(place)
    count = KEPT + 1 + keep
    needed = count * size_bytes(state)
    free = processes.by_leader(lambda: cache.free_bytes(folder))
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"checkpoints of this run need {needed / 1e9:.3g} GB ({count} × {needed / count / 1e9:.3g} GB) and "
            f"{folder} has {free / 1e9:.3g} GB free; free some space or put the store on a larger disk",
        )
