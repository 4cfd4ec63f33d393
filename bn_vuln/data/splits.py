"""What all sources of data share: read-only parts of a data set, fixed permutations, means of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import UsageError

SPLIT_SEED = 20200


@dataclass(frozen=True)
class Part:
    """`images` uint8 [n, height, width, channels] (points of `toy`: float32); `labels` int32 [n]; `index` int64 [n],
    each example's place in what was published. The arrays are read-only: callers share them."""

    images: NDArray[Any]
    labels: NDArray[np.int32]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Published:
    """All of a data set: its info and its parts, `train` and `test`."""

    info: DatasetInfo
    parts: dict[str, Part]


def part(images: NDArray[Any], labels: NDArray[np.int32], index: NDArray[np.int64] | None = None) -> Part:
    """A part of these arrays, made read-only; without an `index` it is the whole of what was published."""
    made = Part(images, labels, np.arange(len(labels)) if index is None else index)
    for array in (made.images, made.labels, made.index):
        array.setflags(write=False)
    return made


def publish(name: str, classes: tuple[str, ...], parts: dict[str, Part]) -> Published:
    """A data set of these parts, with mean and std of its training images."""
    mean, std = channel_statistics(parts["train"].images)
    height, width, channels = parts["train"].images.shape[1:]
    sizes = {split: len(found.labels) for split, found in parts.items()}
    return Published(DatasetInfo(name, (height, width, channels), classes, mean, std, sizes), parts)


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on nothing but n and the seeds (as many in every use of one kind: NumPy
    takes trailing zeros for nothing)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed)))).permutation(n)


def split_sizes(n: int) -> dict[str, int]:
    """How many examples `split_off` gives to train and to test."""
    return {"train": n - n // 5, "test": n // 5}


def split_off(whole: Part, what: str) -> dict[str, Part]:
    """train and test of data that were published without a test split: a fifth, by a fixed permutation, is test.
    Raises `UsageError`, which begins with `what`, for fewer than five examples."""
    if len(whole.labels) < 5:
        raise UsageError(f"{what}: expected 5 images at least, a fifth of them to test, received {len(whole.labels)}")
    order = permutation(len(whole.labels), SPLIT_SEED + 2)
    n = split_sizes(len(whole.labels))["test"]
    chosen = {"train": np.sort(order[n:]), "test": np.sort(order[:n])}
    return {name: part(whole.images[at], whole.labels[at], whole.index[at]) for name, at in chosen.items()}


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel of uint8 images [n, h, w, c], in pixel units [0, 1], to four digits.

    From counts of the 256 values, which needs no copy of the images in another type.
    """
    counts = np.stack([_counts(images[..., channel]) for channel in range(images.shape[-1])])
    values, n = np.arange(256) / 255, counts.sum(1)
    mean = counts @ values / n
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / n)
    return tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) for x in std)


def _counts(channel: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each value occurs in uint8 [n, h, w]."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(channel), 1000):
        counts += np.bincount(channel[start : start + 1000].ravel(), minlength=256)
    return counts
