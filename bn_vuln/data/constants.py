"""Constants of well-known data sets: mean and std in use, and the summary that a list of data sets shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from bn_vuln.data.info import DatasetInfo

# A TFDS data set, or one of its configs: no versions and no arguments, which would give one thing several names.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*(/(?!\d+\.\d+\.\d+$)[\w.+-]+)?")
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
    # The paper's authors and most code use the mean over images of each image's std. The std of all training pixels is
    # (0.2470, 0.2435, 0.2616).
    std=(0.2023, 0.1994, 0.2010),
    sizes={"train": 50000, "test": 10000},
)
# Of the training images at 224 pixels, as torchvision's models standardize them.
IMAGENET = DatasetInfo(
    name="imagenet2012",
    shape=(0, 0, 3),
    classes=(),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    sizes={"train": 1_281_167, "test": 50_000},
)
DATASET_INFO = {
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    # New test images for models of CIFAR-10, standardized as CIFAR-10 is.
    "cifar10_1/v4": replace(CIFAR10, name="cifar10_1/v4", sizes={"test": 2021}),
    "cifar10_1/v6": replace(CIFAR10, name="cifar10_1/v6", sizes={"test": 2000}),
}
# Data sets by the name before the slash -> the info with the mean and std that standardize them.
STANDARDIZED_AS = {
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar10_1": CIFAR10,
    "cifar10_corrupted": CIFAR10,
    **dict.fromkeys(("imagenet2012", "imagenet_v2", "imagenet2012_real", "imagenet_a", "imagenet_r"), IMAGENET),
}
# Data sets whose split `test` has no labels.
UNLABELLED_TEST = ("imagenet2012",)


class Summary(NamedTuple):
    """Shape, number of classes and sizes of a data set, as a list of data sets shows them."""

    shape: tuple[int, ...]
    classes: int
    sizes: dict[str, int]

    @classmethod
    def of(cls, info: DatasetInfo) -> Summary:
        """The summary of a data set whose info is known."""
        return cls(info.shape, len(info.classes), info.sizes)


# Listed beside DATASET_INFO. Mean and std of their training images are computed when they are first read.
OTHER_SUMMARIES = {
    "imagenet2012": Summary((0, 0, 3), 1000, IMAGENET.sizes),
    "imagenet_v2/matched-frequency": Summary((0, 0, 3), 1000, {"test": 10_000}),
    "cifar100": Summary((32, 32, 3), 100, {"train": 50000, "test": 10000}),
    "kmnist": Summary((28, 28, 1), 10, {"train": 60000, "test": 10000}),
    "stl10": Summary((96, 96, 3), 10, {"train": 5000, "test": 8000}),
    "svhn_cropped": Summary((32, 32, 3), 10, {"train": 73257, "test": 26032}),
}


def summaries() -> dict[str, Summary]:
    """Summaries of all well-known data sets, by name."""
    return {**{name: Summary.of(info) for name, info in DATASET_INFO.items()}, **OTHER_SUMMARIES}


def standardization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The constants (mean, std) in use for a data set, in pixels [0, 1]; None where they are computed."""
    info = STANDARDIZED_AS.get(name.partition("/")[0])
    return None if info is None else (tuple(info.mean), tuple(info.std))
