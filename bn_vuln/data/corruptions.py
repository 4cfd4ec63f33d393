"""The noise corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019): made from clean images, or those published.

The formulas and severities are those of the code that made the published images, `make_cifar_c.py` of
github.com/hendrycks/robustness; the random numbers are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from bn_vuln.config import Corruption
from bn_vuln.data import Dataset
from bn_vuln.data.tfds import cifar10_c
from bn_vuln.errors import UsageError

Source = Literal["made", "archive"]
Pixels = NDArray[np.float64]


def corrupted(dataset: Dataset, split: str, options: Corruption) -> tuple[NDArray[np.uint8], Source]:
    """(the images of `dataset`, examples of `split`, corrupted; where they are from): uint8 [n, height, width,
    channels] at their native width.

    With source `auto` no network is used. Raises `UsageError` for points rather than images, and for source `archive`
    with other examples than those of cifar10's test split; `BnvulnError`, in one line, where the archive is asked for
    and is not there, or is there and cannot be used.
    """
    if _from_archive(dataset, split, options):
        return cifar10_c.read(options.corruption, options.severity)[dataset.index], "archive"
    return make(dataset.images, dataset.index, options), "made"


def _from_archive(dataset: Dataset, split: str, options: Corruption) -> bool:
    """Whether the published images are to be read. Raises as `corrupted` does where they are asked for in vain."""
    theirs = dataset.info.name == cifar10_c.CLEAN and split == "test"
    if options.source != "archive":
        return options.source == "auto" and theirs and cifar10_c.at_hand(options.corruption, options.severity)
    if not theirs:
        raise UsageError(
            f"source archive: CIFAR-10-C is of the test split of {cifar10_c.CLEAN}, received {dataset.info.name} "
            f"{split}; use source made"
        )
    cifar10_c.require(options.corruption, options.severity)
    return True


def make(images: NDArray[Any], index: NDArray[np.int64], options: Corruption) -> NDArray[np.uint8]:
    """The corruption of uint8 images [n, height, width, channels], uint8 of the same shape: clipped to [0, 1], times
    255, truncated.

    The noise of an example depends only on (seed, its `index`, corruption, severity). Raises `UsageError` for images
    that are not uint8.
    """
    if images.dtype != np.uint8:
        raise UsageError(f"corruptions are of uint8 images, received {images.dtype}")
    kind = _KINDS[options.corruption]
    amount = kind.amounts[options.severity - 1]
    made = np.empty_like(images)
    for i, key in enumerate(index):
        generator = Generator(Philox(key=[options.seed, int(key)], counter=[0, 0, options.severity, kind.stream]))
        noisy = kind.noisy(images[i] / 255.0, amount, generator)
        made[i] = (np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    return made


def _gaussian(x: Pixels, std: float, generator: Generator) -> Pixels:
    return x + std * generator.standard_normal(x.shape)


def _shot(x: Pixels, photons: float, generator: Generator) -> Pixels:
    return generator.poisson(x * photons) / photons


def _impulse(x: Pixels, share: float, generator: Generator) -> Pixels:
    """Salt and pepper, half and half."""
    where = generator.random(x.shape)
    return np.where(where < share, np.where(where < share / 2, 1.0, 0.0), x)


def _speckle(x: Pixels, std: float, generator: Generator) -> Pixels:
    return x + x * (std * generator.standard_normal(x.shape))


class _Kind(NamedTuple):
    """`noisy`(pixels in [0, 1], amount, generator), the `amounts` of the five severities, and the `stream` of random
    numbers, a word of Philox' counter: no two kinds share them, nor does one with AWGN, whose stream is 0."""

    noisy: Callable[[Pixels, float, Generator], Pixels]
    amounts: tuple[float, ...]
    stream: int


_KINDS = {
    "gaussian_noise": _Kind(_gaussian, (0.04, 0.06, 0.08, 0.09, 0.10), 1),
    "shot_noise": _Kind(_shot, (500, 250, 100, 75, 50), 2),
    "impulse_noise": _Kind(_impulse, (0.01, 0.02, 0.03, 0.05, 0.07), 3),
    "speckle_noise": _Kind(_speckle, (0.06, 0.1, 0.12, 0.16, 0.2), 4),
}
