"""TFDS' builders of data sets by name: found and checked; their images, classes and splits."""

from __future__ import annotations

import contextlib
import difflib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.config import nearest
from bn_vuln.data import constants
from bn_vuln.data.describe import first_line, format_list
from bn_vuln.data.published import WHOLE, train_test_sizes
from bn_vuln.data.tfds import paths, prepared
from bn_vuln.errors import BnvulnError, UsageError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.features import ClassLabel, Image


def find_builder(name: str) -> DatasetBuilder:
    """Find TFDS' builder of a data set in the data folder. Neither TensorFlow nor the data are needed.

    Args:
        name: A name of TFDS, with its config after a slash and without a version.

    Returns:
        The builder, prepared or not.

    Raises:
        UsageError: TFDS does not know the name or the config, or the set is not one of labelled images.
        BnvulnError: The data set is damaged.
    """
    if not constants.NAME_PATTERN.fullmatch(name):
        raise _unknown(name)
    try:
        import tensorflow_datasets
    except ImportError as error:
        message = (
            f"{name} is not prepared in {paths.data_dir()}, and TensorFlow Datasets, which would, is not installed"
        )
        raise BnvulnError(message) from error

    try:
        with _own_temporary_folder():
            builder = tensorflow_datasets.builder(name, data_dir=str(paths.data_dir()))
    except tensorflow_datasets.core.DatasetNotFoundError:
        raise _unknown(name) from None
    except Exception as error:
        base, _, config = name.partition("/")
        try:
            configs = list(tensorflow_datasets.builder_cls(base).builder_configs)
        except tensorflow_datasets.core.DatasetNotFoundError:  # prepared by code that is not here, and damaged
            configs = [config]
        if config and config not in configs:
            existing = format_list(configs) or "none"
            message = f"{base} has no config {config!r} (it has {existing}){nearest(config, configs)}"
            raise UsageError(message) from None
        folder = paths.data_dir() / name
        remedy = f"; remove {folder} to prepare it again" if folder.exists() else ""
        raise BnvulnError(f"{name}: {first_line(error)}{remedy}") from error
    supervised(name, builder)
    return builder


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Remove the temporary folders of the block: TFDS makes one for each set that is not prepared, and leaves it."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _unknown(name: str) -> UsageError:
    import tensorflow_datasets

    path = Path(name).expanduser()
    if name and path.is_dir():
        return UsageError(f"{name} is a folder: name its images by folder:{name}")
    if name and path.exists():
        return UsageError(
            f"{name}: expected an .npz file with images and labels (x_test, y_test, or x and y), or folder:PATH"
        )
    known, word = ["mnist", *constants.summaries()], re.split("[:/]", name)[0]
    local = [*known, *(found.name for found in prepared.all_prepared())]
    # Of TFDS' many names one is always close, hence the high cutoff.
    others = tensorflow_datasets.list_builders(with_community_datasets=False)
    candidates = difflib.get_close_matches(word, [*local, *others], n=1, cutoff=0.8) or local
    return UsageError(
        f"data set {name!r} is not known (known: {', '.join(known)}, any other image classification set of TFDS, "
        f"a path ending in .npz, folder:PATH){nearest(word, candidates)}"
    )


def supervised(name: str, builder: DatasetBuilder) -> tuple[Image, ClassLabel]:
    """A builder's image, with its `shape` (None for a size that varies), and label, with the `names` of the classes.

    Raises:
        UsageError: It has not one of each, or its images are not square, gray or RGB, and uint8, as far as TFDS
            declares it. The message begins with `name`.
    """
    from tensorflow_datasets import features

    # Some data sets have no dict of features, or nested keys.
    declared = dict(getattr(builder.info.features, "items", dict)())
    keys = builder.info.supervised_keys
    pair = [declared.get(key) for key in keys or () if isinstance(key, str)]
    match pair:
        case [features.Image() as image, features.ClassLabel() as label]:
            height, width, channels = image.shape
            if height == width and channels in (1, 3) and image.np_dtype == np.uint8:
                return image, label
            raise UsageError(
                f"{name}: expected square uint8 images, gray or RGB, received {image.np_dtype.__name__} of shape "
                f"{image.shape}"
            )
    found = format_list(f"{key}: {type(feature).__name__}" for key, feature in declared.items())
    raise UsageError(
        f"{name} is no image classification set: expected an Image and a ClassLabel as its supervised keys, "
        f"received {keys} of the features {found or builder.info.features}"
    )


def split_names(name: str, published: list[str]) -> dict[str, str]:
    """Map splits to TFDS' splits that hold them.

    Args:
        name: The data set, for the error message.
        published: Names of TFDS' splits.

    Returns:
        `train` and `test`, one of them, or `whole` -> TFDS' split. The test split is TFDS' `test`, else its
        `validation`; a set that has only `train` is `whole`.

    Raises:
        UsageError: There is neither a train nor a test split.
    """
    tests = ("validation",) if name.partition("/")[0] in constants.UNLABELLED_TEST else ("test", "validation")
    test = next((split for split in tests if split in published), None)
    names = {split: of_tfds for split, of_tfds in (("train", "train"), ("test", test)) if of_tfds in published}
    if not names:
        raise UsageError(f"{name}: expected a train or a test split, received {', '.join(published) or 'none'}")
    return {WHOLE: "train"} if test is None else names


def sizes(name: str, published: dict[str, int]) -> dict[str, int]:
    """Map `train` and `test` to their sizes, given those of TFDS' splits; `UsageError` as `split_names`."""
    names = split_names(name, list(published))
    if WHOLE in names:
        return train_test_sizes(published["train"])
    return {split: published[of_tfds] for split, of_tfds in names.items()}
