"""What a data set was published as, in read-only arrays; fixed permutations; statistics of training images."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.describe import format_list
from bn_vuln.data.images import as_lazy, take
from bn_vuln.data.images import concatenate as concatenate_images
from bn_vuln.data.info import DatasetInfo, LazyNumbers
from bn_vuln.errors import UsageError
from bn_vuln.typing import DatasetImages, Floats, Index, Labels

SPLIT_SEED = 20200
# What names of folders and arrays call a split -> the split.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
PUBLISHED = ("train", "validation", "test")  # names of published splits, in the order of the split `all`
WHOLE = "whole"  # what data that were published without splits have instead


@dataclass(frozen=True)
class Split:
    """Examples of one split of a data set. The arrays are made read-only: callers share them.

    Attributes:
        images: uint8 [n, height, width, channels], or lazy images; the points of `toy` are float32.
        labels: int32 [n].
        index: int64 [n], place of each example in what was published.
    """

    images: DatasetImages
    labels: Labels
    index: Index

    def __post_init__(self) -> None:
        for array in (self.labels, self.index, *([] if as_lazy(self.images) else [self.images])):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def whole(cls, images: DatasetImages, labels: Labels) -> Split:
        """All that was published: the index counts from 0."""
        return cls(images, labels, np.arange(len(labels)))


@dataclass(frozen=True)
class SplitDataset:
    """Info of a data set and what was published: some of `train`, `validation` and `test`, or `whole` alone."""

    info: DatasetInfo
    splits: dict[str, Split]

    @classmethod
    def from_splits(
        cls,
        name: str,
        classes: tuple[str, ...],
        splits: dict[str, Split],
        *,
        label: str = "",
        notes: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
    ) -> SplitDataset:
        """Make a data set whose info has the mean and std of its training images, of all where there are no others.

        Args:
            name: The name that identifies the data.
            classes: Names of the classes.
            splits: What was published. Lazy images may be of several sizes.
            label: As in `DatasetInfo`.
            notes: As in `DatasetInfo`.
            flags: As in `DatasetInfo`.
        """
        splits = {split: splits[split] for split in (*PUBLISHED, WHOLE) if split in splits}
        images = [examples.images for split, examples in splits.items() if split == "train"]
        if WHOLE in splits:
            whole = splits[WHOLE].images
            sizes = train_test_sizes(len(whole))
            images = [take(whole, _positions(len(whole))["train"])]
        else:
            sizes = {split: len(examples) for split, examples in splits.items()}
        mean, std = statistics(images or [examples.images for examples in splits.values()])
        shapes = {examples.images.shape[1:] for examples in splits.values()}
        height, width, channels = shapes.pop()
        shape = (0, 0, channels) if shapes else (height, width, channels)
        if all(text.isdecimal() for text in classes) and list(classes) != sorted(classes, key=int):
            notes = (
                *notes,
                f"classes: in the order of names ({format_list(classes, 4)}), not of the numbers that they are",
            )
        return cls(DatasetInfo(name, shape, classes, mean, std, sizes, label, notes, flags), splits)


def permutation(n: int, *seed: int) -> Index:
    """Permutation of 0..n-1 that depends on nothing but n and the seeds.

    Args:
        n: Number of examples.
        seed: Seeds. Every use of one kind takes as many: NumPy ignores trailing zeros.

    Returns:
        int64 [n].
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed)))).permutation(n)


def train_test_sizes(n: int) -> dict[str, int]:
    """Sizes of the two splits that `train_test_split` makes of n examples."""
    return {"train": n - n // 5, "test": n // 5}


def train_test_split(whole: Split, label: str) -> dict[str, Split]:
    """Make train and test of data that were published whole.

    Args:
        whole: All examples.
        label: Beginning of the error message.

    Returns:
        `train` and `test`: a fifth, by a fixed permutation, is test. Both keep the published order.

    Raises:
        UsageError: There are fewer than five examples.
    """
    if len(whole) < 5:
        raise UsageError(f"{label}: expected 5 images at least, a fifth of them to test, received {len(whole)}")
    return {
        name: Split(take(whole.images, at), whole.labels[at], whole.index[at])
        for name, at in _positions(len(whole)).items()
    }


def _positions(n: int) -> dict[str, Index]:
    """Places of the training and the test examples among n that were published whole."""
    order, n_test = permutation(n, SPLIT_SEED + 2), train_test_sizes(n)["test"]
    return {"train": np.sort(order[n_test:]), "test": np.sort(order[:n_test])}


def concatenate(splits: Sequence[Split]) -> Split:
    """All examples of some splits, in this order; their index goes on counting from split to split."""
    if len(splits) == 1:
        return splits[0]
    starts = np.cumsum([0, *(len(split) for split in splits)])
    return Split(
        concatenate_images([split.images for split in splits]),
        np.concatenate([split.labels for split in splits]),
        np.concatenate([split.index + start for split, start in zip(splits, starts, strict=False)]),
    )


def statistics(
    parts: Sequence[DatasetImages],
) -> tuple[tuple[float, ...] | LazyNumbers, tuple[float, ...] | LazyNumbers]:
    """Mean and std of each channel of all images, in pixels; those of lazy images are computed when first read."""
    lazy = as_lazy(concatenate_images(parts)) if as_lazy(parts[0]) else None
    if lazy is None:
        return channel_statistics(*parts)
    both = functools.cache(lambda: _statistics_of_bytes(lazy.stream()))
    mean = LazyNumbers(lazy.channels, lambda: _rounded(both()[0]))
    return mean, LazyNumbers(lazy.channels, lambda: _rounded(both()[1]))


def channel_statistics(*images: DatasetImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, without a copy of all images in another type.

    Args:
        images: uint8 or float32 [n, height, width, channels]; of several arrays they are those of all images.

    Returns:
        (mean, std), in pixels [0, 1], to four digits.
    """
    if images[0].dtype == np.uint8:
        mean, std = _statistics_of_bytes(images)
    else:
        mean, std = _statistics_of_pixels(images)
    return _rounded(mean), _rounded(std)


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(x), 4) for x in values)


def _statistics_of_bytes(images: Iterable[DatasetImages]) -> tuple[Floats, Floats]:
    """Mean and std of each channel, float64 [channels], computed from counts of the 256 values."""
    counts = sum(
        np.stack([_value_counts(array[..., channel]) for channel in range(array.shape[-1])]) for array in images
    )
    values, n = np.arange(256) / 255, np.sum(counts, 1)
    mean = counts @ values / n
    return mean, np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / n)


def _statistics_of_pixels(images: Sequence[DatasetImages]) -> tuple[Floats, Floats]:
    """Mean and std of each channel, float64 [channels]."""
    pieces = [array[i : i + 1000] for array in images for i in range(0, len(array), 1000)]
    n = sum(piece[..., 0].size for piece in pieces)
    mean = sum(piece.sum((0, 1, 2), np.float64) for piece in pieces) / n
    variance = sum(((piece - mean) ** 2).sum((0, 1, 2)) for piece in pieces) / n
    return np.asarray(mean), np.sqrt(variance)


def _value_counts(channel: DatasetImages) -> NDArray[np.int64]:
    """Number of pixels of each value, int64 [256], in uint8 [n, height, width]."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(channel), 1000):
        counts += np.bincount(channel[start : start + 1000].ravel(), minlength=256)
    return counts
