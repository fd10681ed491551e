"""Checks of a store: what workers rely on is really tried in it, in a folder of its own that is removed again.

Two threads of this process try to be first with a file; that shows a storage that cannot tell who was, not what two
hosts see of one another's writes.
"""

import concurrent.futures
import contextlib
import errno
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling import config, counting
from scaling import store as stores
from scaling.checks import finding, places
from scaling.config import trackers as tracker_configs
from scaling.storage import atomic, backends, directories
from scaling.store import record

ROUNDS = 10  # how often two try to be first, and how often a file is replaced while it is read
LISTED_SECONDS = 20.0  # how long a listing is waited for
KEPT = directories.KEPT

Check = Callable[[backends.Storage], finding.Finding]


def store(place: str) -> list[finding.Finding]:
    """All checks of the store at a path or URL."""
    try:
        results = stores.Store(place)
    except ValueError as error:
        return [finding.wrong("store", str(error))]
    try:
        findings = [*contents(results), *written(results)]
        return findings if any(each.level == "wrong" for each in findings) else [*findings, *room(results)]
    except OSError as error:
        return [_away(results.files, error)]


def _away(files: backends.Storage, error: OSError) -> finding.Finding:
    return finding.wrong(
        "store",
        f"{files} cannot be reached: {type(error).__name__}: {error}",
        "fix the mount or the connection; for a bucket see AWS_ENDPOINT_URL and its credentials",
    )


# What is there


def contents(results: stores.Store) -> list[finding.Finding]:
    """The sweeps of a store and their formats. Only reads."""
    if not results.exists():
        return [finding.ok("sweeps", f"there is no store at {results.path} yet; the first sweep makes it")]
    names = results.sweeps()
    try:
        runs = len(results.run_ids())
    except ValueError as error:
        return [finding.wrong("sweeps", str(error), "gc, and reading all runs, are refused until then")]
    formats: Counter[str] = Counter()
    for name in names:
        try:
            formats[_format(results, name)] += 1
        except ValueError as error:
            return [finding.wrong("sweeps", str(error), "or give another --store")]
    others = [f"{count} of {age} version" for age, count in formats.items() if age != "this"]
    if others:
        message = f"{len(names)} sweeps, {', '.join(others)} (this one reads format {stores.FORMAT})"
        return [finding.wrong("sweeps", message, "use the version of scaling that wrote them, or another store")]
    return [finding.ok("sweeps", f"{len(names)} sweeps, {runs} runs, all of format {stores.FORMAT}")]


def _format(results: stores.Store, name: str) -> str:
    """Of which version a sweep is: this, a newer, an older. Raises ValueError where it cannot be read."""
    written = results.files.read_json(f"sweeps/{name}/sweep.json").get("format")
    if isinstance(written, int) and written > stores.FORMAT:
        return "a newer"
    try:
        results.sweep(name)
    except ValueError:
        if written == stores.FORMAT:
            raise
        return "an older"
    return "this"


def trackers(results: stores.Store) -> list[config.Tracker]:
    """The trackers that the sweeps of a store ask for, each once; those of sweeps that cannot be read are left out."""
    wanted: list[config.Tracker] = []
    for name in results.sweeps() if results.exists() else ():
        with contextlib.suppress(ValueError):  # `contents` tells of it
            wanted += tracker_configs.stored(results.sweep(name)["config"])
    return list(dict.fromkeys(wanted))


# What is tried


def written(results: stores.Store) -> list[finding.Finding]:
    """Everything that is tried by writing. What was written, and folders that were made for it, are removed."""
    with _scratch(results) as scratch:
        try:
            first = whole(scratch)
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                return [_read_only(results, str(error))]
            return [finding.wrong("write", f"nothing can be written to {results.path}: {error}", "fix that first")]
        findings = [first, *([links(scratch)] if results.local is not None else [])]
        if any(each.level == "wrong" for each in findings):
            return findings
        return [
            *findings,
            exclusive(scratch),
            replaced(scratch),
            listed(scratch),
            clock(scratch, results.heartbeat_seconds, results.lease_seconds),
        ]


def _read_only(results: stores.Store, error: str) -> finding.Finding:
    return finding.wrong(
        "write",
        f"{results.path} is read-only here ({error}): reports and fits work, and no worker can train into it",
        "fix its permissions, or give another --store",
    )


@contextlib.contextmanager
def _scratch(results: stores.Store) -> Iterator[backends.Storage]:
    """A folder in the store for one doctor, removed at the end with the folders above it that were not there."""
    missing = []
    if results.local is not None:
        missing = [folder for folder in (results.local, *results.local.parents) if not folder.exists()]
    name = atomic.draft_name("doctor")  # which gc removes where this process is killed
    try:
        yield results.files.sub(name)
    finally:
        if results.local is None or (results.local / name).exists():
            results.files.remove(name)
        for folder in missing:
            with contextlib.suppress(OSError):  # someone else has begun to use it, or it was never made
                folder.rmdir()


def whole(scratch: backends.Storage) -> finding.Finding:
    """Write a file of some size and read it back."""
    text = "".join(f"{number} λ{secrets.token_hex(8)}\n" for number in range(4000))
    start = time.perf_counter()
    scratch.replace("whole", text)
    read = scratch.read("whole")
    seconds = time.perf_counter() - start
    if read != text.encode():
        message = f"of {len(text.encode())} bytes written {len(read)} came back, and not the same"
        return finding.wrong("write", message, "trust nothing to this storage")
    return finding.ok("write", f"{len(read) // 1000} kB written and read back in {1000 * seconds:.0f} ms")


def links(scratch: backends.Storage) -> finding.Finding:
    """A folder's hard links, by which a file is created where there is none."""
    try:
        scratch.create("linked", "here")
    except ValueError as error:
        return finding.wrong("hard links", str(error), "a store in a bucket needs none")
    return finding.ok("hard links", "there are")


def exclusive(scratch: backends.Storage) -> finding.Finding:
    """Whether of two who create a file at once one alone is told that it is theirs, and it holds what it wrote."""
    texts = ("one", "the other")
    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        for number in range(ROUNDS):
            ready = threading.Barrier(len(texts), timeout=30)

            def create(text: str, key: str = f"first-{number}", ready: threading.Barrier = ready) -> bool:
                ready.wait()
                return scratch.create(key, text)

            won = list(threads.map(create, texts))
            held = scratch.read(f"first-{number}").decode()
            if sum(won) != 1 or held != texts[won.index(True)]:
                return finding.wrong(
                    "exclusivity",
                    f"of two who created one file at once {sum(won)} were told that it is theirs: two workers would "
                    "train one run",
                    "use another file system, or a service with conditional writes (If-None-Match)",
                )
    return finding.ok("exclusivity", f"{ROUNDS} times two created one file at once, and it was one's alone")


def replaced(scratch: backends.Storage) -> finding.Finding:
    """Whether a reader sees a file that is being replaced whole at any moment, and then the new one."""
    texts = ("old" * 20_000, "new" * 20_000)
    scratch.replace("replaced", texts[0])
    ended, broken = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            try:
                if scratch.read("replaced").decode() not in texts:
                    broken.append("a part of it")
            except FileNotFoundError:
                broken.append("no file")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(ROUNDS):
            scratch.replace("replaced", texts[(number + 1) % 2])
    finally:
        ended.set()
        reader.join()
    if broken:
        message = f"who reads a file while it is replaced may find {broken[0]}"
        return finding.wrong("replacing", message, "use another file system")
    scratch.replace("replaced", "last")
    if scratch.read("replaced") != b"last":
        return finding.wrong("replacing", "what is read is not what was written last", "turn off caching of its mount")
    return finding.ok("replacing", f"{ROUNDS} times, and a reader found a whole file each time")


def listed(scratch: backends.Storage) -> finding.Finding:
    """Whether a new file is listed at once, and one that was removed no longer."""
    late = 0.0
    for wanted in (True, False):
        scratch.replace("listed", "here") if wanted else scratch.remove("listed")
        start = time.monotonic()
        while ("listed" in scratch.names("")) != wanted:
            if time.monotonic() - start > LISTED_SECONDS:
                what = "a new file is not listed" if wanted else "a file that was removed is still listed"
                return finding.wrong(
                    "listing", f"{what} after {LISTED_SECONDS:.0f} s", "turn off caching of its mount (NFS: noac)"
                )
            time.sleep(0.05)
        late = max(late, time.monotonic() - start)
    if late > 1:
        return finding.warning(
            "listing", f"it is {late:.1f} s late", "workers find runs of others as late; shorten caching of its mount"
        )
    return finding.ok("listing", "what is written is listed at once")


def clock(scratch: backends.Storage, heartbeat_seconds: float, lease_seconds: float) -> finding.Finding:
    """How far the clocks of this host and of the storage are apart.

    Who may take a run follows from the storage's clock alone. This host's decides what `scaling status` and launchers
    take for running: a lease is renewed every `heartbeat_seconds`, so that a host that is ahead by more than the rest
    of `lease_seconds` takes living runs for dead. Half of that is tolerated.
    """
    before = time.time()
    there = scratch.now()
    after = time.time()
    ahead = (before + after) / 2 - there
    most = lease_seconds - heartbeat_seconds
    difference = f"this host is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the storage"
    tolerance = f"{most / 2:.0f} s are tolerated with leases of {lease_seconds:.0f} s"
    if abs(ahead) <= most / 2:
        return finding.ok("clock", f"{difference}; {tolerance}")
    remedy = "set this host's clock (`timedatectl`, chrony)"
    if ahead > most:
        return finding.wrong("clock", f"{difference}; {tolerance}, and from here running runs look dead", remedy)
    return finding.warning("clock", f"{difference}; {tolerance}", remedy)


# What is needed


def room(results: stores.Store) -> list[finding.Finding]:
    """The room on the store's disk, against what checkpoints of the runs without a result need."""
    if results.local is None:
        return []
    needed, runs, unknown = checkpoint_bytes(results)
    what = f"checkpoints of {runs} runs without a result"
    findings = places.room("disk", Path(results.path), needed if runs else None, what)
    if unknown:
        findings.append(
            finding.warning("disk", f"{unknown} runs are of families or versions not known here", "see to them")
        )
    return findings


def checkpoint_bytes(results: stores.Store) -> tuple[float, int, int]:
    """Bytes of the checkpoints that runs without a result will need at most, while one of them trains at a time.

    Each keeps its last one where its sweep says so, a trunk one for each branch, and the one that trains KEPT and the
    one that it writes. Also gives how many such runs there are, and how many could not be read.
    """
    kept: dict[str, int] = {}
    for name in results.sweeps() if results.exists() else ():
        sweep = results.sweep(name)
        last = config.Execution.model_validate(sweep["config"]["execution"]).keep_last_checkpoint
        members = {member["run_id"]: member["labels"].get("parent_run_id") for member in sweep["members"]}
        ended = results.ended(members)
        for run_id, trunk in members.items():
            if run_id not in ended:
                kept[run_id] = max(kept.get(run_id, 0), int(last))
                if trunk in members and trunk not in ended:
                    kept[trunk] = kept.get(trunk, 0) + 1
    sizes, unknown = [], 0
    total = 0.0
    for run_id, count in kept.items():
        try:
            run, _ = record.read(results.config(run_id))
        except ValueError:  # of a model family that the sweep's own file defines, or of another version
            unknown += 1
            continue
        sizes.append(state_bytes(run))
        total += count * sizes[-1]
    return total + (KEPT + 1) * max(sizes, default=0.0), len(sizes), unknown


def state_bytes(run: config.Run) -> float:
    """Bytes of a checkpoint: parameters, and what the optimizer keeps of each."""
    params = counting.params(run.model, run.vocabulary_size, run.context)
    width = 2 if run.precision.parameters == "bfloat16" else 4
    return params * (width + 4.0 * run.optimizer.state_floats_per_param)
