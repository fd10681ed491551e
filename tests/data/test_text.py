"""Corpora: tokenized once, found again without reading, identified by content, whole or absent."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from scaling import config
from scaling.config import sources, tokenizers
from scaling.data import folders, text
from scaling.data.tokenizers import bytes as encoding
from scaling.storage import errors

TOKENIZERS = {"bytes": tokenizers.Bytes(), "bpe": tokenizers.Bpe(vocabulary_size=300)}


def silent(line: str) -> None:
    pass


@pytest.fixture
def data(write_texts) -> config.Data:
    return config.Text(source=write_texts(), tokenizer=tokenizers.Bytes(), validation_tokens=500)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prepares_once_and_finds_it_again(data, kind, monkeypatch):
    data = data.edit({"tokenizer": TOKENIZERS[kind]})
    assert text.find(data) is None
    lines = []
    made = text.prepare(data, lines.append)
    assert f"{made.unique_tokens:,} training" in lines[-1]
    monkeypatch.setattr(sources.Files, "documents", lambda *arguments: pytest.fail("read again"))
    for again in (text.find(data), text.prepare(data, pytest.fail)):
        np.testing.assert_array_equal(again.train, made.train)
        np.testing.assert_array_equal(again.validation, made.validation)
        assert (again.data_sha256, again.validation_id) == (made.data_sha256, made.validation_id)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_the_documents(data, kind):
    data = data.edit({"tokenizer": TOKENIZERS[kind]})
    made = text.prepare(data, silent)
    whole = b"".join(data.source.documents("train"))
    encoder = text.encoder(data, made)
    assert isinstance(made.train, np.memmap)
    assert made.train.dtype == {"bytes": np.uint8, "bpe": np.uint16}[kind]
    assert encoder.decode(made.train) == whole
    assert made.token_bytes[made.train].sum() == len(whole)
    assert made.unique_tokens == len(made.train)
    assert made.vocabulary_size == len(made.token_bytes) == data.tokenizer.vocabulary_size
    assert b"".join(data.source.documents("validation")).startswith(encoder.decode(made.validation))
    assert len(made.validation) == data.validation_tokens + 1


def test_identities_are_of_content_not_of_place_or_tokenizer(write_texts):
    def prepared(source, tokenizer=TOKENIZERS["bytes"], **changes):
        data = config.Text(source=source, tokenizer=tokenizer, validation_tokens=500).edit(changes)
        return text.prepare(data, silent)

    here, there = prepared(write_texts("here")), prepared(write_texts("there/deep"))
    assert here.folder != there.folder
    assert (here.data_sha256, here.validation_id) == (there.data_sha256, there.validation_id)
    pieces = prepared(write_texts("here"), TOKENIZERS["bpe"])
    assert pieces.data_sha256 == here.data_sha256
    assert pieces.validation_id != here.validation_id
    shorter = prepared(write_texts("here"), train_tokens=800)
    assert (shorter.data_sha256, shorter.validation_id) == (here.data_sha256, here.validation_id)
    assert prepared(write_texts("here"), validation_tokens=400).validation_id != here.validation_id
    assert prepared(write_texts("other", seed=1)).data_sha256 != here.data_sha256


def test_train_tokens_takes_the_first_and_no_more_than_there_are(data):
    whole = text.prepare(data, silent)
    part = text.prepare(data.edit({"train_tokens": 777}), pytest.fail)
    assert part.unique_tokens == 777
    np.testing.assert_array_equal(part.train, whole.train[:777])
    with pytest.raises(
        errors.DataError, match=rf"the training split .* has {whole.unique_tokens:,}; lower train_tokens"
    ):
        text.find(data.edit({"train_tokens": whole.unique_tokens + 1}))


def test_validation_tokens_that_are_not_there_are_refused(data):
    with pytest.raises(errors.DataError, match=r"validation_tokens = 9,000,000, but .* can be predicted"):
        text.prepare(data.edit({"validation_tokens": 9_000_000}), silent)


def test_a_changed_file_makes_another_corpus(data, tmp_path):
    before = text.prepare(data, silent)
    file = next(tmp_path.glob("texts/**/*.txt"))
    file.write_text("something else")
    assert text.find(data) is None
    assert text.prepare(data, silent).data_sha256 != before.data_sha256


@pytest.mark.parametrize("harm", ["truncate", "remove", "edit record", "remove record"])
def test_a_damaged_cache_is_told_and_made_again(data, harm):
    made = text.prepare(data, silent)
    expected = np.array(made.train)
    record, tokens = made.folder / "corpus.json", made.folder / "train.bin"
    if harm == "truncate":
        os.truncate(tokens, 100)
    elif harm == "remove":
        tokens.unlink()
    elif harm == "edit record":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"dtype": "uint16"}))
    else:
        record.unlink()
    assert text.find(data) is None
    lines = []
    again = text.prepare(data, lines.append)
    assert "damaged" in lines[0]
    np.testing.assert_array_equal(again.train, expected)


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_dir() or not path.name.endswith(".lock")]


def test_too_little_disk_is_told_before_anything_is_written(data, cache_folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(errors.DiskSpaceError, match=r"needs [\d.,]+ MB in .* free some space or set SCALING_CACHE"):
        text.prepare(data, silent)
    assert leftovers(cache_folder) == ["corpora"]


def test_a_disk_that_fills_up_is_told_and_nothing_stays(data, cache_folder, monkeypatch):
    def fill(encoder, documents):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoding.BytesEncoder, "encode", fill)
    with pytest.raises(errors.DiskSpaceError, match="filled up while it was written; free some space"):
        text.prepare(data, silent)
    assert leftovers(cache_folder) == ["corpora"]


def test_a_cache_that_is_a_file_is_told(data, cache_folder):
    cache_folder.write_text("not a folder")
    with pytest.raises(errors.DataError, match=r"cache folder .* cannot be made.*set SCALING_CACHE"):
        text.prepare(data, silent)


def test_without_locks_the_first_to_finish_wins_and_the_other_uses_it(data, cache_folder, monkeypatch):
    """On a shared disk that ignores locks, a second writer may publish while the first still writes."""
    monkeypatch.setattr(text.cache, "locked", lambda folder: contextlib.nullcontext())
    publish, once = text.cache.publish, iter([None])

    def publish_second(draft, folder):
        for _ in once:
            shutil.copytree(draft, folder)
        publish(draft, folder)

    monkeypatch.setattr(text.cache, "publish", publish_second)
    made = text.prepare(data, silent)
    np.testing.assert_array_equal(text.find(data).train, made.train)
    assert [path.name for path in (cache_folder / "corpora").iterdir()] == [made.folder.name]


def test_a_failure_half_way_leaves_nothing(data, cache_folder, tmp_path):
    (tmp_path / "texts" / "part0" / "bad.txt").write_bytes(b"text with a \0 in it")
    with pytest.raises(errors.DataError, match="byte 0 at offset 12"):
        text.prepare(data, silent)
    assert leftovers(cache_folder) == ["corpora"]


def test_an_empty_corpus_is_refused(data, cache_folder, tmp_path):
    for file in tmp_path.glob("texts/**/*.txt"):
        file.write_text("")
    with pytest.raises(errors.DataError, match="holds no text"):
        text.prepare(data, silent)
    assert leftovers(cache_folder) == ["corpora"]


def test_a_corpus_that_changes_while_it_is_read_is_refused(data, tmp_path, monkeypatch):
    read = sources.Files.documents

    def grow(source, split):
        (tmp_path / "texts" / f"late-{split}.txt").write_text("late")
        return read(source, split)

    monkeypatch.setattr(sources.Files, "documents", grow)
    with pytest.raises(errors.DataError, match="changed while it was read"):
        text.prepare(data, silent)


def test_validation_text_that_is_also_in_training_is_counted(data, tmp_path):
    validation = next(iter(data.source.documents("validation")))
    names = (f"copy{index}.txt" for index in range(100))
    name = next(name for name in names if folders.split_of(name, data.source.validation_fraction) == "train")
    (tmp_path / "texts" / name).write_bytes(validation)
    lines = []
    text.prepare(data, lines.append)
    assert "1 validation documents also stand in the training split" in lines[-1]


def test_two_processes_at_once_make_it_once(data, cache_folder):
    data = data.edit({"tokenizer": TOKENIZERS["bpe"]})
    code = (
        "import sys; from scaling import config; from scaling.data import text; "
        "made = text.prepare(config.Data.from_json(sys.argv[1])); print(made.data_sha256, int(made.train.sum()))"
    )
    command = [sys.executable, "-c", code, data.to_json()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({output[-1] for output in outputs}) == 1
    assert sorted(len(output) for output in outputs)[:2] == [1, 1]
    assert len(list((cache_folder / "corpora").glob("[!.]*"))) == 1
    assert not list((cache_folder / "corpora").glob("*.draft"))


def test_synthetic_corpus_has_the_length_it_says(cache_folder):
    source = sources.Synthetic(alphabet=32, exponent=1, seed=0, train_symbols=5000, validation_symbols=1000)
    data = config.Text(source=source, tokenizer=tokenizers.Bytes(), validation_tokens=999)
    made = text.prepare(data, silent)
    assert made.unique_tokens == 5001  # and the end of the document
    assert (made.validation > 0).all()


def test_python_source_is_found_quickly(python_data):
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        found = text.find(python_data)
        seconds.append(time.process_time() - begun)
    assert found.unique_tokens > 4e6
    assert min(seconds) < 0.05


def test_data_round_trips_through_json_and_refuses_unknown_kinds(data):
    assert config.Data.from_json(data.to_json()) == data
    with pytest.raises(ValueError, match="did you mean 'synthetic'"):
        data.edit({"source": {"kind": "syntetic"}})


def test_what_the_planner_imports_is_light():
    code = (
        "import sys; from scaling import config; from scaling.data import text; "
        "from scaling.config import sources, tokenizers; "
        "found = text.find(config.Text(source=sources.PythonSource(), tokenizer=tokenizers.Bpe(vocabulary_size=512), "
        "validation_tokens=8)); heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'grain', 'tokenizers', 'flax'}; "
        "print(found, sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "None []"
