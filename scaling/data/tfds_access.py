"""TFDS without TensorFlow: find a builder by name, prepare it as array_record, read its text. Imported when used."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from scaling.storage import errors


def find(name: str, data_dir: Path) -> Any:
    """The TFDS builder of a dataset prepared in `data_dir`, or of a registered builder's name.

    Raises MissingDataError where there is neither, DataError where the builder's code needs a package that is not here.
    """
    try:
        with _explaining_imports(name), quiet():
            return tfds.builder(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError as error:
        raise errors.MissingDataError(
            f"no TFDS dataset {name!r} in {data_dir} and no builder of that name; set data_dir to where it was "
            "prepared, import the module that registers its builder, or take a name of tensorflow.org/datasets/catalog"
        ) from error


def is_prepared(builder: Any) -> bool:
    """Whether a builder's dataset is on disk."""
    with quiet():
        return bool(builder.is_prepared())


def prepare(builder: Any) -> None:
    """Download and write a builder's dataset as array_record, without a progress bar of its own."""
    tfds.disable_progress_bar()
    with _explaining_imports(builder.name), quiet():
        builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)


def texts(builder: Any, split: str, text_key: str) -> Iterator[bytes]:
    """The field `text_key` of every record of a split (`train`, or a slice such as `train[95%:]`), in stored order.

    Raises DataError where the dataset has no such field or split, or was not prepared as array_record.
    """
    name, features = builder.info.full_name, builder.info.features
    if text_key not in features or not isinstance(features[text_key], tfds.features.Text):
        text_fields = [key for key in features if isinstance(features[key], tfds.features.Text)]
        raise errors.DataError(f"TFDS dataset {name!r} has no text field {text_key!r} (its text fields: {text_fields})")
    if split.partition("[")[0] not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise errors.DataError(
            f"TFDS dataset {name!r} has no split {split!r} (its splits: {known}); a slice such as 'train[95%:]' will do"
        )
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise errors.DataError(
            f"TFDS dataset {name!r} was not prepared as array_record, the one form that can be read without "
            'TensorFlow; prepare it once with download_and_prepare(file_format="array_record")'
        ) from error
    for index in range(len(records)):
        yield records[index][text_key]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what TFDS prints and warns about on its way; errors still raise."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _explaining_imports(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        remedy = f"install {package}"
        if "tensorflow" in str(error):
            package = "TensorFlow"
            remedy = (
                'prepare it once where TensorFlow is, with download_and_prepare(file_format="array_record"), and set '
                "data_dir to that folder; or install TensorFlow here"
            )
        raise errors.DataError(
            f"the builder of TFDS dataset {name!r} needs {package}, which is not installed; {remedy}"
        ) from error
