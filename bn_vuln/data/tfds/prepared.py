"""Prepared data sets in the data folder, read from TFDS' JSON files: instant, without an import of TFDS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bn_vuln.data import constants
from bn_vuln.data.tfds import paths
from bn_vuln.runtime.limits import TEXT_BYTES, is_plain_name, load_json, read_file
from bn_vuln.typing import Plain

INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"
IMAGES = "_images.npy"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        name: TFDS' name, with the config.
        folder: Folder of the version.
        sizes: Number of examples in each of TFDS' splits.
        shape: Shape of the images, 0 where a size varies; None where it is no set of labelled images.
        classes: Number of classes, None where it is no set of labelled images.
    """

    name: str
    folder: Path
    sizes: dict[str, int]
    shape: tuple[int, ...] | None
    classes: int | None


def read(folder: Path) -> Prepared | None:
    """Read the descriptions of the data set in a version's folder, or those of its arrays (see `plain`).

    TFDS takes any folder of that name for a prepared data set; here its descriptions must be there and all files of
    records (shards) that they name.

    Args:
        folder: NAME/[CONFIG/]VERSION in the data folder.

    Returns:
        The data set, or None where there is none, or not all of it.
    """
    if array_files(folder):
        return _arrays(folder)
    try:
        info, features = (load_json(read_file(folder / name, TEXT_BYTES)) for name in (INFO_FILE, FEATURES_FILE))
        splits = info["splits"]
        if not all(map(is_plain_name, [info["name"], *(split["name"] for split in splits)])):
            return None
        if not splits or any(_missing_shards(folder, info["name"], split) for split in splits):
            return None
        sizes = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in splits}
        name = f"{info['name']}/{info['configName']}" if info.get("configName") else info["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Prepared(name, folder, sizes, *_shape_and_classes(info, features))


def array_files(folder: Path) -> dict[str, Path]:
    """Return the files of images of a data set that was prepared as arrays, by split; empty for any other."""
    return {path.name.removesuffix(IMAGES): path for path in sorted(folder.glob(f"*{IMAGES}"), reverse=True)}


def _arrays(folder: Path) -> Prepared | None:
    """The data set of a folder of arrays."""
    import numpy as np

    try:
        images = {split: np.load(path, mmap_mode="r") for split, path in array_files(folder).items()}
        classes = (folder / "label.labels.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    name = folder.parent.relative_to(paths.data_dir()).as_posix()
    sizes, shape = {split: len(array) for split, array in images.items()}, next(iter(images.values())).shape[1:]
    return Prepared(name, folder, sizes, shape, len([text for text in classes if text]))


def find(name: str) -> Prepared | None:
    """Find the newest prepared version of a data set by its name, or None."""
    return next(_versions(paths.data_dir() / name), None) if constants.NAME_PATTERN.fullmatch(name) else None


def all_prepared() -> list[Prepared]:
    """List the newest prepared version of each data set in the data folder."""
    tops = [path for path in sorted(paths.data_dir().glob("*")) if path.is_dir() and path.name != "downloads"]
    folders = [folder for top in tops for folder in (top, *sorted(top.glob("*/")))]
    return [found for folder in folders if (found := next(_versions(folder), None)) is not None]


def _versions(folder: Path) -> Iterator[Prepared]:
    """Prepared versions in a data set's folder, the newest first."""
    folders = [path for path in folder.glob("*.*.*") if path.name.replace(".", "").isdigit()]
    for path in sorted(folders, key=lambda p: tuple(map(int, p.name.split("."))), reverse=True):
        if (found := read(path)) is not None:
            yield found


def _missing_shards(folder: Path, name: str, split: Plain) -> bool:
    """Return True if files of a split are missing (names other than TFDS' usual ones are not checked)."""
    n = len(split.get("shardLengths", []))
    if split.get("filepathTemplate", TEMPLATE) != TEMPLATE:
        return False
    return len(list(folder.glob(f"{name}-{split['name']}.*-of-{n:05d}"))) < n


def _shape_and_classes(info: Plain, features: Plain) -> tuple[tuple[int, ...] | None, int | None]:
    """(shape of the images, number of classes), both None where it is no set of labelled images."""
    try:
        image, label = (item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"])
        declared = features["featuresDict"]["features"]
        shape = declared[image]["image"]["shape"]["dimensions"]
        return tuple(max(int(size), 0) for size in shape), int(declared[label]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError):
        return None, None
