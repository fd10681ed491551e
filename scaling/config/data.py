"""What a run reads."""

import pydantic

from scaling import schema
from scaling.config import sources, tokenizers


class Data(schema.Config):
    """What a run reads: a source, a tokenizer, and how many tokens of each split.

    `validation_tokens` are the first predicted tokens of the validation split, the same for every run; `train_tokens`
    are the first unique tokens of the training split (None: all of them).
    """

    source: sources.Source
    tokenizer: tokenizers.Tokenizer
    validation_tokens: pydantic.PositiveInt
    train_tokens: pydantic.PositiveInt | None = None
