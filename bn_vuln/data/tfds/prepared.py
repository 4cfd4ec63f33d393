"""What TFDS has prepared in the data folder, read from its JSON files: no import of TFDS, so that it is instant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bn_vuln.data import constants
from bn_vuln.data.tfds import paths

INFO, FEATURES = "dataset_info.json", "features.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Prepared:
    """A data set prepared in `folder`: `sizes` of its splits, `shape` of its images (0 where it varies) and number of
    `classes`, both None where it is no set of labelled images."""

    name: str
    folder: Path
    sizes: dict[str, int]
    shape: tuple[int, ...] | None
    classes: int | None


def read(folder: Path) -> Prepared | None:
    """The data set prepared in a version's folder, or None where there is none, or not all of it.

    TFDS takes any folder of that name for a prepared data set; here its descriptions must be there and all files of
    records (shards) that they name.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        features = json.loads((folder / FEATURES).read_text(encoding="utf-8"))
        splits = info["splits"]
        if not splits or any(_missing_shards(folder, info["name"], split) for split in splits):
            return None
        sizes = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in splits}
        name = f"{info['name']}/{info['configName']}" if info.get("configName") else info["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Prepared(name, folder, sizes, *_outline(info, features))


def find(name: str) -> Prepared | None:
    """The newest version of a named data set that is prepared."""
    return next(_versions(paths.data_dir() / name), None) if constants.NAME.fullmatch(name) else None


def all_prepared() -> list[Prepared]:
    """The newest prepared version of each data set in the data folder."""
    tops = [path for path in sorted(paths.data_dir().glob("*")) if path.is_dir() and path.name != "downloads"]
    folders = [folder for top in tops for folder in (top, *sorted(top.glob("*/")))]
    return [found for folder in folders if (found := next(_versions(folder), None)) is not None]


def _versions(folder: Path) -> Iterator[Prepared]:
    """What is prepared in a data set's folder, the newest version first."""
    folders = [path for path in folder.glob("*.*.*") if path.name.replace(".", "").isdigit()]
    for path in sorted(folders, key=lambda p: tuple(map(int, p.name.split("."))), reverse=True):
        if (found := read(path)) is not None:
            yield found


def _missing_shards(folder: Path, name: str, split: dict[str, Any]) -> bool:
    """Whether records of a split are missing (not known for names other than TFDS' usual ones)."""
    n = len(split.get("shardLengths", []))
    if split.get("filepathTemplate", TEMPLATE) != TEMPLATE:
        return False
    return len(list(folder.glob(f"{name}-{split['name']}.*-of-{n:05d}"))) < n


def _outline(info: Any, features: Any) -> tuple[tuple[int, ...] | None, int | None]:
    """(shape of the images, number of classes), None where the data set is no set of labelled images."""
    try:
        image, label = (item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"])
        described = features["featuresDict"]["features"]
        shape = described[image]["image"]["shape"]["dimensions"]
        return tuple(max(int(size), 0) for size in shape), int(described[label]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError):
        return None, None
