"""Examples and info of TFDS' data sets: read into memory, statistics computed once and stored beside the data."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bn_vuln.data import constants
from bn_vuln.data.describe import first_line
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import WHOLE, Split, channel_statistics, statistics, train_test_split
from bn_vuln.data.tfds import builders, plain, prepared
from bn_vuln.data.tfds.preparation import ensure_prepared
from bn_vuln.data.tfds.prepared import Prepared
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import AnyArray, StoredImages

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

STATISTICS_FILE = "bnvuln_facts.json"  # the name that existing data folders have


class ImageStatistics(NamedTuple):
    """Shape of the training images, and mean and std of each channel, in pixels [0, 1]."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def ensure(name: str) -> None:
    """Prepare a data set if it is not prepared.

    Raises:
        UsageError: The name is not known, or the set is not one of labelled images.
        BnvulnError: The data set cannot be prepared.
    """
    if plain.find(name) is None:
        ensure_prepared(name)


def dataset_info(name: str) -> DatasetInfo:
    """Info of a data set: without its data where constants are in use; any other is prepared.

    Args:
        name: A name of TFDS.

    Returns:
        The info; its sizes are those of the prepared data, if there are any.

    Raises:
        UsageError: The name is not known, or the set is not one of labelled images.
        BnvulnError: The data set cannot be prepared.
    """
    if name in constants.DATASET_INFO:
        info, found = constants.DATASET_INFO[name], prepared.find(name)
        return info if found is None else replace(info, sizes=builders.sizes(name, found.sizes))
    several_sizes, plainly = _of_several_sizes(name), plain.find(name)
    if several_sizes is not None:
        return _info_of_several_sizes(name, several_sizes)
    if plainly is None:
        builder = ensure_prepared(name)
        several_sizes = _of_several_sizes(name)
        if several_sizes is not None:
            return _info_of_several_sizes(name, several_sizes)
        folder, classes = Path(builder.data_dir), tuple(builders.supervised(name, builder)[1].names)
        published = {split: int(info.num_examples) for split, info in builder.info.splits.items()}
    else:
        folder, classes, published = plainly.folder, plain.class_names(plainly), plainly.sizes
    measured = training_statistics(name, folder)
    mean, std = constants.standardization(name) or (measured.mean, measured.std)
    return DatasetInfo(name, measured.shape, classes, mean, std, builders.sizes(name, published))


def _info_of_several_sizes(name: str, found: Prepared) -> DatasetInfo:
    """Info of images that are decoded when needed; mean and std are computed when they are first read."""
    assert found.shape is not None
    constant = constants.standardization(name)
    mean, std = constant if constant is not None else statistics([read(name, splits(name)[0]).images])
    return DatasetInfo(
        name, (0, 0, found.shape[2]), plain.class_names(found), mean, std, builders.sizes(name, found.sizes)
    )


def splits(name: str) -> tuple[str, ...]:
    """Which splits a data set has, without its data where constants are in use for it; any other is prepared.

    Args:
        name: A name of TFDS.

    Returns:
        Those of `split_names`.

    Raises:
        UsageError: As `read`.
        BnvulnError: As `read`.
    """
    if name in constants.DATASET_INFO:
        return tuple(dataset_info(name).sizes)
    plainly = plain.find(name) or _of_several_sizes(name)
    published = ensure_prepared(name).info.splits if plainly is None else plainly.sizes
    return tuple(builders.split_names(name, list(published)))


def read(name: str, split: str) -> Split:
    """Read a split of a data set, which is prepared if it was not.

    Args:
        name: A name of TFDS.
        split: One of `splits`.

    Returns:
        The examples; `index` is the place in TFDS' split.

    Raises:
        UsageError: The name is not known, or the set is not one of labelled images.
        BnvulnError: The data set cannot be prepared, or is damaged.
    """
    plainly = plain.find(name) or _of_several_sizes(name)
    if plainly is not None:
        return _read_published(name, builders.split_names(name, list(plainly.sizes))[split], str(plainly.folder))
    builder = ensure_prepared(name)
    names = builders.split_names(name, list(builder.info.splits))
    return _read_published(name, names[split], str(builder.data_dir))


@functools.lru_cache(maxsize=4)
def _read_published(name: str, split: str, folder: str) -> Split:
    """A split as TFDS published it; the `folder` where it is prepared belongs to the key of the cache."""
    try:
        plainly, several_sizes = plain.find(name), _of_several_sizes(name)
        if several_sizes is not None:
            images, labels = plain.lazy(several_sizes, split)
        elif plainly is None:
            images, labels = _read_arrays(name, builders.find_builder(name), split)
        else:
            examples = plain.examples(plainly, split)
            images, labels = examples if isinstance(examples, tuple) else _stack(name, examples)
    except BnvulnError:
        raise
    except Exception as error:
        raise BnvulnError(f"{name}: {first_line(error)}; remove {folder} to prepare it again") from error
    if not len(labels) or labels.min() < 0:
        raise UsageError(f"{name}: expected images with labels, the {split} split has others or none")
    return Split.whole(images, labels.astype(np.int32))


def _of_several_sizes(name: str) -> Prepared | None:
    """The data set, where TFDS declares no size of its images and they have several; those of ImageNet always have."""
    found = prepared.find(name)
    if found is None or found.shape is None or 0 not in found.shape[:2] or prepared.array_files(found.folder):
        return None
    is_imagenet = constants.STANDARDIZED_AS.get(name.partition("/")[0]) is constants.IMAGENET
    return found if is_imagenet or not _is_one_size(name, found.folder) else None


@functools.lru_cache(maxsize=4)
def _is_one_size(name: str, folder: Path) -> bool:
    """Return whether the images of the smallest split have one size; the `folder` belongs to the key of the cache."""
    found = prepared.read(folder)
    assert found is not None
    images, _ = plain.lazy(found, min(found.sizes, key=lambda split: found.sizes[split]))
    return bool(images.shape[1])


def _read_arrays(name: str, builder: DatasetBuilder, split: str) -> tuple[StoredImages, AnyArray]:
    """Images and labels of a prepared split, in an order that is always the same."""
    import tensorflow_datasets

    backend.start()
    config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    one_shape = None not in builders.supervised(name, builder)[0].shape
    batch_size = -1 if one_shape else None
    dataset = builder.as_dataset(split=split, as_supervised=True, batch_size=batch_size, read_config=config)
    examples = tensorflow_datasets.as_numpy(dataset)
    return examples if one_shape else _stack(name, examples)  # a pair of arrays, or an iterable of pairs


def _stack(name: str, examples: Iterable[tuple[StoredImages, int]]) -> tuple[StoredImages, AnyArray]:
    """Stack images whose shape TFDS does not declare; raise `UsageError` at the first of another shape."""
    images: list[StoredImages] = []
    labels: list[int] = []
    for image, label in examples:
        first = images[0].shape if images else image.shape
        if image.shape != first or first[0] != first[1]:
            raise UsageError(f"{name}: expected square images of one size, received {first} and {image.shape}")
        images.append(image)
        labels.append(label)
    return np.stack(images), np.array(labels)


def training_statistics(name: str, folder: Path) -> ImageStatistics:
    """Statistics of the training images (of the test images where there are no others), stored beside the data.

    Args:
        name: The data set.
        folder: The folder of its version, prepared.

    Returns:
        The stored statistics, computed where there are none.

    Raises:
        UsageError: As `read`.
        BnvulnError: As `read`.
    """
    if stored := stored_statistics(folder):
        return stored
    published = splits(name)
    examples = read(name, published[0])
    images = (train_test_split(examples, name)["train"] if published == (WHOLE,) else examples).images
    height, width, channels = images.shape[1:]
    found = ImageStatistics((height, width, channels), *channel_statistics(images))
    with contextlib.suppress(OSError):  # a folder that cannot be written
        atomic_write(folder / STATISTICS_FILE, json.dumps(found._asdict()))
    return found


def stored_statistics(folder: Path) -> ImageStatistics | None:
    """Statistics stored beside a data set prepared in this folder, or None."""
    try:
        stored = json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))
        return ImageStatistics(tuple(stored["shape"]), tuple(stored["mean"]), tuple(stored["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
