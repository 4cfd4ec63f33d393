"""The noise corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019): made from clean images, or those published.

The formulas and severities are those of the code that made the published images, `make_cifar_c.py` of
github.com/hendrycks/robustness; the random numbers are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator, Philox

from bn_vuln.config import Corruption
from bn_vuln.data.loading import Dataset
from bn_vuln.data.tfds import cifar10_c
from bn_vuln.errors import UsageError
from bn_vuln.typing import DatasetImages, Floats, Index, StoredImages

Source = Literal["made", "archive"]


def corrupted_images(dataset: Dataset, split: str, corruption: Corruption) -> tuple[StoredImages, Source]:
    """The corrupted images of a data set: published ones, or made here. Source `auto` never uses the network.

    Args:
        dataset: The clean examples.
        split: The split that they are of.
        corruption: Kind, severity, and source: `made`, `archive`, or `auto`, which takes the published images where
            they are on this machine.

    Returns:
        (images, where they are from); images uint8 [n, height, width, channels] at their native width.

    Raises:
        UsageError: The data are points rather than images, or source `archive` is asked for with other examples than
            those of cifar10's test split.
        BnvulnError: The archive is asked for and is not there, or is there and cannot be used; in one line.
    """
    if _is_published(dataset, split, corruption):
        return cifar10_c.read(corruption.corruption, corruption.severity)[dataset.index], "archive"
    return corrupt(dataset.images, dataset.index, corruption), "made"


def _is_published(dataset: Dataset, split: str, corruption: Corruption) -> bool:
    """Decide whether the published images are read; raise where they are asked for and cannot be."""
    has_archive = dataset.info.name == cifar10_c.CLEAN and split == "test"
    if corruption.source != "archive":
        auto = corruption.source == "auto"
        return auto and has_archive and cifar10_c.is_available(corruption.corruption, corruption.severity)
    if not has_archive:
        raise UsageError(
            f"source archive: CIFAR-10-C is of the test split of {cifar10_c.CLEAN}, received {dataset.info.label} "
            f"{split}; use source made"
        )
    cifar10_c.require_available(corruption.corruption, corruption.severity)
    return True


def corrupt(images: DatasetImages, index: Index, corruption: Corruption) -> StoredImages:
    """Make the corruption of images by the published formulas: noise, clip to [0, 1], times 255, truncated.

    Args:
        images: uint8, or float32 pixels in [0, 1], [n, height, width, 1 or 3].
        index: int64 [n], place of each example in its published split: the noise of an example depends only on it and
            on seed, kind and severity.
        corruption: Kind, severity and seed.

    Returns:
        uint8 of the same shape.

    Raises:
        UsageError: These are points, no images.
    """
    if images.shape[3] not in (1, 3):
        raise UsageError(f"corruptions are of images, gray or RGB, received points of {images.shape[3]} coordinates")
    white = 255.0 if images.dtype == np.uint8 else 1.0
    kind = KINDS[corruption.corruption]
    amount = kind.amounts[corruption.severity - 1]
    corrupted = np.empty(images.shape, np.uint8)
    for i, key in enumerate(index):
        counter = [0, 0, corruption.severity, kind.stream]
        generator = Generator(Philox(key=[corruption.seed, int(key)], counter=counter))
        noisy = kind.add_noise(images[i].astype(np.float64) / white, amount, generator)
        corrupted[i] = (np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    return corrupted


def gaussian_noise(x: Floats, std: float, generator: Generator) -> Floats:
    """Pixels with additive Gaussian noise."""
    return x + std * generator.standard_normal(x.shape)


def shot_noise(x: Floats, photons: float, generator: Generator) -> Floats:
    """Pixels as Poisson counts of photons, `photons` in expectation at white."""
    return generator.poisson(x * photons) / photons


def impulse_noise(x: Floats, fraction: float, generator: Generator) -> Floats:
    """Pixels of which a fraction is replaced by salt and pepper, half and half."""
    u = generator.random(x.shape)
    return np.where(u < fraction, np.where(u < fraction / 2, 1.0, 0.0), x)


def speckle_noise(x: Floats, std: float, generator: Generator) -> Floats:
    """Pixels with multiplicative Gaussian noise."""
    return x + x * (std * generator.standard_normal(x.shape))


class Kind(NamedTuple):
    """A kind of corruption.

    Attributes:
        add_noise: Function of (pixels float64 in [0, 1], amount, generator).
        amounts: Amount of noise for each of the five severities.
        stream: Stream of random numbers, a word of Philox' counter. No two kinds share it, nor does one with AWGN,
            whose stream is 0.
    """

    add_noise: Callable[[Floats, float, Generator], Floats]
    amounts: tuple[float, ...]
    stream: int


KINDS = {
    "gaussian_noise": Kind(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), 1),
    "shot_noise": Kind(shot_noise, (500, 250, 100, 75, 50), 2),
    "impulse_noise": Kind(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), 3),
    "speckle_noise": Kind(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), 4),
}
