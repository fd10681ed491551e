"""Public tables: the same from the folder and from the source, and never from bytes that are not the source's."""

import dataclasses
import hashlib
import http.server
import io
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

from analysis import datasets, errors
from analysis.datasets import fetching

BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
DOWNLOADED = [name for name, entry in datasets.ENTRIES.items() if entry.sha256 is not None]
Server = tuple[str, dict[str, bytes], list[str]]


class Source(http.server.BaseHTTPRequestHandler):
    """Serves `files` by the last part of the path, 404 for others; the key "cut" announces more than is sent."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + ("cut" in self.files)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A loopback server: its address, the files it serves, and the paths it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []
    handler = type("Handler", (Source,), {"files": files, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", files, asked
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache, no proxy, and no folder of tables unless the test asks for it."""
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SCALING_DATASETS", raising=False)
    return tmp_path / "cache"


NAMED = os.environ.get("SCALING_DATASETS")  # before the fixture `cache` unsets it
FOLDER = pathlib.Path(NAMED or BESIDE)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of the real tables; skipped only where SCALING_DATASETS was unset and none is at hand."""
    if not NAMED and not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is absent: set SCALING_DATASETS to the folder of public tables")
    monkeypatch.setenv("SCALING_DATASETS", str(FOLDER))
    return FOLDER


def raw(name: str, folder: pathlib.Path) -> bytes:
    """The bytes of the public source: kept beside the tables, or put together again from the full-precision table."""
    if name == "besiroglu2024":
        return (folder / "raw" / "svg_extracted_data.csv").read_bytes()
    if name.startswith("clark2022"):
        return (folder / "raw" / "curves.csv.gz").read_bytes()
    if name.startswith("scalebench"):
        return (folder / datasets.ENTRIES[name].file).read_bytes()
    table = pd.read_csv(folder / datasets.ENTRIES[name].file, dtype=str)
    return {"tao2024": tao_source, "alabdulmohsin2022": alabdulmohsin_source}[name](table).encode()


def tao_source(table: pd.DataFrame) -> str:
    """The source's columns in its order: whole numbers are written as floats there."""
    whole = {name: table[name].astype(float).map(repr) for name in ("vocab_size", "embed_dim", "params_non_vocab")}
    flops = table["flops"].astype(float).map(repr)
    columns = [whole["vocab_size"], whole["embed_dim"], table["characters"], whole["params_non_vocab"], flops]
    lines = (",".join(row) for row in zip(*columns, table["loss_unigram_normalised"], strict=True))
    return "\n".join(["vocab_size,embed_dim,num_characters,Non_vocab_parameters,FLOPs,Lossu", *lines, ""])


def alabdulmohsin_source(table: pd.DataFrame) -> str:
    """The source's curves in its order, each LM curve four times, with no newline at the end."""
    nmt = ["6 Enc, 6 Dec", "28 Enc, 6 Dec", "6 Enc, 28 Dec", "Dec-only", "TEnc-LSTM"]
    lm = ["1.68e+07", "1.34e+08", "2.62e+08", "4.53e+08", "1.07e+09"]
    bb = [f"{task}_{shots}-shot" for task in ("date", "ling", "qa", "mult", "unit") for shots in (1, 2)]
    order = [*((table["model"] == m, 1, '"{}"') for m in nmt), *((table["model"] == m, 4, "{}") for m in lm)]
    order += [(table["task"] == task, 1, "{}") for task in bb]
    lines = ["Domain,Task,Model,Seen Examples,Loss,Training"]
    for rows, times, model in order:
        for _ in range(times):
            for row in table[rows].itertuples():
                task = '"' + str(tuple(str(row.task).split("_"))) + '"' if row.domain == "BB" else row.task
                fields = (row.domain, task, model.format(row.model), f"{row.seen}.0", row.loss, row.split == "fit")
                lines.append(",".join(map(str, (*fields[:-1], int(fields[-1])))))
    return "\n".join(lines)


def small(server: Server, **changes: object) -> datasets.Entry:
    """An entry for a table of 3 rows that the server has."""
    address, files, _ = server
    content = b"params,loss\n1,3.5\n2,3.25\n4,3.125\n"
    files["small.csv"] = content
    entry = datasets.Entry(
        name="small", paper="p", repository="o/r", commit="c0ffee", path="data/small.csv", licence="MIT",
        file="small.csv", rows=3, columns={"params": "size", "loss": "nats"}, params_convention="all",
        flops_convention="none", sha256=hashlib.sha256(content).hexdigest(), host=address,
        tidy=lambda content: pd.read_csv(io.BytesIO(content)),
    )  # fmt: skip
    return dataclasses.replace(entry, **changes)


def put(monkeypatch: pytest.MonkeyPatch, entry: datasets.Entry) -> datasets.Entry:
    monkeypatch.setitem(datasets.ENTRIES, entry.name, entry)
    return entry


def nothing_kept(cache: pathlib.Path) -> bool:
    return not list(cache.rglob("*.csv*"))


@pytest.mark.parametrize("name", datasets.NAMES)
def test_each_table_loads_from_the_folder(name: str, tables: pathlib.Path) -> None:
    entry, frame = datasets.ENTRIES[name], datasets.load(name)
    assert len(frame) == entry.rows
    assert frame.index.tolist() == list(range(entry.rows))
    assert not set(entry.renames) & set(frame.columns)
    assert {"params_convention", "flops_convention"} <= set(frame.columns)
    assert frame[["params_convention", "flops_convention"]].notna().all(axis=None)
    assert not frame.columns.duplicated().any()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_download_is_the_same_table(
    name: str, tables: pathlib.Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files, asked = server
    entry = put(monkeypatch, dataclasses.replace(datasets.ENTRIES[name], host=address))
    placed = datasets.load(name)
    assert asked == []  # the folder is looked in first
    files[pathlib.PurePosixPath(entry.path).name] = raw(name, tables)
    monkeypatch.delenv("SCALING_DATASETS")
    pd.testing.assert_frame_equal(datasets.load(name), placed, check_exact=True)
    assert asked == [f"/{entry.repository}/{entry.commit}/{entry.path}"]


def test_what_the_columns_say(tables: pathlib.Path) -> None:
    besiroglu = datasets.load("besiroglu2024")
    np.testing.assert_allclose(besiroglu["flops"], 6 * besiroglu["params"] * besiroglu["tokens"], rtol=1e-12)
    assert besiroglu["excluded_in_published_fit"].sum() == 5
    steplaw = datasets.load("steplaw2025")
    assert steplaw["status"].value_counts().to_dict() == {"finished": 1734, "diverged": 177}
    assert steplaw.loc[steplaw["status"] == "finished", "smoothed_loss"].max() <= 5
    np.testing.assert_allclose(steplaw["batch_tokens"] * steplaw["steps"], steplaw["tokens"], rtol=3e-3)
    np.testing.assert_array_equal(
        steplaw["params"],
        steplaw["layers"] * (4 * steplaw["hidden"] ** 2 + 3 * steplaw["hidden"] * steplaw["ffn_hidden"]),
    )
    porian = datasets.load("porian2024")
    assert porian.groupby("param_count")["params_convention"].nunique().tolist() == [1, 1, 1]
    assert porian["params_convention"].nunique() == 3
    muennighoff = datasets.load("muennighoff2023")
    assert muennighoff["in_published_fit"].sum() == 182
    tao = datasets.load("tao2024")
    assert (tao["loss"] < 0).all()
    assert tao["is_last"].sum() == tao["run"].nunique() == 60
    misfitting = datasets.load("misfitting2025")
    assert (misfitting["params_non_embedding"] < misfitting["params"]).all()


def test_each_entry_says_what_it_is() -> None:
    for name in datasets.NAMES:
        told = datasets.describe(name)
        entry = datasets.ENTRIES[name]
        assert entry.name == name
        assert set(entry.renames) | set(entry.dropped) <= set(entry.columns)
        assert (entry.sha256 is None) == (entry.tidy is None)
        assert entry.sha256 is None or (len(entry.sha256) == 64 and "*" not in entry.url and " " not in entry.url)
        for words in (entry.paper, entry.repository, entry.commit, entry.licence, f"{entry.rows} rows", entry.file):
            assert words in told
        shown = {line.split()[0] for line in told.split("columns:\n")[1].splitlines()}
        kept = {entry.renames.get(column, column) for column in entry.columns if column not in entry.dropped}
        assert shown == kept | set(entry.added)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(errors.Refused, match=r"'porian2025' is unknown; name one of .*porian2024"):
        datasets.load("porian2025")
    with pytest.raises(errors.Refused, match=r"'' is unknown; name one of besiroglu2024"):
        datasets.describe("")


def test_one_download_then_the_cache(server: Server, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files, asked = server
    put(monkeypatch, small(server))
    first = datasets.load("small")
    files.clear()  # the source is gone
    pd.testing.assert_frame_equal(datasets.load("small"), first)
    assert len(asked) == 1
    assert [path.name for path in (cache / "datasets").iterdir()] == [fetching.kept(datasets.ENTRIES["small"]).name]


def test_other_bytes_are_refused_and_not_kept(server: Server, cache: pathlib.Path) -> None:
    entry = small(server)
    server[1]["small.csv"] = b"<html>Sign in to the network</html>"
    found = hashlib.sha256(server[1]["small.csv"]).hexdigest()
    with pytest.raises(errors.Refused, match=f"35 bytes with SHA-256 {found}, but small is {entry.sha256}"):
        datasets.fetch(entry)
    assert nothing_kept(cache)


def test_a_spoilt_cache_is_refused(server: Server) -> None:
    entry = small(server)
    datasets.fetch(entry)
    fetching.kept(entry).write_bytes(b"params,loss\n")
    with pytest.raises(errors.Refused, match=rf"{fetching.kept(entry)} holds 12 bytes .* delete it"):
        datasets.fetch(entry)


def closed(address: str) -> str:
    """An address of loopback where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files, address: (files.clear(), address)[1], "404"),
        (lambda files, address: closed(address), "refused"),
        (lambda files, address: (files.update(cut=b""), address)[1], "IncompleteRead"),
    ],
    ids=["absent", "nobody listens", "cut short"],
)
def test_without_the_source_it_says_what_to_put_where(
    server: Server,
    cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, bytes], str], str],
    reason: str,
) -> None:
    entry = small(server)
    entry = put(monkeypatch, dataclasses.replace(entry, host=spoil(server[1], server[0])))
    with pytest.raises(errors.Refused) as refusal:
        datasets.load("small")
    said = str(refusal.value)
    for part in (reason, entry.url, str(entry.sha256), str(cache / "datasets"), "small.csv", "SCALING_DATASETS"):
        assert part in said
    assert nothing_kept(cache)
    place = pathlib.Path(said.split("put it at ")[1].split(";")[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"params,loss\n1,3.5\n2,3.25\n4,3.125\n")  # as the message says
    assert len(datasets.load("small")) == 3


def test_a_table_that_cannot_be_downloaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (None, tmp_path):
        if folder:
            monkeypatch.setenv("SCALING_DATASETS", str(folder))
        with pytest.raises(errors.Refused) as refusal:
            datasets.load("nakkiran2020")
        said = str(refusal.value)
        for part in (
            "DongWooLee-Eli/nslpfn",
            "10a5a60",
            "data/dd_data.pkl",
            "nakkiran2020_double_descent.csv",
            "x_kind",
        ):
            assert part in said
        assert (str(folder) if folder else "now unset") in said
    with pytest.raises(errors.Refused, match="no known SHA-256"):
        datasets.fetch(datasets.ENTRIES["nakkiran2020"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("params,loss\n1,3.5\n", "has 1 rows, the table has 3"),
        ("params,losses\n1,2\n1,2\n1,2\n", "lacks the columns loss and has losses besides"),
        ("params,loss,extra\n1,2,3\n1,2,3\n1,2,3\n", "lacks the columns none and has extra besides"),
        ("", "cannot be read as csv"),
    ],
)
def test_a_wrong_file_in_the_folder(
    content: str, message: str, server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, small(server))
    (tmp_path / "small.csv").write_text(content)
    monkeypatch.setenv("SCALING_DATASETS", str(tmp_path))
    with pytest.raises(errors.Refused, match=message) as refusal:
        datasets.load("small")
    assert str(tmp_path / "small.csv") in str(refusal.value)


def test_a_parquet_file_that_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_DATASETS", str(tmp_path))
    (tmp_path / "scalebench").mkdir()
    (tmp_path / "scalebench" / "moe_train.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(errors.Refused, match="cannot be read as parquet"):
        datasets.load("scalebench_moe")


def test_a_folder_that_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_DATASETS", str(tmp_path / "mistyped"))
    with pytest.raises(errors.Refused, match="mistyped, which is no folder"):
        datasets.load("besiroglu2024")


def test_a_cache_that_cannot_be_written(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "file"))
    with pytest.raises(errors.Refused, match=r"cannot be written .*set SCALING_CACHE"):
        datasets.fetch(small(server))


def test_a_write_that_fails_leaves_nothing(
    server: Server, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(errors.Refused, match="No space left"):
            datasets.fetch(small(server))
    assert not list((cache / "datasets").iterdir())
