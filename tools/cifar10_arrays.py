#!/usr/bin/env python3
"""Prepare CIFAR-10 as arrays, for machines without TensorFlow Datasets: the same examples in the same order.

    python tools/cifar10_arrays.py cifar10.npz ~/tensorflow_datasets

The .npz has x_train, y_train, x_test and y_test in the published order (uint8 [n, 32, 32, 3], labels [n]). The order of
TFDS sorts the examples by a hash of split and place.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.constants import CIFAR10

FOLDER = "cifar10/3.0.2"
# The sha256 of images and labels in TFDS' order.
SHA256 = {
    "train": "de63abfe6ecf48e46f3c4af74fb4c372b03a47b3dd36c509085741fe7e17d778",
    "test": "02ffe773a9c86c2728e43dd046680585f0a36118b3b428570a1e4cd42f385e1c",
}


def main(source: str, data_dir: str) -> None:
    """Check and write the arrays of both splits."""
    arrays = dict(np.load(source).items())
    folder = write(arrays, Path(data_dir).expanduser())
    for split, expected in SHA256.items():
        found = hashlib.sha256()
        for kind in ("images", "labels"):
            found.update(np.load(folder / f"{split}_{kind}.npy").tobytes())
        if found.hexdigest() != expected:
            sys.exit(f"{source}: x_{split} and y_{split} are not those of CIFAR-10 in the published order")


def write(arrays: Mapping[str, NDArray[np.generic]], data_dir: Path) -> Path:
    """Write x_train, y_train, x_test and y_test of the published order into DATA_DIR/cifar10/3.0.2, in TFDS' order."""
    folder = data_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label.labels.txt").write_text("\n".join(CIFAR10.classes) + "\n", encoding="utf-8")
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"].astype(np.uint8), arrays[f"y_{split}"].astype(np.int32).ravel()
        order = sorted(range(len(labels)), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
        np.save(folder / f"{split}_labels.npy", labels[order])
        np.save(folder / f"{split}_images.npy", images[order])
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
