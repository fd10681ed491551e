"""Tokenizers: text comes back byte for byte, and every token knows how many bytes it stands for."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config import tokenizers
from scaling.data.tokenizers import bpe
from scaling.data.tokenizers import bytes as encoding
from scaling.storage import errors

TRAINING_TEXT = [
    b"def attention(query, key, value):\n    return softmax(query @ key.T) @ value\n" * 3,
    b"the cat sat on the mat; the dog sat on the log\n" * 3,
    "l'été où naïveté rime avec déjà-vu — 日本語も少し\n".encode() * 3,
    b"print('<|endoftext|>', 'and the rest of the text')\n" * 3,
]
documents_of_text = st.lists(st.text().map(str.encode), min_size=1, max_size=5)


@functools.cache
def trained_encoder() -> bpe.BpeEncoder:
    return bpe.BpeEncoder(bpe._train(tokenizers.Bpe(vocabulary_size=330), iter(TRAINING_TEXT)).to_str())


class TestBytes:
    @given(st.lists(st.binary().map(lambda document: document.replace(b"\0", b"")), max_size=5))
    def test_round_trip_and_sum_of_bytes(self, documents):
        encoder = encoding.BytesEncoder()
        tokens = encoder.encode(documents)
        assert encoder.decode(tokens) == b"".join(documents)
        assert encoder.token_bytes()[tokens].sum() == sum(map(len, documents))
        assert (tokens == 0).sum() == len(documents)

    def test_a_document_with_byte_0_is_refused_where_it_stands(self):
        with pytest.raises(errors.DataError, match="byte 0 at offset 3"):
            encoding.BytesEncoder().encode([b"fine", b"bad\0", b"fine"])

    def test_vocabulary_size_is_no_choice(self):
        with pytest.raises(ValueError, match="256"):
            tokenizers.Bytes(vocabulary_size=512)


class TestBpe:
    @given(documents_of_text)
    def test_round_trip_and_sum_of_bytes_of_any_text(self, documents):
        encoder = trained_encoder()
        tokens = encoder.encode(documents)
        assert encoder.decode(tokens) == b"".join(documents)
        assert encoder.token_bytes()[tokens].sum() == sum(map(len, documents))
        assert (tokens == encoder.vocabulary_size - 1).sum() == len(documents)

    def test_merges_shorten_text_like_that_it_was_trained_on(self):
        encoder = trained_encoder()
        assert len(encoder.encode(TRAINING_TEXT)) < 0.6 * sum(map(len, TRAINING_TEXT))

    def test_text_that_spells_an_end_mark_is_only_text(self):
        encoder = trained_encoder()
        text = b"<|endoftext|><|end|></s>"
        tokens = encoder.encode([text])
        assert encoder.token_bytes()[tokens].sum() == len(text)
        assert (encoder.token_bytes()[tokens] == 0).sum() == 1

    def test_reaches_its_vocabulary_exactly_and_the_same_at_each_training(self, tmp_path):
        config = tokenizers.Bpe(vocabulary_size=300)
        first, second = (config.build(tmp_path / name, lambda: iter(TRAINING_TEXT)) for name in "ab")
        assert first.vocabulary_size == 300 == len(first.token_bytes())
        assert (first.token_bytes() == 0).sum() == 1
        assert first.id == second.id != trained_encoder().id
        assert sorted(text for text in first._texts if len(text) == 1) == [bytes([byte]) for byte in range(256)]

    def test_is_read_back_without_the_corpus(self, tmp_path):
        config = tokenizers.Bpe(vocabulary_size=300)
        built = config.build(tmp_path, lambda: iter(TRAINING_TEXT))

        def refuse():
            raise AssertionError("trained again")

        np.testing.assert_array_equal(config.build(tmp_path, refuse).encode([b"the cat"]), built.encode([b"the cat"]))

    def test_too_large_a_vocabulary_names_the_largest_that_works(self, tmp_path):
        with pytest.raises(errors.DataError, match=r"vocabulary_size = 5,000 but") as refusal:
            tokenizers.Bpe(vocabulary_size=5000).build(tmp_path, lambda: iter(TRAINING_TEXT))
        assert not list(tmp_path.iterdir())
        largest = int(re.search(r"supports ([\d,]+)", str(refusal.value))[1].replace(",", ""))
        encoder = tokenizers.Bpe(vocabulary_size=largest).build(tmp_path, lambda: iter(TRAINING_TEXT))
        assert encoder.vocabulary_size == largest

    def test_bytes_that_are_no_text_are_refused(self):
        with pytest.raises(errors.DataError, match="not UTF-8 at byte 2"):
            trained_encoder().encode([b"ab\xff"])


def test_configs_round_trip_through_json():
    for config in (tokenizers.Bytes(), tokenizers.Bpe(vocabulary_size=1024)):
        assert tokenizers.Tokenizer.model_validate_json(config.to_json()) == config
