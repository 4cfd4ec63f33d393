"""Arrays in memory as a data set, `arrays:DIGEST`, which the process holds that was given them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.data import array_checks
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import WHOLE, Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.typing import AnyArray

PREFIX = "arrays:"
LABEL = "arrays in memory"  # what messages call them
HELD = 8  # data sets that are held at once, the latest used ones
_held: dict[str, SplitDataset] = {}


def register(images: object, labels: object, classes: object = None) -> str:
    """Hold arrays as a data set, published whole, until `release`, or until `HELD` others have been used since.

    Args:
        images: What NumPy makes an array of, TensorFlow's tensors too: [n, height, width] or [n, height, width, 1 or
            3], uint8 or other whole numbers of 0 to 255, or floats in [0, 1] or of 0 to 255. Not copied where they are
            uint8 or float32 pixels in [0, 1]: leave them as they are.
        labels: Class numbers [n] or [n, 1], one-hot rows [n, classes], or names of classes.
        classes: Names of the classes [classes], in the order of their numbers. None: they have none.

    Returns:
        The name, arrays:DIGEST, that `load`, `dataset_info` and `splits` take. It is made of the content.

    Raises:
        UsageError: The arrays are no images and labels; the message says what was expected and received.
    """
    arrays = {"images": _array(images, "images"), "labels": _array(labels, "labels")}
    names = None if classes is None else _array(classes, "classes")
    found = array_checks.dataset(PREFIX, {WHOLE: ("images", "labels")}, arrays, names, label=LABEL)
    name = f"{PREFIX}{_digest(found)}"
    _held.pop(name, None)
    _held[name] = replace(found, info=replace(found.info, name=name))
    while len(_held) > HELD:
        release(next(iter(_held)))
    return name


def release(name: str) -> None:
    """Hold the arrays of this name no longer; without effect where they are not held."""
    _held.pop(name, None)


def _array(given: object, label: str) -> AnyArray:
    """The array that NumPy makes of what was given, with text rather than Python objects."""
    try:
        array = np.asarray(given)
        if array.dtype.kind == "O":  # e.g. of a table's column
            array = np.array(array.tolist())
        if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):  # which NumPy does not know by itself
            array = array.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # of NumPy, or of what was given
        text = " ".join(str(error).split())
        raise UsageError(f"{label}: expected an array, received {type(given).__name__} ({text})") from None
    if array.dtype.kind == "O":
        raise UsageError(f"{label}: expected an array of numbers or text, received Python objects")
    return array


def _digest(dataset: SplitDataset) -> str:
    """The first 12 hex digits of a sha256 of the images, labels and classes: of type, shape and values."""
    whole, total = dataset.splits[WHOLE], hashlib.sha256()
    for array in (whole.images, whole.labels):
        total.update(f"{array.dtype.str}{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).data)
    total.update("\0".join(dataset.info.classes).encode())
    return total.hexdigest()[:ID_LENGTH]


def matches(name: str) -> bool:
    """Return True for arrays:DIGEST."""
    return name.startswith(PREFIX)


def absolute_name(name: str) -> str:
    """The name itself."""
    return name


def digest(name: str) -> str:
    """Digest of the content.

    Raises:
        UsageError: As `read`.
    """
    return _get(name).info.name.removeprefix(PREFIX)


def dataset_info(name: str) -> DatasetInfo:
    """Info of the data: mean and std of all images but a fifth, as of all data published whole.

    Raises:
        UsageError: As `read`.
    """
    return _get(name).info


def splits(name: str) -> tuple[str, ...]:
    """What the arrays are: `whole`.

    Raises:
        UsageError: As `read`.
    """
    return tuple(_get(name).splits)


def read(name: str, split: str) -> Split:
    """Read the arrays.

    Args:
        name: As `register` returned it.
        split: `whole`.

    Returns:
        The examples; `index` is the place in the arrays.

    Raises:
        UsageError: This process holds no such arrays.
    """
    return _get(name).splits[split]


def _get(name: str) -> SplitDataset:
    if name not in _held:
        raise UsageError(
            f"{name}: expected arrays in memory, but this process was not given them, or {HELD} others since; give "
            "them again, or save them by np.savez('FILE.npz', x=images, y=labels)"
        )
    _held[name] = _held.pop(name)  # the latest used one
    return _held[name]
