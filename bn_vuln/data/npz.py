"""User data in an .npz file: arrays of images and labels, under the names that people give them."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bn_vuln.data import array_checks, fingerprint
from bn_vuln.data.describe import first_line, format_list
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import PUBLISHED, SPLIT_WORDS, WHOLE, Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.runtime import limits
from bn_vuln.runtime.memory import check_memory
from bn_vuln.typing import AnyArray, Arrays

# What the words in the name of an array say: x_train, train_images, val_labels.
ROLES = {
    "images": ("x", "image", "images", "img", "imgs", "data"),
    "labels": ("y", "label", "labels", "lbl", "target", "targets"),
}
EXPECTED = "expected x_train, y_train, x_test, y_test (or some of these splits), or x and y"
AS_WRITTEN = "expected an .npz file as np.savez writes it"
CLASS_NAMES = ("classes", "class_names")


def matches(name: str) -> bool:
    """Return True for the path of an .npz file; of an .npy file too, so that it is refused by name."""
    return name.lower().endswith((".npz", ".npy"))


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
        found = "no such file" if not path.exists() else "no file" if not path.is_dir() else "a folder, no file"
        raise UsageError(f"{path}: {found}; {EXPECTED} in an .npz file")
    return fingerprint.digest([("", path)])


def dataset_info(name: str) -> DatasetInfo:
    """Info of the data: mean and std of the training images, classes by their names or numbers.

    Raises:
        UsageError: As `read`.
    """
    return _load(absolute_name(name), digest(name)).info


def splits(name: str) -> tuple[str, ...]:
    """What the file holds: some of `train`, `validation` and `test`, or `whole`.

    Raises:
        UsageError: As `read`.
    """
    return tuple(_load(absolute_name(name), digest(name)).splits)


def read(name: str, split: str) -> Split:
    """Read what a file holds.

    Its arrays are x_train and y_train, x_val and y_val, x_test and y_test, as Keras names them, or some of these pairs;
    or x and y; or under other names of the words above, as train_images and train_labels. `classes` are names of the
    classes, where they have any.

    Args:
        name: Path of a file with images and labels as `array_checks` takes them.
        split: One of `splits`.

    Returns:
        The examples; `index` is the place in the arrays of the file.

    Raises:
        UsageError: The file is not there or not of this format; the message says what was expected and received.
    """
    return _load(absolute_name(name), digest(name)).splits[split]


@functools.lru_cache(maxsize=2)
def _load(path: str, digest: str) -> SplitDataset:
    """The data set in a file; `digest` keys the cache and names the data."""
    pairs, arrays, notes = _read(path)
    names = next((arrays[name] for name in CLASS_NAMES if name in arrays), None)
    return array_checks.dataset(f"npz:{digest}", pairs, arrays, names, label=path, notes=notes)


def _read(path: str) -> tuple[dict[str, tuple[str, str]], Arrays, tuple[str, ...]]:
    """Read the arrays of a file that make a data set.

    Args:
        path: An .npz file.

    Returns:
        (split, or `whole` -> names of its images and labels; the arrays by name; what is to be said).

    Raises:
        UsageError: The file cannot be read, or arrays are missing.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            remedy = "make the file by np.savez('FILE.npz', x=images, y=labels)"
            raise UsageError(f"{path}: {EXPECTED}, received one array without a name; {remedy}")
        if start and not start.startswith(b"PK"):
            raise UsageError(f"{path}: is no .npz file; {AS_WRITTEN}")
        with zipfile.ZipFile(path) as members:
            limits.check_archive(members)
        with np.load(path, allow_pickle=False) as archive:
            pairs = _pairs(archive.files, path)
            used = [*(name for pair in pairs.values() for name in pair), *CLASS_NAMES]
            size = sum(limits.check_array(archive.zip, name) for name in used if name in archive)
            check_memory(size, f"the arrays of {path}", "take fewer images")
            left_out = [name for name in archive.files if name not in used]
            notes = (f"left out: {format_list(left_out)}",) if left_out else ()
            return pairs, {name: _array(archive, name, path) for name in used if name in archive}, notes
    except UsageError:
        raise
    except Exception as error:  # zip, zlib and the parser of headers raise many kinds; all mean the same to the user
        raise UsageError(
            f"{path}: cannot be read ({first_line(error)}); expected an .npz file as np.savez writes it"
        ) from None


def _array(archive: Mapping[str, AnyArray | bytes], name: str, path: str) -> AnyArray:
    """What an archive has of this name; `UsageError` where that is no array, or one of Python objects."""
    try:
        found = archive[name]
    except ValueError as error:
        if not str(error).startswith("Object arrays"):
            raise
        raise UsageError(
            f"{path}: {name} holds Python objects, which are not loaded because they can run code; save numbers, or "
            "text as np.array(names, str)"
        ) from None
    if isinstance(found, bytes):
        raise UsageError(f"{path}: {name} is no array; {AS_WRITTEN}")
    return found


def _pairs(names: list[str], path: str) -> dict[str, tuple[str, str]]:
    """Find the images and labels among the names of arrays.

    Args:
        names: Names of all arrays.
        path: The file, for the error message.

    Returns:
        split -> (name of the images, name of the labels), of published splits in their order, or of `whole`.

    Raises:
        UsageError: Two names say the same, or no split has both images and labels.
    """
    found: dict[tuple[str, str], str] = {}  # (split, images or labels) -> name
    for name in names:
        role = _role(name)
        if role in found:
            split = "" if role[0] == WHOLE else f" of {role[0]}"
            raise UsageError(f"{path}: {found[role]} and {name} are both {role[1]}{split}; leave one of them out")
        if role is not None:
            found[role] = name
    complete = [split for split in (*PUBLISHED, WHOLE) if {(split, "images"), (split, "labels")} <= found.keys()]
    if not complete:
        lonely = next(iter(found), None)
        missing = "" if lonely is None else f", where {found[lonely]} lacks its {_other(lonely[1])}"
        received = format_list(names, 12) or "no arrays"
        example = ", ".join(f"{key}=a[{name!r}]" for key, name in zip("xy", [*names, "...", "..."], strict=False))
        remedy = f"name them so: a = np.load('OLD.npz'); np.savez('NEW.npz', {example})"
        raise UsageError(f"{path}: {EXPECTED}, received {received}{missing}; {remedy}")
    chosen = [split for split in complete if split != WHOLE] or complete
    return {split: (found[split, "images"], found[split, "labels"]) for split in chosen}


def _other(role: str) -> str:
    return "labels" if role == "images" else "images"


def _role(name: str) -> tuple[str, str] | None:
    """(split, `images` or `labels`) that a name says an array to be, None where it says nothing of the kind."""
    separated = re.sub("(?<=[a-z])(?=[A-Z])", "_", name)  # testX
    words = re.split("[_ .-]", re.sub("^([xy])(?=[a-z]{3})", r"\1_", separated.lower()))  # xtest
    roles = [role for word in words for role, known in ROLES.items() if word in known]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    if len(roles) != 1 or len(words) != 1 + len(splits) or len(splits) > 1:
        return None
    return splits[0] if splits else WHOLE, roles[0]
