"""What a run reads. How text is read is in `scaling.data.text`; data of one's own define `find` themselves."""

from typing import Any, Literal

import pydantic

from scaling import registry, schema
from scaling.config import sources, tokenizers


class Data(schema.Variant):
    """What a run reads. A kind of one's own defines `find`; all else has a default.

    A run id holds all its fields but `source`, which says where data lie: they count by their content.
    """

    @property
    def vocabulary_size(self) -> int | None:
        """How many values a token may have; None for data without a vocabulary."""
        return None

    def check(self, context: int) -> None:
        """Raise ValueError where examples of `context` positions cannot be made of these settings."""

    def validation_positions(self, context: int) -> int:
        """Positions of all validation examples, to predict how long a run takes; 0 where not known in advance."""
        return 0

    def find(self) -> Any:
        """The corpus (`scaling.data.corpus.Corpus`) if it can be read at once; None where `prepare` has work to do."""
        return registry.required(self, "find")(self)

    def prepare(self, log: sources.Log) -> Any:
        """The corpus, downloaded, tokenized and cached first if need be."""
        prepare = registry.function(self, "prepare")
        corpus = self.find() if prepare is None else prepare(self, log)
        if corpus is None:
            raise ValueError(f"{type(self).__name__}.find returns None, and it has no method 'prepare'; define one")
        return corpus


class Text(Data):
    """Text as a stream of tokens: a source, a tokenizer, and how many tokens of each split.

    `validation_tokens` are the first predicted tokens of the validation split, the same for every run; `train_tokens`
    are the first unique tokens of the training split (None: all of them).
    """

    kind: Literal["text"] = schema.added("text")
    source: sources.Source
    tokenizer: tokenizers.Tokenizer
    validation_tokens: pydantic.PositiveInt
    train_tokens: pydantic.PositiveInt | None = None

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    def check(self, context: int) -> None:
        if self.validation_tokens % context:
            near = max(1, round(self.validation_tokens / context)) * context
            raise ValueError(
                f"data.validation_tokens {self.validation_tokens} is no multiple of context {context}; "
                f"the nearest is {near}"
            )

    def validation_positions(self, context: int) -> int:
        return self.validation_tokens
