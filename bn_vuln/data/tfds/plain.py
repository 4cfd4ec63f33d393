"""Prepared data sets that are read without TFDS and TensorFlow: TFRecord files of images, or arrays.

TFDS writes the former. The latter are SPLIT_images.npy (uint8 [n, height, width, channels]) and SPLIT_labels.npy in the
folder NAME/VERSION, in TFDS' order, with the names of the classes, one a line, in label.labels.txt.
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bn_vuln.data.image_files import StoredImage
from bn_vuln.data.images import as_array, lazy_images
from bn_vuln.data.tfds import prepared
from bn_vuln.data.tfds.prepared import Prepared
from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend
from bn_vuln.typing import AnyArray, DatasetImages, StoredImages


def find(name: str) -> Prepared | None:
    """Find the data set of a name where it is read from here: prepared as arrays, or the backend is not TensorFlow."""
    found = prepared.find(name)
    if found is None or (backend.name() == "tensorflow" and not prepared.array_files(found.folder)):
        return None
    return found


def class_names(found: Prepared) -> tuple[str, ...]:
    """Return the names of a data set's classes."""
    label = "label" if prepared.array_files(found.folder) else _keys(found.folder)[1]
    return tuple((found.folder / f"{label}.labels.txt").read_text(encoding="utf-8").split("\n")[: found.classes])


def examples(found: Prepared, split: str) -> Iterator[tuple[StoredImages, int]] | tuple[StoredImages, AnyArray]:
    """Read a split, in TFDS' order.

    Args:
        found: The data set.
        split: One of TFDS' splits.

    Returns:
        Images and labels; or, of TFRecord files, the same example by example.

    Raises:
        BnvulnError: The images are no PNG files: other decoders give other pixels than TensorFlow's.
    """
    if prepared.array_files(found.folder):
        images, labels = (np.load(found.folder / f"{split}_{kind}.npy") for kind in ("images", "labels"))
        return images, labels
    return _decoded(found, split)


def lazy(found: Prepared, split: str) -> tuple[DatasetImages, AnyArray]:
    """Read the labels of a split of images of several sizes, which stay in their TFRecord files.

    Args:
        found: The data set.
        split: One of TFDS' splits.

    Returns:
        Lazy images and labels, in TFDS' order. Pillow decodes them, as torchvision does.

    Raises:
        BnvulnError: There are no such files.
        UsageError: An image, which is named, is none.
    """
    image, label = _keys(found.folder)
    shards = sorted(found.folder.glob(f"*-{split}.tfrecord-*"))
    if not shards:
        raise BnvulnError(f"{found.name}: expected TFRecord files of its {split} split in {found.folder}")
    files, labels = [], []
    for shard in shards:
        with shard.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for number, record in enumerate(_records(mapped)):
            features = _features(record)
            files.append(StoredImage(f"{shard}: image {number}", memoryview(features[image])))  # type: ignore[arg-type]
            labels.append(features[label])
    images, _ = lazy_images(files)
    return as_array(images), np.array(labels)


def _decoded(found: Prepared, split: str) -> Iterator[tuple[StoredImages, int]]:
    image, label = _keys(found.folder)
    shards = sorted(found.folder.glob(f"*-{split}.tfrecord-*"))
    features = (_features(record) for shard in shards for record in _records(shard.read_bytes()))
    with ThreadPoolExecutor() as threads:
        pairs = [(feature[image], feature[label]) for feature in features]
        for pixels, (_, number) in zip(threads.map(_pixels, (data for data, _ in pairs)), pairs, strict=True):
            if pixels is None or not isinstance(number, int):
                raise BnvulnError(f"{found.name}: its images are no PNG files; KERAS_BACKEND=tensorflow reads them")
            yield pixels, number


def _keys(folder: Path) -> tuple[str, str]:
    """Keys of image and label."""
    info = json.loads((folder / prepared.INFO_FILE).read_text(encoding="utf-8"))
    image, label = (item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"])
    return image, label


def _pixels(data: bytes | memoryview | int) -> StoredImages | None:
    if isinstance(data, int) or bytes(data[:4]) != b"\x89PNG":
        return None
    pixels: StoredImages = np.asarray(Image.open(io.BytesIO(data)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


# ---------------------------------------------------------------- TFRecord files, a tf.train.Example in each record


def _records(data: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), content, checksum (4)."""
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        yield data[position + 12 : position + 12 + length]
        position += length + 16


def _features(record: bytes | memoryview) -> dict[str, bytes | memoryview | int]:
    """The first value of each feature of a tf.train.Example, bytes or a whole number."""
    found: dict[str, bytes | memoryview | int] = {}
    for _, entry in _fields(next(_fields(record))[1]):
        parts = dict(_fields(entry))
        for kind, values in _fields(parts[2]):
            value = next(_fields(values), (1, b""))[1]
            if kind == 3:  # int64_list, packed or not; 1 is bytes_list, 2 float_list
                value = value if isinstance(value, int) else _varint(value, 0)[0]
                value = value - 2**64 if value >= 2**63 else value
            found[bytes(parts[1]).decode()] = value
    return found


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a message of Protocol Buffers: bytes, or a whole number."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        length, position = _varint(message, position) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], position)
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """(whole number of 7 bits a byte, position after it)."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
