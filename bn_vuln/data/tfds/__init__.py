"""Image classification sets of TensorFlow Datasets by name: `fashion_mnist`, `cifar10`, `cifar10_1/v6`, any other."""

from bn_vuln.data.tfds.builders import classes, find_builder, image_shape, sizes
from bn_vuln.data.tfds.reading import dataset_info, ensure, published, read, splits, stored_statistics

__all__ = [
    "classes",
    "dataset_info",
    "ensure",
    "find_builder",
    "image_shape",
    "published",
    "read",
    "sizes",
    "splits",
    "stored_statistics",
]
