"""The sources of data: which module reads a data set of a given name, and the name that identifies its content."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from bn_vuln import config
from bn_vuln.data import arrays, image_folder, mnist, npz, tfds, toy, toy_photos
from bn_vuln.data.images import as_lazy
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import WHOLE, Split, concatenate, train_test_split
from bn_vuln.errors import UsageError

BUILT_IN = {"mnist": mnist.INFO, "toy": toy.INFO, "toy_photos": toy_photos.INFO}


class DataSource(Protocol):
    """A module that reads data of one kind."""

    def dataset_info(self, name: str) -> DatasetInfo:
        """Info of a data set."""
        ...

    def splits(self, name: str) -> tuple[str, ...]:
        """What was published: some of `train`, `validation` and `test`, in this order, or `whole` alone."""
        ...

    def read(self, name: str, split: str) -> Split:
        """Read one of what was published."""
        ...


class UserDataSource(DataSource, Protocol):
    """A module that reads files of the user."""

    def matches(self, name: str) -> bool:
        """Return True for names of this kind."""
        ...

    def digest(self, name: str) -> str:
        """Digest of the content."""
        ...

    def absolute_name(self, name: str) -> str:
        """The name with its path made absolute."""
        ...


USER_DATA_SOURCES: tuple[UserDataSource, ...] = (npz, image_folder, arrays)


def user_data_source(name: str) -> UserDataSource | None:
    """The module that reads user data of this name, None for any other data set."""
    return next((source for source in USER_DATA_SOURCES if source.matches(name)), None)


def is_user_data(name: str) -> bool:
    """Return True for the path of an .npz file, for folder:PATH, and for arrays in memory."""
    return user_data_source(name) is not None


def dataset_info(name: str) -> DatasetInfo:
    """Info of a data set, without its data where constants are in use for it.

    Raises:
        UsageError: The name is not known, or the data are not of the expected format.
        BnvulnError: The data are not there and cannot be downloaded.
    """
    return BUILT_IN[name] if name in BUILT_IN else (user_data_source(name) or tfds).dataset_info(name)


def label(name: str) -> str:
    """What messages call a data set: user data as their user knows them, any other by its name.

    Raises:
        UsageError: As `dataset_info`.
    """
    return dataset_info(name).label if is_user_data(name) else name


def prepare(name: str) -> DatasetInfo:
    """Make a data set ready to be read, downloading what is missing, and return its info.

    Raises:
        UsageError: The name is not known, or the data are not of the expected format.
        BnvulnError: The data are not there and cannot be downloaded.
    """
    if name not in BUILT_IN and not is_user_data(name):
        tfds.ensure(name)
    return dataset_info(name)


def splits(name: str) -> tuple[str, ...]:
    """What a data set was published as.

    Returns:
        Some of `train`, `validation` and `test`, in this order; or `whole` alone, of which a fixed fifth is `test` and
        the rest `train`.

    Raises:
        UsageError: As `dataset_info`.
        BnvulnError: As `dataset_info`.
    """
    return ("train", "test") if name in BUILT_IN else (user_data_source(name) or tfds).splits(name)


def default_split(name: str) -> str:
    """The split that a model of somebody else is evaluated on where none is named.

    Returns:
        `test` where it is published, else `validation` where that is, else `all`.

    Raises:
        UsageError: As `dataset_info`.
        BnvulnError: As `dataset_info`.
    """
    published = splits(name)
    return next((split for split in ("test", "validation") if split in published), "all")


def validation_size(name: str, size: int | None) -> int:
    """Return the number of examples that are held out of the training set where a run writes it out.

    Args:
        name: A data set.
        size: The number that is wanted. None: that of `config.Data`; of user data with no more than that, a tenth.

    Raises:
        UsageError: It is given for user data that have a validation split.
    """
    default = config.Data(name=name).validation
    if not is_user_data(name):
        return default if size is None else size
    info = dataset_info(name)
    published, n = info.sizes.get("validation"), info.sizes.get("train", 0)
    if published and size is not None:
        raise UsageError(
            f"--validation: {info.label} has a validation split of {published} images, which is taken; leave the "
            "option out"
        )
    return published or size or (default if n > default else max(n // 10, 1))


def read(name: str, split: str, subset_seed: int | None = None) -> Split:
    """Read a split, `train` with the validation examples that are to be held out of it, or everything.

    Args:
        name: A data set.
        split: `train`, `validation`, `test` or `all`.
        subset_seed: Seed of another training sample of `toy`; without effect on all other data.

    Returns:
        The examples in their published order, in read-only arrays.

    Raises:
        UsageError: The name is not known, the data are not of the expected format, or have no such split.
        BnvulnError: The data are not there and cannot be downloaded.
    """
    published = splits(name)
    if split == "all":
        return concatenate([_read_published(name, part, subset_seed) for part in published])
    if split in published:
        return _read_published(name, split, subset_seed)
    if published == (WHOLE,) and split in ("train", "test"):
        return train_test_split(_read_published(name, WHOLE), name)[split]
    expected = ("train", "test") if published == (WHOLE,) else published
    raise UsageError(f"{label(name)} has no {split} split: expected {', '.join(expected)} or all")


def check_trainable(name: str) -> None:
    """Check user data, and images of several sizes, for what training needs and evaluation does not.

    Raises:
        UsageError: The data have no training images, a class has none, or the images are not square.
    """
    info = dataset_info(name)
    if not is_user_data(name) and info.shape[0]:
        return
    whole = splits(name) == (WHOLE,)
    examples = _read_published(name, WHOLE) if whole else read(name, "train")
    height, width, _ = info.shape
    if not height:
        if (lazy := as_lazy(examples.images)) is not None:
            lazy.check_one_size()
        raise UsageError(f"{info.label}: training takes images of one size, its splits have several")
    if height != width:
        raise UsageError(f"{info.label}: training takes square images, received {height}x{width}")
    present = np.unique(examples.labels)
    k = max(len(info.classes), 2)
    absent = next((label for label in range(k) if label not in present), None)
    if absent is not None:
        raise UsageError(f"{info.label}: expected training labels of every class 0 to {k - 1}, none is {absent}")


def _read_published(name: str, split: str, subset_seed: int | None = None) -> Split:
    if name == "toy" and subset_seed is not None:
        return Split.whole(*toy.read(split, subset_seed))
    return _read_built_in(name, split) if name in BUILT_IN else (user_data_source(name) or tfds).read(name, split)


@functools.lru_cache(maxsize=4)
def _read_built_in(name: str, split: str) -> Split:
    modules = {"mnist": mnist, "toy": toy, "toy_photos": toy_photos}
    return Split.whole(*modules[name].read(split))


def canonical_name(name: str) -> str:
    """The name that identifies the data: its kind and digest (npz:DIGEST) for user data, else the name itself.

    Raises:
        UsageError: There is no such file or folder.
    """
    source = user_data_source(name)
    return name if source is None else config.Data(name=name, digest=source.digest(name)).canonical


def with_digest(options: config.Data) -> config.Data:
    """Return options that name user data by absolute path and digest, so that they can be found and recognized later.

    Raises:
        UsageError: There is no such file or folder, or its content is not that of a digest that was given.
    """
    source = user_data_source(options.name)
    if source is None:
        return options
    digest = source.digest(options.name)
    if options.digest not in (None, digest):
        raise UsageError(
            f"{options.name}: changed since its digest was {options.digest}, it is {digest} now; "
            "leave the digest out to take the data as they are"
        )
    return options.model_copy(update={"name": source.absolute_name(options.name), "digest": digest})
