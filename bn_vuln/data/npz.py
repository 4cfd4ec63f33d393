"""Arrays of one's own: an .npz file of uint8 images and integer labels."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data import fingerprint
from bn_vuln.data.describe import first_line
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.splits import Part, Published, part, publish, split_off
from bn_vuln.errors import UsageError

PARTS, WHOLE = ("x_train", "y_train", "x_test", "y_test"), ("x", "y")
EXPECTED = f"expected {', '.join(PARTS)}, or {' and '.join(WHOLE)}"
# What np.load raises for files that are none of its own, or broken.
BROKEN = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def is_mine(name: str) -> bool:
    """Whether a data set's name is the path of an .npz file."""
    return name.lower().endswith(".npz")


def pinned(name: str) -> str:
    """The name with its path made absolute."""
    return str(Path(name).expanduser().absolute())


def digest(name: str) -> str:
    """What identifies the content. Raises `UsageError` where there is no such file."""
    path = Path(pinned(name))
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {EXPECTED} in an .npz file")
    return fingerprint.digest([("", path)])


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the data: mean and std of the training images, classes by their names or numbers."""
    return _published(pinned(name), digest(name)).info


def read(name: str, split: str) -> Part:
    """`train` or `test`. The file holds x_train, y_train, x_test and y_test as Keras names them, or x and y, a fifth
    of which, by a fixed permutation, is the test split; and `classes`, if they have names.

    x is uint8 [n, size, size] or [n, size, size, 1 or 3]; y holds the whole numbers 0..K-1, [n] or [n, 1]. Raises
    `UsageError`, which says what was expected and received.
    """
    return _published(pinned(name), digest(name)).parts[split]


@functools.lru_cache(maxsize=2)
def _published(path: str, digest: str) -> Published:
    found = _load(path)
    pairs = {"whole": WHOLE} if "x_train" not in found else {"train": PARTS[:2], "test": PARTS[2:]}
    parts = {split: _part(path, found, *keys) for split, keys in pairs.items()}
    classes = _classes(path, found.get("classes"), *(p.labels for p in parts.values()))
    if "whole" in parts:
        return publish(f"npz:{digest}", classes, split_off(parts["whole"], path))
    shapes = [p.images.shape[1:] for p in parts.values()]
    if shapes[0] != shapes[1]:
        raise UsageError(f"{path}: expected images of one shape, received {shapes[0]} to train, {shapes[1]} to test")
    return publish(f"npz:{digest}", classes, parts)


# ---------------------------------------------------------------- the file


def _load(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file that are asked for, by name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UsageError(f"{path}: {EXPECTED}, received one array without a name")
        with loaded as archive:
            return {key: archive[key] for key in _keys(path, list(archive))}
    except UsageError:
        raise
    except BROKEN as error:
        raise UsageError(f"{path}: {_why(error)}; expected an .npz file as np.savez writes it") from None


def _keys(path: str, names: list[str]) -> list[str]:
    """The names of the arrays to take. Raises `UsageError` where some are missing."""
    chosen = next((keys for keys in (PARTS, WHOLE) if set(keys) <= set(names)), None)
    if chosen is None:
        raise UsageError(f"{path}: {EXPECTED}, received {', '.join(names) or 'no arrays'}")
    return [key for key in (*chosen, "classes") if key in names]


def _why(error: Exception) -> str:
    text = first_line(error)
    if text.startswith("Object arrays"):
        return "holds Python objects, which are not loaded because they can run code"
    # NumPy takes any file that it does not know for a pickled one.
    return "is no .npz file" if "pickled" in text else f"cannot be read ({text})"


# ---------------------------------------------------------------- the arrays


def _part(path: str, found: dict[str, NDArray[Any]], x: str, y: str) -> Part:
    """The part of two arrays. Raises `UsageError` where one is not as expected, or they do not belong together."""
    images, labels = _images(f"{path}: {x}", found[x]), _labels(f"{path}: {y}", found[y])
    if len(images) != len(labels):
        raise UsageError(f"{path}: {x} has {len(images)} images and {y} {len(labels)} labels, expected as many")
    return part(images, labels)


def _images(what: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [n, size, size, 1 or 3] of an array that may lack the channels."""
    if array.dtype != np.uint8:
        mend = "; of pixels in [0, 1] make them by np.uint8(np.round(255 * x))" if array.dtype.kind == "f" else ""
        raise UsageError(f"{what}: expected uint8 pixels of 0 to 255, received {array.dtype}{mend}")
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and len(images) and images.shape[1] == images.shape[2] and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images)
    channels_first = array.ndim == 4 and array.shape[1] in (1, 3)
    mend = "; move the channels last by x.transpose(0, 2, 3, 1)" if channels_first else ""
    raise UsageError(
        f"{what}: expected square images [n, size, size] or [n, size, size, 1 or 3], received {list(array.shape)}{mend}"
    )


def _labels(what: str, array: NDArray[Any]) -> NDArray[np.int32]:
    """int32 [n] of whole numbers [n] or [n, 1]."""
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        mend = "; of one-hot labels make them by y.argmax(1)" if array.ndim == 2 else ""
        raise UsageError(f"{what}: expected labels [n] or [n, 1], received {list(array.shape)}{mend}")
    if array.dtype.kind not in "iu":
        raise UsageError(f"{what}: expected whole numbers, received {array.dtype}")
    if len(array) and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise UsageError(f"{what}: expected labels of 0 to K-1, received {array.min()} to {array.max()}")
    return array.ravel().astype(np.int32)


def _classes(path: str, given: NDArray[Any] | None, *labels: NDArray[np.int32]) -> tuple[str, ...]:
    """The names of the classes, their numbers where none are given; `labels` of the training set first."""
    present, highest = np.unique(labels[0]), max(int(array.max()) for array in labels)
    k = int(present[-1]) + 1 if given is None else len(_names(path, given))
    if highest >= k:
        whose = "the training labels are" if given is None else "classes names"
        raise UsageError(f"{path}: {whose} 0 to {k - 1}, received a label {highest}")
    if len(present) < max(k, 2):
        absent = next(label for label in range(k + 1) if label >= len(present) or present[label] != label)
        raise UsageError(f"{path}: expected training labels of every class 0 to {max(k, 2) - 1}, none is {absent}")
    return tuple(map(str, range(k))) if given is None else _names(path, given)


def _names(path: str, given: NDArray[Any]) -> tuple[str, ...]:
    if given.ndim != 1 or given.dtype.kind not in "US":
        raise UsageError(f"{path}: classes: expected names [K], received {given.dtype} {list(given.shape)}")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given.tolist())
