"""Images of one's own: `folder:PATH`, a folder of image files for each class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data import fingerprint
from bn_vuln.data.describe import shape
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.splits import Part, Published, part, publish, split_off
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend

PREFIX = "folder:"
EXPECTED = "expected PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*"


class Layout(NamedTuple):
    """`files`: class -> its image files, for each part (`train` and `test`, or the `whole` of it), in order."""

    root: Path
    files: dict[str, dict[str, list[Path]]]


def is_mine(name: str) -> bool:
    """Whether a data set's name is that of a folder of images."""
    return name.startswith(PREFIX)


def pinned(name: str) -> str:
    """The name with its path made absolute."""
    return f"{PREFIX}{_root(name)}"


def digest(name: str) -> str:
    """What identifies the content: names and bytes of all image files. Raises `UsageError` as `layout` does."""
    found = layout(_root(name))
    files = [path for classes in found.files.values() for paths in classes.values() for path in paths]
    return fingerprint.digest((path.relative_to(found.root).as_posix(), path) for path in files)


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the data: mean and std of the training images, classes by the names of their folders."""
    return _published(str(_root(name)), digest(name)).info


def read(name: str, split: str) -> Part:
    """`train` or `test`: images of PATH/train/CLASS/* and PATH/test/CLASS/*, or of PATH/CLASS/*, a fifth of which, by
    a fixed permutation, is the test split. Classes and files in the order of their names; hidden files do not count.

    PNG, JPEG, BMP or GIF (its first frame), gray or RGB, all of one square shape. Raises `UsageError` naming the
    folder or file that is not so.
    """
    return _published(str(_root(name)), digest(name)).parts[split]


def layout(root: Path) -> Layout:
    """The image files under a folder. Raises `UsageError` where a folder is missing or empty, or the parts have not the
    same classes."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; {EXPECTED}")
    # A class may be called train, but it holds no folders.
    if not any(path.is_dir() for path in _visible(root / "train")):
        return Layout(root, {"whole": _class_files(root)})
    parts = {split: _class_files(root / split) for split in ("train", "test")}
    different = sorted(parts["train"].keys() ^ parts["test"].keys())
    if different:
        raise UsageError(f"{root}: expected the same classes in train and test, {different[0]} is only in one of them")
    return Layout(root, parts)


def _root(name: str) -> Path:
    return Path(name.removeprefix(PREFIX)).expanduser().absolute()


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, in the order of the names, without what is hidden; nothing where there is none."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """class -> its image files."""
    found = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()}
    if len(found) < 2:
        raise UsageError(f"{folder}: expected folders of two classes or more, received {len(found)}; {EXPECTED}")
    for name, paths in found.items():
        if not paths:
            raise UsageError(f"{folder / name}: the class has no images")
        if inner := next((path for path in paths if path.is_dir()), None):
            raise UsageError(f"{inner}: expected an image file, received a folder; {EXPECTED}")
    return found


# ---------------------------------------------------------------- the images


@functools.lru_cache(maxsize=2)
def _published(root: str, digest: str) -> Published:
    found = layout(Path(root)).files
    # Decoded together, so that all parts have one shape.
    images = _decode([path for classes in found.values() for paths in classes.values() for path in paths])
    parts: dict[str, Part] = {}
    for split, classes in found.items():
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in classes.values()])
        parts[split], images = part(images[: len(labels)], labels), images[len(labels) :]
    names = tuple(next(iter(found.values())))
    return publish(f"folder:{digest}", names, split_off(parts["whole"], root) if "whole" in parts else parts)


def _decode(paths: list[Path]) -> NDArray[np.uint8]:
    """Images uint8 [n, size, size, 1 or 3], or `UsageError` naming the first file that is no image of that shape."""
    first = _image(paths[0])
    size, width, channels = first.shape
    if size != width or channels not in (1, 3):
        raise UsageError(f"{paths[0]}: expected a square image, gray or RGB, received {shape(first.shape)}")
    images = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        image = _image(path)
        if image.shape != first.shape:
            raise UsageError(
                f"{path}: expected {shape(first.shape)} as in {paths[0]}, received {shape(image.shape)}; "
                "bring all images to one size and one number of channels"
            )
        images[i] = image
    return images


def _image(path: Path) -> Any:
    """uint8 [height, width, channels] of an image file."""
    tf = backend.tensorflow()
    try:
        data = path.read_bytes()
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
            raise UsageError(f"{path}: expected 8 bits a channel, received 16")
        return tf.io.decode_image(data, expand_animations=False).numpy()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except tf.errors.OpError:
        raise UsageError(f"{path}: no PNG, JPEG, BMP or GIF image, or a damaged one") from None
