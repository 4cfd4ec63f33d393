"""Data sets by name: `load(name, split)` gives uint8 images in memory, labels and info.

A name is `mnist` (bundled), `toy` (made), a data set of TFDS (`fashion_mnist`, `cifar10_1/v6`), the path of an .npz
file, folder:PATH, or what `register` returns for arrays in memory.
"""

from bn_vuln.data.arrays import register, release
from bn_vuln.data.class_names import read_class_names, with_class_names
from bn_vuln.data.image_folder import left_out, with_options
from bn_vuln.data.images import LazyImages, as_lazy, decoded_ahead
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.listing import describe_dataset, list_datasets
from bn_vuln.data.loading import Dataset, class_centroids, load, load_training_data, load_whole_training_set, subset
from bn_vuln.data.published import permutation
from bn_vuln.data.sources import (
    canonical_name,
    dataset_info,
    default_split,
    is_user_data,
    prepare,
    splits,
    validation_size,
    with_digest,
)

__all__ = [
    "Dataset",
    "DatasetInfo",
    "LazyImages",
    "as_lazy",
    "canonical_name",
    "class_centroids",
    "dataset_info",
    "decoded_ahead",
    "default_split",
    "describe_dataset",
    "is_user_data",
    "left_out",
    "list_datasets",
    "load",
    "load_training_data",
    "load_whole_training_set",
    "permutation",
    "prepare",
    "read_class_names",
    "register",
    "release",
    "splits",
    "validation_size",
    "subset",
    "with_class_names",
    "with_digest",
    "with_options",
]
