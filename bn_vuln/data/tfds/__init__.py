"""Image classification sets of TensorFlow Datasets by name: `fashion_mnist`, `cifar10`, `cifar10_1/v6`, any other."""

from bn_vuln.data.tfds.builders import find_builder, sizes, split_names, supervised
from bn_vuln.data.tfds.reading import dataset_info, ensure, read, splits, stored_statistics

__all__ = [
    "dataset_info",
    "ensure",
    "find_builder",
    "read",
    "sizes",
    "split_names",
    "splits",
    "stored_statistics",
    "supervised",
]
