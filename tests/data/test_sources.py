"""Sources: splits that hold still, errors that say what to do, and a chain whose entropy is what it says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import sources
from scaling.data import folders, python_builder
from scaling.data.sources import python_source as reader
from scaling.data.sources import synthetic as chain
from scaling.storage import errors


def synthetic(**changes) -> sources.Synthetic:
    settings = {"alphabet": 24, "exponent": 1.2, "seed": 3, "train_symbols": 60_000, "validation_symbols": 20_000}
    return sources.Synthetic(**(settings | changes))


class TestSynthetic:
    @given(st.integers(2, 255), st.floats(0, 3), st.integers(0, 2**31))
    @settings(max_examples=12)
    def test_rate_is_the_entropy_of_every_row(self, alphabet, exponent, seed):
        source = synthetic(alphabet=alphabet, exponent=exponent, seed=seed)
        matrix, stationary = chain.transition_matrix(source), chain.stationary(source)
        np.testing.assert_allclose(matrix.sum(axis=1), 1)
        np.testing.assert_allclose(stationary @ matrix, stationary, atol=1e-12)
        np.testing.assert_allclose(stationary.sum(), 1)
        zipf = np.sort(matrix[0])[::-1]
        np.testing.assert_allclose(zipf[1] / zipf[0], 2**-exponent)
        np.testing.assert_allclose(chain.entropy_rate(source), -(zipf * np.log(zipf)).sum(), rtol=1e-9)

    def test_rate_of_equal_probabilities_is_the_logarithm_of_the_alphabet(self):
        assert chain.entropy_rate(synthetic(alphabet=200, exponent=0)) == pytest.approx(np.log(200))

    @pytest.mark.parametrize("split", ["train", "validation"])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_cross_entropy_of_its_own_matrix_is_the_entropy_rate(self, split, seed):
        source = synthetic(seed=seed)
        (document,) = source.documents(split)
        symbols = np.frombuffer(document, np.uint8).astype(int) - 1
        losses = -np.log(chain.transition_matrix(source)[symbols[:-1], symbols[1:]])
        standard_error = losses.std() / np.sqrt(len(losses))
        assert standard_error < 0.01
        assert abs(losses.mean() - chain.entropy_rate(source)) < 4 * standard_error

    def test_chain_follows_its_matrix_and_stationary_distribution(self):
        source = synthetic(alphabet=5, train_symbols=400_000)
        (document,) = source.documents("train")
        symbols = np.frombuffer(document, np.uint8).astype(int) - 1
        counts = np.zeros((5, 5))
        np.add.at(counts, (symbols[:-1], symbols[1:]), 1)
        frequencies = counts / counts.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(frequencies, chain.transition_matrix(source), atol=0.01)
        np.testing.assert_allclose(counts.sum(axis=1) / counts.sum(), chain.stationary(source), atol=0.01)

    def test_splits_and_seeds_are_other_walks_and_repeat_exactly(self):
        source = synthetic(train_symbols=20_000)
        (train,), (validation,) = source.documents("train"), source.documents("validation")
        assert (len(train), len(validation)) == (20_000, 20_000)
        assert (min(train), max(train)) == (1, 24)
        assert train == next(source.documents("train"))
        assert train != validation
        assert train != next(synthetic(train_symbols=20_000, seed=4).documents("train"))

    def test_alphabet_leaves_byte_0_to_the_tokenizer(self):
        with pytest.raises(ValueError, match="255"):
            synthetic(alphabet=256)


class TestFiles:
    def test_every_file_is_in_one_split_and_files_added_later_move_none(self, write_texts):
        source = write_texts(count=40)
        before = {split: set(source.documents(split)) for split in ("train", "validation")}
        assert len(before["train"]) + len(before["validation"]) == 40
        assert before["validation"]
        write_texts(count=60)  # the same first 40, and 20 more
        for split in ("train", "validation"):
            assert before[split] < set(source.documents(split))

    def test_documents_do_not_depend_on_where_the_folder_is(self, write_texts):
        here, there = write_texts("here"), write_texts("somewhere/else")
        assert list(here.documents("train")) == list(there.documents("train"))
        assert here.listing() != there.listing()

    def test_listing_tells_a_changed_file_without_reading_it(self, write_texts, tmp_path):
        source = write_texts()
        before = source.listing()
        assert source.listing() == before
        file = next(tmp_path.glob("texts/**/*.txt"))
        file.chmod(0)
        assert source.listing() == before
        os.utime(file, ns=(1, 1))
        assert source.listing() != before

    def test_glob_without_match_names_the_pattern(self, tmp_path):
        source = sources.Files(glob=f"{tmp_path}/*.txt", validation_fraction=0.1)
        with pytest.raises(FileNotFoundError, match=r"\*\.txt.*matches no file"):
            source.listing()
        with pytest.raises(FileNotFoundError, match="check the path"):
            list(source.documents("train"))

    def test_empty_split_names_a_fraction_that_mends_it(self, write_texts):
        source = write_texts(count=3).edit({"validation_fraction": 1e-6})
        with pytest.raises(ValueError, match="none falls in the validation split") as refusal:
            list(source.documents("validation"))
        fraction = float(re.search(r"above ([\d.]+)", str(refusal.value))[1]) * 1.01
        assert len(list(source.edit({"validation_fraction": fraction}).documents("validation"))) == 1

    def test_one_file_cannot_be_split(self, write_texts):
        source = write_texts(count=1)
        with pytest.raises(ValueError, match="cut the file into several"):
            [list(source.documents(split)) for split in ("train", "validation")]


class TestPythonSource:
    def test_is_megabytes_of_distinct_text_with_no_file_in_both_splits(self, python_data):
        builder = reader.builder(python_data.source, print)
        paths, texts = {}, {}
        for split in ("train", "validation"):
            records = list(builder.as_data_source(split=split))
            paths[split] = [record["path"] for record in records]
            texts[split] = [record["text"] for record in records]
            assert texts[split] == list(python_data.source.documents(split))
        every_path = paths["train"] + paths["validation"]
        every_text = texts["train"] + texts["validation"]
        assert b"json/decoder.py" in every_path
        assert not any(b"site-packages" in path for path in every_path)
        assert len(set(every_path)) == len(every_path)
        assert len(set(every_text)) == len(every_text)
        assert 5e6 < sum(map(len, every_text)) < 60e6
        assert 0.02 < len(paths["validation"]) / len(every_path) < 0.1
        for text in every_text:
            text.decode("utf-8")

    def test_a_second_build_reads_the_first(self, python_data):
        lines = []
        python_data.source.make_ready(lines.append)
        assert lines == []

    def test_a_small_library_is_taken_as_it_is_and_said(self, tmp_path):
        files = []
        for index in range(60):
            (tmp_path / f"{index}.py").write_text(f"x = {index % 50}\n")
            files.append(folders.File(f"{index}.py", str(tmp_path / f"{index}.py"), 7))
        (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
        files.append(folders.File("latin.py", str(tmp_path / "latin.py"), 4))
        lines = []
        builder = python_builder.build(tmp_path / "tfds", "small", files, lines.append)
        assert "less than 5 MB" in lines[0]
        assert sum(len(builder.as_data_source(split=split)) for split in ("train", "validation")) == 50


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """Ten short texts."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(10):
            yield index, {"text": f"text number {index}", "label": index}


class WantsTensorflow(TinyTexts):
    """A builder as many in the catalog are."""

    def _generate_examples(self):
        import tensorflow as tf

        yield 0, {"text": tf.constant("text"), "label": 0}


@pytest.fixture
def tiny(tmp_path) -> sources.Tfds:
    return sources.Tfds(
        name="tiny_texts",
        train_split="train[:70%]",
        validation_split="train[70%:]",
        text_key="text",
        data_dir=str(tmp_path / "tfds"),
    )


class TestTfds:
    def test_reads_a_prepared_dataset_by_name_and_slice(self, tiny, tmp_path):
        TinyTexts(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
        train, validation = list(tiny.documents("train")), list(tiny.documents("validation"))
        assert (len(train), len(validation)) == (7, 3)
        assert {*train, *validation} == {b"text number %d" % index for index in range(10)}

    def test_prepares_by_a_builder_that_needs_no_tensorflow_and_then_lists_it(self, tiny):
        absent = tiny.listing()
        lines = []
        tiny.make_ready(lines.append)
        assert "tiny_texts" in lines[0]
        assert tiny.listing() != absent
        assert len(list(tiny.documents("train"))) == 7
        assert tiny.text_bytes() > 0

    def test_default_folder_is_that_of_tfds(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "mine"))
        tiny.edit({"data_dir": None}).make_ready(lambda line: None)
        assert (tmp_path / "mine" / "tiny_texts" / "1.0.0").is_dir()

    def test_missing_dataset_names_the_folder_and_the_remedy(self, tiny, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"'no_such_thing'.*set data_dir") as refusal:
            tiny.edit({"name": "no_such_thing"}).make_ready()
        assert str(tmp_path) in str(refusal.value)

    def test_builder_that_needs_tensorflow_says_how_to_do_without(self, tiny, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
        with pytest.raises(ValueError, match=r"'wants_tensorflow' needs TensorFlow.*array_record.*data_dir"):
            tiny.edit({"name": "wants_tensorflow"}).make_ready(lambda line: None)

    def test_other_file_format_says_how_to_prepare_it(self, tiny, tmp_path):
        tiny.make_ready(lambda line: None)
        info = next(tmp_path.rglob("dataset_info.json"))
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(errors.DataError, match="not prepared as array_record"):
            list(tiny.documents("train"))

    def test_wrong_field_and_split_are_named_with_those_there_are(self, tiny):
        tiny.make_ready(lambda line: None)
        for key in ("txt", "label"):
            with pytest.raises(ValueError, match=rf"no text field '{key}' \(its text fields: \['text'\]\)"):
                list(tiny.edit({"text_key": key}).documents("train"))
        with pytest.raises(ValueError, match=r"no split 'test' \(its splits: train\)"):
            list(tiny.edit({"train_split": "test"}).documents("train"))
