"""User data as `folder:PATH`: a folder of image files for each class."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from bn_vuln.data import fingerprint
from bn_vuln.data.describe import format_shape
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend
from bn_vuln.typing import StoredImages

PREFIX = "folder:"
EXPECTED = "expected PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*"
ImageFiles = dict[str, dict[str, list[Path]]]  # split (`train` and `test`, or `whole`) -> class -> files, in order


def matches(name: str) -> bool:
    """Return True for folder:PATH."""
    return name.startswith(PREFIX)


def absolute_name(name: str) -> str:
    """The name with its path made absolute."""
    return f"{PREFIX}{_root(name)}"


def _root(name: str) -> Path:
    return Path(name.removeprefix(PREFIX)).expanduser().absolute()


def digest(name: str) -> str:
    """Digest of the names and bytes of all image files.

    Raises:
        UsageError: As `image_files`.
    """
    root = _root(name)
    return fingerprint.digest((path.relative_to(root).as_posix(), path) for path in _all_files(image_files(root)))


def dataset_info(name: str) -> DatasetInfo:
    """Info of the data: mean and std of the training images, classes by the names of their folders.

    Raises:
        UsageError: As `read`.
    """
    return _load(_root(name), digest(name)).info


def splits(name: str) -> tuple[str, ...]:
    """What the folder holds: `train` and `test`, or `whole`.

    Raises:
        UsageError: As `read`.
    """
    return tuple(_load(_root(name), digest(name)).splits)


def read(name: str, split: str) -> Split:
    """Read a split of a folder of images.

    The images are those of PATH/train/CLASS/* and PATH/test/CLASS/*, or of PATH/CLASS/*, of which a fifth, by a fixed
    permutation, is the test split. Classes and files come in the order of their names; hidden files do not count.

    Args:
        name: folder:PATH, of PNG, JPEG, BMP or GIF files (the first frame), gray or RGB, all of one square shape.
        split: `train` or `test`.

    Returns:
        The examples; `index` counts the files of a published split in their order.

    Raises:
        UsageError: A folder or file, which is named, is not there or not of this format.
    """
    return _load(_root(name), digest(name)).splits[split]


def image_files(root: Path) -> ImageFiles:
    """Find the image files under a folder.

    Args:
        root: Folder of the classes, or of `train` and `test`.

    Returns:
        split (`train` and `test`, or `whole`) -> class -> paths, in the order of their names.

    Raises:
        UsageError: A folder is missing or empty, or the splits have different classes.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; {EXPECTED}")
    # A class may be called train, but it holds no folders.
    if not any(path.is_dir() for path in _visible(root / "train")):
        return {"whole": _files_by_class(root)}
    splits = {split: _files_by_class(root / split) for split in ("train", "test")}
    different = sorted(splits["train"].keys() ^ splits["test"].keys())
    if different:
        raise UsageError(f"{root}: expected the same classes in train and test, {different[0]} is only in one of them")
    return splits


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    files = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()}
    if len(files) < 2:
        raise UsageError(f"{folder}: expected folders of two classes or more, received {len(files)}; {EXPECTED}")
    for name, paths in files.items():
        if not paths:
            raise UsageError(f"{folder / name}: the class has no images")
        if inner := next((path for path in paths if path.is_dir()), None):
            raise UsageError(f"{inner}: expected an image file, received a folder; {EXPECTED}")
    return files


def _visible(folder: Path) -> list[Path]:
    """Content of a folder that is not hidden, in the order of the names; nothing where there is no folder."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _all_files(files: ImageFiles) -> list[Path]:
    return [path for classes in files.values() for paths in classes.values() for path in paths]


@functools.lru_cache(maxsize=2)
def _load(root: Path, digest: str) -> SplitDataset:
    """The data set in a folder; `digest` keys the cache and names the data."""
    files = image_files(root)
    images = decode_images(_all_files(files))  # together, so that all splits have one shape
    splits: dict[str, Split] = {}
    for split, classes in files.items():
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in classes.values()])
        splits[split], images = Split.whole(images[: len(labels)], labels), images[len(labels) :]
    names = tuple(next(iter(files.values())))
    return SplitDataset.from_splits(f"folder:{digest}", names, splits, label=f"{PREFIX}{root}")


def decode_images(paths: list[Path]) -> StoredImages:
    """Decode image files of one square shape.

    Args:
        paths: PNG, JPEG, BMP or GIF files, gray or RGB.

    Returns:
        uint8 [n, size, size, 1 or 3].

    Raises:
        UsageError: A file, which is named, is no image, or not of the shape of the first.
    """
    first = decode_image(paths[0])
    size, width, channels = first.shape
    if size != width or channels not in (1, 3):
        raise UsageError(f"{paths[0]}: expected a square image, gray or RGB, received {format_shape(first.shape)}")
    images = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        image = decode_image(path)
        if image.shape != first.shape:
            raise UsageError(
                f"{path}: expected {format_shape(first.shape)} as in {paths[0]}, received {format_shape(image.shape)}; "
                "bring all images to one size and one number of channels"
            )
        images[i] = image
    return images


def decode_image(path: Path) -> StoredImages:
    """Decode one image file.

    Args:
        path: A PNG, JPEG, BMP or GIF file, whose first frame is taken.

    Returns:
        uint8 [height, width, channels].

    Raises:
        UsageError: The file cannot be read or decoded, or has 16 bits a channel.
    """
    tf = backend.tensorflow()
    try:
        data = path.read_bytes()
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
            raise UsageError(f"{path}: expected 8 bits a channel, received 16")
        image: StoredImages = tf.io.decode_image(data, expand_animations=False).numpy()
        return image
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except tf.errors.OpError:
        raise UsageError(f"{path}: no PNG, JPEG, BMP or GIF image, or a damaged one") from None
