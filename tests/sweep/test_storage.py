"""Folders and buckets alike: what a store needs of either, on a real disk and against a real S3 server on loopback."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaling import config, store
from scaling.storage import backends, bucket, retry
from tests import s3, waiting

Make = Callable[..., config.Run]
Fill = Callable[..., list[str]]
RUN = "0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Server]:
    with s3.server() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a store may be: a folder, or a folder of a bucket."""
    if request.param == "folder":
        return str(tmp_path / "store")
    server = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{tmp_path.name}"


@pytest.fixture
def files(place: str) -> backends.Storage:
    return backends.open_storage(place)


def test_a_file_is_created_once_and_replaced_whole(files: backends.Storage) -> None:
    assert files.create("a/b.json", "first")
    assert not files.create("a/b.json", "second")
    assert files.read("a/b.json") == b"first"
    files.replace("a/b.json", "third")
    assert files.read("a/b.json") == b"third"
    assert files.exists("a/b.json")
    assert not files.exists("a/c.json")
    with pytest.raises(FileNotFoundError):
        files.read("a/c.json")


def test_of_many_who_create_a_file_at_once_one_does(files: backends.Storage) -> None:
    won: list[int] = []
    ready = threading.Barrier(8)

    def create(number: int) -> None:
        ready.wait()
        if files.create("one", f"by {number}"):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert files.read("one") == f"by {winner}".encode()


def test_many_are_read_and_listed_at_once(files: backends.Storage) -> None:
    for number in range(40):
        files.replace(f"runs/{number:02d}/result.json", str(number))
    keys = [f"runs/{number:02d}/result.json" for number in range(0, 60, 2)]
    assert files.read_many(keys) == {f"runs/{n:02d}/result.json": str(n).encode() for n in range(0, 40, 2)}
    assert files.read_many(["runs/01/result.json"]) == {"runs/01/result.json": b"1"}
    assert files.read_many([]) == {}
    assert files.present(keys) == set(keys[:20])
    assert files.present(keys[18:22]) == set(keys[18:20])
    more = [f"runs/{number:02d}/result.json" for number in range(60)]
    assert files.present(more) == set(more[:40])
    assert files.names("runs") == [f"{number:02d}" for number in range(40)]
    assert files.names("runs/07") == files.sub("runs/07").names("") == ["result.json"]
    assert files.names("nowhere") == []
    files.remove("runs/07")
    assert "07" not in files.names("runs")
    files.remove("runs/07")


def test_what_was_written_a_moment_ago_by_another_is_seen(place: str) -> None:
    """Nothing is answered from a cache of what was there before."""
    mine, other = backends.open_storage(place), backends.open_storage(place)
    assert mine.names("leases") == []
    assert not mine.exists("leases/1")
    other.create("leases/1", "{}")
    assert mine.names("leases") == ["1"]
    assert mine.exists("leases/1")
    other.replace("leases/1", "[]")
    assert mine.read("leases/1") == b"[]"


def test_large_files_go_there_and_back(files: backends.Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2**16
    (tmp_path / "here").write_bytes(content)
    files.upload(tmp_path / "here", "checkpoints/5/state.npz")
    files.download("checkpoints/5/state.npz", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
    assert files.names("checkpoints/5") == ["state.npz"]
    with pytest.raises(FileNotFoundError):
        files.download("checkpoints/6/state.npz", tmp_path / "none")


def test_time_is_that_of_the_storage(files: backends.Storage) -> None:
    before = files.now()
    files.replace("late", "")
    assert -1.1 < files.modified("late") - before < waiting.LIMIT_SECONDS  # S3 tells whole seconds
    assert files.names("") == ["late"]


def test_a_store_works_in_either(place: str, make_run: Make, fill: Fill) -> None:
    results = store.Store(place)
    assert not results.exists()
    ids = fill(results, [make_run(seed=seed) for seed in range(3)])
    assert results.exists()
    assert results.run_ids() == sorted(ids)
    first, second = (results.claim(ids[0], "me"), results.claim(ids[1], "me"))
    assert results.claim(ids[0], "other") is None
    assert first is not None
    assert second is not None
    for step in (1, 2):
        first.metrics([{"kind": "train", "step": step, "loss": 3.0 - step}])
    first.flush()
    first.metrics([{"kind": "validation", "step": 2, "tokens": 64, "flops": 1.0, "loss": 1.5}])
    row = {**dict.fromkeys(store.COLUMNS), "run_id": ids[0], "status": "finished", "loss": 1.5}
    assert first.publish(row)
    second.fail("ValueError: no", "Traceback")
    assert results.history(ids[0])["loss"].tolist() == [2.0, 1.0]
    assert results.curves()["loss"].tolist() == [1.5]
    assert results.runs("small")["status"].tolist() == ["finished", "failed", "planned"]
    assert results.retry(ids[1])
    assert results.statuses("small") == dict(zip(ids, ["finished", "planned", "planned"], strict=True))
    again = store.Store(place)
    assert again.result(ids[0]) == row
    assert again.claim(ids[0], "late") is None


def test_an_owner_that_does_not_beat_loses_its_run(place: str, make_run: Make, fill: Fill) -> None:
    """By the clock of the storage; the other's host is another one, so that no process can be asked after."""
    results = store.Store(place)
    (run_id,) = fill(results, [make_run()])
    first = results.claim(run_id, "me")
    assert first is not None
    path = f"runs/{run_id}/leases/000001.json"
    results.files.replace(path, results.files.read(path).decode().replace(first._mine.place, "elsewhere"))
    assert results.claim(run_id, "other") is None
    results.lease_seconds = 1.0
    time.sleep(2.2)  # S3 tells whole seconds
    second = results.claim(run_id, "other")
    assert second is not None
    assert (second.attempt, results.status(run_id)["faults"]) == (2, {"vanished": 1})
    first._looked = -float("inf")
    assert first.lost
    assert not first.publish({"status": "finished", "reason": None})
    assert results.result(run_id) is None


def test_rows_in_a_bucket_are_held_back_until_a_checkpoint(
    server: s3.Server, tmp_path: Path, make_run: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write is a request there: rows go out together, in parts, and none is lost where the run is saved or ends."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    results = store.Store(f"s3://{s3.BUCKET}/{tmp_path.name}")
    (run_id,) = fill(results, [make_run()])
    lease = results.claim(run_id, "me")
    assert lease is not None
    for step in range(1, 50):
        lease.metrics([{"kind": "train", "step": step}])
    assert results.files.names(f"runs/{run_id}/metrics") == []
    lease.flush()
    lease.metrics([{"kind": "train", "step": 50}])
    lease.release("asked to stop")
    assert results.files.names(f"runs/{run_id}/metrics") == ["000001-000001.jsonl", "000001-000002.jsonl"]
    assert results.history(run_id)["step"].tolist() == list(range(1, 51))


# What passes and what does not


class Failing(backends.Folder):
    """A folder whose next operations fail."""

    def __init__(self, path: Path, errors: list[OSError]):
        super().__init__(path)
        self.errors = errors

    def replace(self, key: str, text: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        super().replace(key, text)


class Noted:
    """Outages that pass at once."""

    def __init__(self) -> None:
        self.waited: list[str] = []
        self.over = 0

    def wait(self, error: OSError, seconds: float) -> None:
        self.waited.append(str(error))

    def passed(self, seconds: float) -> None:
        self.over += 1


def test_what_passes_is_waited_for_and_done_again(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    away = retry.UnreachableError("no answer")
    waiter = Noted()
    retrying = retry.RetryingStorage(Failing(tmp_path, [full, away, full]), waiter)
    retrying.replace("status.json", "{}")
    assert retrying.read("status.json") == b"{}"
    assert waiter.waited == [str(full), "no answer", str(full)]
    assert waiter.over == 1


def test_what_does_not_pass_is_raised(tmp_path: Path) -> None:
    waiter = Noted()
    retrying = retry.RetryingStorage(Failing(tmp_path, [PermissionError(errno.EACCES, "Permission denied")]), waiter)
    with pytest.raises(PermissionError):
        retrying.replace("status.json", "{}")
    assert waiter.waited == []


def test_a_creation_whose_reply_was_lost_is_ours(files: backends.Storage) -> None:
    if isinstance(files, bucket.Bucket):
        assert files.create("lease", "mine")
        assert files.create("lease", "mine")
        assert not files.create("lease", "another's")


@pytest.mark.parametrize("url", ["http://host/store", "s3://", "s3://bucket/../other", "gs:///x//y"])
def test_a_url_that_is_no_folder_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="store"):
        store.Store(url)


def test_credentials_that_are_missing_are_no_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for until someone looks."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket.fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(PermissionError, match="credentials"):
        backends.open_storage("s3://laws/none").replace("x", "y")
