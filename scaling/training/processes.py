"""Small values that processes which compute together exchange beside their arrays, over JAX's own service.

JAX's coordination service knows which processes there are, ends all of them where one dies, and keeps a table of keys
that reaches every process whether or not its devices are busy. Each function here is called by all processes in the
same order; a process alone has its result at once. Values are JSON. Process 0 is the leader. JAX is imported where it
is used.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

KEY_PREFIX = "scaling"  # of our keys among those of JAX and Orbax
LOOK_SECONDS = 1.0  # between looks, while waiting, at whether another process has failed
# In which processes that fail by themselves all do so, and after which one that fails knows the others to be elsewhere.
# Less than the time in which JAX ends everything, so that process 0 can still say why.
MEETING_SECONDS = 10.0

GONE = "infrastructure"  # the kind of an error that comes of something that is gone
DEVICE = "JaxRuntimeError"

T = TypeVar("T")


class PartedError(RuntimeError):
    """Processes that computed together are no longer at the same place, and can only be started again, together.

    `kind` is that of the error of the process that failed on its own, or GONE where one stopped answering.
    """

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class LeaderError(RuntimeError):
    """The leader could not do what this process needs of it."""


class _PeerFailedError(PartedError):
    """Another process has failed while this one waited for it."""

    def __init__(self, message: str):
        super().__init__(message, GONE)


_turns = itertools.count()  # of exchanges; all processes count alike
_works = itertools.count(1)  # of what is done together
_work = 0  # the present one
_kept: list[int] = []  # turns whose keys are still in the table


def several() -> bool:
    """Whether this process computes together with others."""
    return count() > 1


def count() -> int:
    """How many processes compute together."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this one is, from 0."""
    import jax

    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_leader() -> bool:
    """Whether this is the one process of all that writes what only one may write; true of a process alone."""
    return index() == 0


def gather(value: Any) -> list[Any]:
    """What each process gives, in their order. Waits for all of them."""
    if not several():
        return [value]
    turn = _turn()
    _client().key_value_set(f"{KEY_PREFIX}/{turn}/{index()}", json.dumps(value))
    given = [json.loads(_wait(f"{KEY_PREFIX}/{turn}/{i}")) for i in range(count())]
    if is_leader():  # all have come to this turn, so that nobody reads those before it any more
        for old in _kept[:-1]:
            _client().key_value_delete(f"{KEY_PREFIX}/{old}")
    del _kept[:-1]
    return given


def broadcast(value: Any = None, meanwhile: Callable[[], object] = lambda: None) -> Any:
    """What the leader gives, for all. The followers wait for it as long as it lives, and call `meanwhile` about once a
    second."""
    if not several():
        return value
    turn = _turn()
    if not is_leader():
        return json.loads(_wait(f"{KEY_PREFIX}/{turn}/0", meanwhile))
    _client().key_value_set(f"{KEY_PREFIX}/{turn}/0", json.dumps(value))
    return value


def by_leader(work: Callable[[], T]) -> T:
    """What `work`, done by the leader, returns, for all. Where it raises, the followers raise LeaderError."""
    if not several():
        return work()
    if not is_leader():
        message = broadcast()
        if "error" in message:
            raise LeaderError(f"process 0: {message['error']}")
        return message["value"]
    try:
        value = work()
    except Exception as error:
        broadcast({"error": describe(error)})
        raise
    broadcast({"value": value})
    return value


def least(number: float | None) -> float | None:
    """The least of the processes' numbers, of those that know one."""
    return min((known for known in gather(number) if known is not None), default=None)


def announce(value: Any) -> None:
    """Publish a value that the other processes do not wait for; the last one of each process counts."""
    _client().key_value_set(f"{KEY_PREFIX}/announced/{index()}", json.dumps(value), allow_overwrite=True)


def announced() -> list[Any]:
    """The values that processes have announced so far; none where this one is alone."""
    return (
        [json.loads(value) for _, value in _client().key_value_dir_get(f"{KEY_PREFIX}/announced")] if several() else []
    )


def together(work: Callable[[], T], kind: Callable[[Exception], str]) -> T:
    """What `work`, done by all processes, returns. Where it raises in all of them, each raises its own error.

    Raises PartedError where it raises in some only, or where a process no longer answers: others may be waiting
    within it without end. Others may also wait where a computation failed because a process is gone, which `kind` calls
    GONE.
    """
    global _work
    if not several():
        return work()
    _work = next(_works)
    try:
        try:
            value = work()
        except Exception as error:
            if _all_failed(error, kind):
                raise
            raise _parted() from error
        try:
            _all_done()
        except _PeerFailedError as error:
            raise _parted() from error
        return value
    finally:
        _work = 0


def _all_failed(error: Exception, kind: Callable[[Exception], str]) -> bool:
    """Whether all processes come here, each with an error of its own doing."""
    own = not isinstance(error, _PeerFailedError) and not (type(error).__name__ == DEVICE and kind(error) == GONE)
    failure = {"kind": kind(error), "own": own, "error": describe(error)}
    try:
        _client().key_value_set(_failed(index()), json.dumps(failure))
        _client().wait_at_barrier(_failed("all"), int(1000 * MEETING_SECONDS))
    except RuntimeError:
        return False
    return all(each["own"] for each in _failures().values())


def _all_done() -> None:
    """Wait until all processes come here. Raises _PeerFailedError where one has failed."""
    _client().key_value_set(f"{KEY_PREFIX}/done/{_work}/{index()}", "")
    for i in range(count()):
        _wait(f"{KEY_PREFIX}/done/{_work}/{i}")
    if is_leader():
        _client().key_value_delete(f"{KEY_PREFIX}/done/{_work - 1}")


def describe(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _turn() -> int:
    turn = next(_turns)
    _kept.append(turn)
    return turn


def _client() -> Any:
    # JAX has no public name for the client of its coordination service; Orbax takes it from the same place.
    from jax._src import distributed

    return distributed.global_state.client


def _wait(key: str, meanwhile: Callable[[], object] = lambda: None) -> str:
    """A key's value, once it is there. Raises _PeerFailedError where a process has failed in the present work."""
    while True:
        try:
            return _client().blocking_key_value_get(key, int(1000 * LOOK_SECONDS))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise _PeerFailedError("process 0, through which the others exchange values, has ended") from error
        if _work and _failures():
            raise _PeerFailedError("another process has failed")
        meanwhile()


def _failed(who: object) -> str:
    return f"{KEY_PREFIX}/failed/{_work}/{who}"


def _failures() -> dict[int, dict[str, Any]]:
    """Which processes have failed in the present work, and how."""
    entries = _client().key_value_dir_get(f"{KEY_PREFIX}/failed/{_work}")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in entries}


def _parted() -> PartedError:
    try:
        failures = dict(sorted(_failures().items()))
    except RuntimeError:  # process 0, which keeps the table, has ended
        failures = {}
    own = {i: each for i, each in failures.items() if each["own"]}
    errors = "; ".join(f"process {i}: {each['error']}" for i, each in (own or failures).items())
    if own:
        return PartedError(
            f"{len(own)} of {count()} processes failed by themselves ({errors})", next(iter(own.values()))["kind"]
        )
    silent = " and ".join(str(i) for i in range(count()) if i not in failures and i != index())
    if silent:
        return PartedError(f"process {silent} of {count()} no longer answers ({errors})", GONE)
    return PartedError(f"a computation of {count()} processes failed ({errors})", GONE)
