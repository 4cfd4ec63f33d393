"""Data sets that are known without looking: the constants in use, and what a list of data sets shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from bn_vuln.data.info import DatasetInfo

# A TFDS data set, or one of its configs: no versions and no arguments, which would give one thing several names.
NAME = re.compile(r"[a-z][a-z0-9_]*(/(?!\d+\.\d+\.\d+$)[\w.+-]+)?")
FASHION_MNIST = DatasetInfo(
    name="fashion_mnist",
    shape=(28, 28, 1),
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    sizes={"train": 60000, "test": 10000},
)  # fmt: skip
CIFAR10 = DatasetInfo(
    name="cifar10",
    shape=(32, 32, 3),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    # Those of the paper's authors and of most code: the mean over images of each image's std. The std of all training
    # pixels is (0.2470, 0.2435, 0.2616).
    std=(0.2023, 0.1994, 0.2010),
    sizes={"train": 50000, "test": 10000},
)
INFO = {
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    # New test images for models of CIFAR-10, and so in its units.
    "cifar10_1/v4": replace(CIFAR10, name="cifar10_1/v4", sizes={"test": 2021}),
    "cifar10_1/v6": replace(CIFAR10, name="cifar10_1/v6", sizes={"test": 2000}),
}
# Data sets whose images are in the units of another, by the name before the slash.
UNITS = {"fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10, "cifar10_1": CIFAR10, "cifar10_corrupted": CIFAR10}


class Outline(NamedTuple):
    """What a list of data sets shows of one."""

    shape: tuple[int, ...]
    classes: int
    sizes: dict[str, int]


# Listed beside INFO; their mean and std are those of the training images, computed when they are first read.
OUTLINES = {
    "cifar100": Outline((32, 32, 3), 100, {"train": 50000, "test": 10000}),
    "kmnist": Outline((28, 28, 1), 10, {"train": 60000, "test": 10000}),
    "stl10": Outline((96, 96, 3), 10, {"train": 5000, "test": 8000}),
    "svhn_cropped": Outline((32, 32, 3), 10, {"train": 73257, "test": 26032}),
}


def outlines() -> dict[str, Outline]:
    """Outlines of all data sets known here, by name."""
    ours = {name: Outline(info.shape, len(info.classes), info.sizes) for name, info in INFO.items()}
    return {**ours, **OUTLINES}


def units(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The constants (mean, std) in use for a data set, or None where they are computed."""
    info = UNITS.get(name.partition("/")[0])
    return None if info is None else (info.mean, info.std)
