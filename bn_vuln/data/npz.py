"""User data in an .npz file: arrays of uint8 images and integer labels."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np

from bn_vuln.data import fingerprint
from bn_vuln.data.describe import first_line
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.typing import AnyArray, Arrays, Labels, StoredImages

# Names of the arrays of images and labels in a file with two splits, and in one without.
TWO_SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
ONE_SPLIT = {"whole": ("x", "y")}
EXPECTED = "expected x_train, y_train, x_test, y_test, or x and y"
# Errors of np.load for files that are not .npz, or damaged.
LOAD_ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def matches(name: str) -> bool:
    """Return True for the path of an .npz file."""
    return name.lower().endswith(".npz")


def absolute_name(name: str) -> str:
    """The name with its path made absolute."""
    return str(Path(name).expanduser().absolute())


def digest(name: str) -> str:
    """Digest of the file's content.

    Raises:
        UsageError: There is no such file.
    """
    path = Path(absolute_name(name))
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {EXPECTED} in an .npz file")
    return fingerprint.digest([("", path)])


def dataset_info(name: str) -> DatasetInfo:
    """Info of the data: mean and std of the training images, classes by their names or numbers.

    Raises:
        UsageError: As `read`.
    """
    return _load(absolute_name(name), digest(name)).info


def splits(name: str) -> tuple[str, ...]:
    """What the file holds: `train` and `test`, or `whole`.

    Raises:
        UsageError: As `read`.
    """
    return tuple(_load(absolute_name(name), digest(name)).splits)


def read(name: str, split: str) -> Split:
    """Read a split of an .npz file.

    The file holds x_train, y_train, x_test and y_test, as Keras names them, or x and y, of which a fifth, by a fixed
    permutation, is the test split; and `classes` where they have names.

    Args:
        name: Path of a file with images uint8 [n, size, size] or [n, size, size, 1 or 3], and labels 0..K-1, whole
            numbers [n] or [n, 1].
        split: `train` or `test`.

    Returns:
        The examples; `index` is the place in the arrays of the file.

    Raises:
        UsageError: The file is not there or not of this format; the message says what was expected and received.
    """
    return _load(absolute_name(name), digest(name)).splits[split]


@functools.lru_cache(maxsize=2)
def _load(path: str, digest: str) -> SplitDataset:
    """The data set in a file; `digest` keys the cache and names the data."""
    arrays = read_arrays(path)
    splits = {}
    for split, (x, y) in (TWO_SPLITS if "x_train" in arrays else ONE_SPLIT).items():
        images, labels = checked_images(arrays[x], f"{path}: {x}"), checked_labels(arrays[y], f"{path}: {y}")
        if len(images) != len(labels):
            raise UsageError(f"{path}: {x} has {len(images)} images and {y} {len(labels)} labels, expected as many")
        splits[split] = Split.whole(images, labels)
    names = checked_names(arrays["classes"], path) if "classes" in arrays else None
    classes = checked_classes(names, [split.labels for split in splits.values()], path)
    if "train" in splits:
        train, test = (split.images.shape[1:] for split in splits.values())
        if train != test:
            raise UsageError(f"{path}: expected images of one shape, received {train} to train, {test} to test")
    return SplitDataset.from_splits(f"npz:{digest}", classes, splits, label=path)


def read_arrays(path: str) -> Arrays:
    """Read the arrays of a file that make a data set.

    Args:
        path: An .npz file.

    Returns:
        The arrays of two splits or of one, and `classes` where it is there, by name.

    Raises:
        UsageError: The file cannot be read, or arrays are missing.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UsageError(f"{path}: {EXPECTED}, received one array without a name")
        with loaded as archive:
            for names in (sum(TWO_SPLITS.values(), ()), ONE_SPLIT["whole"]):
                if set(names) <= set(archive):
                    return {name: archive[name] for name in (*names, "classes") if name in archive}
            raise UsageError(f"{path}: {EXPECTED}, received {', '.join(archive) or 'no arrays'}")
    except UsageError:
        raise
    except LOAD_ERRORS as error:
        text = first_line(error)
        if text.startswith("Object arrays"):
            reason = "holds Python objects, which are not loaded because they can run code"
        else:  # NumPy takes any file that it does not know for a pickled one
            reason = "is no .npz file" if "pickled" in text else f"cannot be read ({text})"
        raise UsageError(f"{path}: {reason}; expected an .npz file as np.savez writes it") from None


def checked_images(array: AnyArray, label: str) -> StoredImages:
    """Check an array of images and add the axis of channels where it lacks.

    Args:
        array: uint8 [n, size, size] or [n, size, size, 1 or 3].
        label: Beginning of the error message.

    Returns:
        uint8 [n, size, size, 1 or 3].

    Raises:
        UsageError: The array has another type or shape.
    """
    if array.dtype != np.uint8:
        remedy = "; of pixels in [0, 1] make them by np.uint8(np.round(255 * x))" if array.dtype.kind == "f" else ""
        raise UsageError(f"{label}: expected uint8 pixels of 0 to 255, received {array.dtype}{remedy}")
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and len(images) and images.shape[1] == images.shape[2] and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images)
    channels_first = array.ndim == 4 and array.shape[1] in (1, 3)
    remedy = "; move the channels last by x.transpose(0, 2, 3, 1)" if channels_first else ""
    expected = "expected square images [n, size, size] or [n, size, size, 1 or 3]"
    raise UsageError(f"{label}: {expected}, received {list(array.shape)}{remedy}")


def checked_labels(array: AnyArray, label: str) -> Labels:
    """Check an array of labels.

    Args:
        array: Whole numbers >= 0, [n] or [n, 1].
        label: Beginning of the error message.

    Returns:
        int32 [n].

    Raises:
        UsageError: The array has another type or shape, or holds negative or huge numbers.
    """
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        remedy = "; of one-hot labels make them by y.argmax(1)" if array.ndim == 2 else ""
        raise UsageError(f"{label}: expected labels [n] or [n, 1], received {list(array.shape)}{remedy}")
    if array.dtype.kind not in "iu":
        raise UsageError(f"{label}: expected whole numbers, received {array.dtype}")
    if len(array) and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise UsageError(f"{label}: expected labels of 0 to K-1, received {array.min()} to {array.max()}")
    return array.ravel().astype(np.int32)


def checked_names(array: AnyArray, path: str) -> tuple[str, ...]:
    """Names of the classes, from an array of text [K]; raise `UsageError` for any other array."""
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise UsageError(f"{path}: classes: expected names [K], received {array.dtype} {list(array.shape)}")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array.tolist())


def checked_classes(names: tuple[str, ...] | None, labels: list[Labels], path: str) -> tuple[str, ...]:
    """Check that the training labels are 0..K-1 and that all other labels are among them.

    Args:
        names: Names of the classes, None where they have none.
        labels: Labels of each split, the training labels first.
        path: The file, for the error message.

    Returns:
        The names of the classes; their numbers where they have none.

    Raises:
        UsageError: A class has no training example, or a label no class.
    """
    present, highest = np.unique(labels[0]), max(int(array.max()) for array in labels)
    k = int(present[-1]) + 1 if names is None else len(names)
    if highest >= k:
        given = "the training labels are" if names is None else "classes names"
        raise UsageError(f"{path}: {given} 0 to {k - 1}, received a label {highest}")
    if len(present) < max(k, 2):
        absent = next(label for label in range(k + 1) if label >= len(present) or present[label] != label)
        raise UsageError(f"{path}: expected training labels of every class 0 to {max(k, 2) - 1}, none is {absent}")
    return tuple(map(str, range(k))) if names is None else names
