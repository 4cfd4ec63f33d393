"""Published splits in read-only arrays, fixed permutations, and statistics of training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import UsageError
from bn_vuln.typing import DatasetImages, Index, Labels

SPLIT_SEED = 20200


@dataclass(frozen=True)
class Split:
    """Examples of one split of a data set. The arrays are made read-only: callers share them.

    Attributes:
        images: uint8 [n, height, width, channels]; the points of `toy` are float32.
        labels: int32 [n].
        index: int64 [n], place of each example in what was published.
    """

    images: DatasetImages
    labels: Labels
    index: Index

    def __post_init__(self) -> None:
        for array in (self.images, self.labels, self.index):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def whole(cls, images: DatasetImages, labels: Labels) -> Split:
        """All that was published: the index counts from 0."""
        return cls(images, labels, np.arange(len(labels)))


@dataclass(frozen=True)
class SplitDataset:
    """Info of a data set and its splits, `train` and `test`."""

    info: DatasetInfo
    splits: dict[str, Split]

    @classmethod
    def from_splits(cls, name: str, classes: tuple[str, ...], splits: dict[str, Split]) -> SplitDataset:
        """A data set whose info has the mean and std of its training images."""
        mean, std = channel_statistics(splits["train"].images)
        height, width, channels = splits["train"].images.shape[1:]
        sizes = {split: len(examples) for split, examples in splits.items()}
        return cls(DatasetInfo(name, (height, width, channels), classes, mean, std, sizes), splits)


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
    """Make train and test of data that were published without a test split.

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
    order = permutation(len(whole), SPLIT_SEED + 2)
    n = train_test_sizes(len(whole))["test"]
    positions = {"train": np.sort(order[n:]), "test": np.sort(order[:n])}
    return {name: Split(whole.images[at], whole.labels[at], whole.index[at]) for name, at in positions.items()}


def channel_statistics(images: DatasetImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, computed from counts of the 256 values, without a copy in another type.

    Args:
        images: uint8 [n, height, width, channels].

    Returns:
        (mean, std), in pixels [0, 1], to four digits.
    """
    counts = np.stack([_value_counts(images[..., channel]) for channel in range(images.shape[-1])])
    values, n = np.arange(256) / 255, counts.sum(1)
    mean = counts @ values / n
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / n)
    return tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) for x in std)


def _value_counts(channel: DatasetImages) -> NDArray[np.int64]:
    """Number of pixels of each value, int64 [256], in uint8 [n, height, width]."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(channel), 1000):
        counts += np.bincount(channel[start : start + 1000].ravel(), minlength=256)
    return counts
