"""What `bnvuln data list` and `bnvuln data info` say, as plain dicts; of named data sets without TensorFlow."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from bn_vuln.data import constants, mnist, tfds, toy
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.tfds import downloads, paths, prepared
from bn_vuln.errors import UsageError


def rows() -> list[dict[str, Any]]:
    """One dict for each data set that is bundled, known here or prepared in the data folder: `name`, `shape`, number
    of `classes`, `sizes` of train and test, `state` (bundled, made, prepared, not prepared)."""
    bundled = constants.Outline(mnist.INFO.shape, len(mnist.INFO.classes), mnist.INFO.sizes)
    found = {p.name: outline for p in prepared.all_prepared() if (outline := _outline(p)) is not None}
    for ours in (mnist.INFO, toy.INFO):
        found.pop(ours.name, None)
    shown = [(name, found.get(name, outline)) for name, outline in constants.outlines().items()]
    shown += [(name, outline) for name, outline in found.items() if name not in constants.outlines()]
    states = {name: "prepared" if name in found else "not prepared" for name, _ in shown}
    points = constants.Outline(toy.INFO.shape, len(toy.INFO.classes), toy.INFO.sizes)
    here = [_row(mnist.INFO.name, "bundled", bundled), _row(toy.INFO.name, "made", points)]
    return [*here, *(_row(name, states[name], outline) for name, outline in shown)]


def own(info: DatasetInfo, folder: str) -> dict[str, Any]:
    """What is known of one's own data, or of a bundled set, in `folder`: `files` are none that need be had."""
    return {**_plain(info), "state": "own", "folder": folder, "files": []}


def made(info: DatasetInfo) -> dict[str, Any]:
    """What is known of a data set that is made when it is read: there are no files."""
    return {**_plain(info), "state": "made", "folder": "", "files": []}


def bundled() -> dict[str, Any]:
    """What is known of the bundled set, with its files."""
    shown = [
        {"name": name, "size": (mnist.FOLDER / name).stat().st_size, "sha256": sha256, "host": None, "found": "bundled"}
        for name, sha256 in mnist.SHA256.items()
    ]
    return {**_plain(mnist.INFO), "state": "bundled", "folder": str(mnist.FOLDER), "files": shown}


def named(name: str) -> dict[str, Any]:
    """What is known of a TFDS data set before and after it is prepared, and the files it is made of.

    `sizes` is empty, `mean` and `std` are None where that takes the data. Raises `UsageError` as `tfds.find_builder`.
    """
    builder = tfds.find_builder(name)
    found, known_here = prepared.read(Path(builder.data_dir)), constants.outlines().get(name)
    measured = tfds.kept(Path(builder.data_dir))
    mean, std = constants.units(name) or (measured[1:] if measured else (None, None))
    sizes = tfds.sizes(name, found.sizes) if found else known_here.sizes if known_here else {}
    needed = downloads.needs(builder)
    return {
        "name": name,
        "shape": measured[0] if measured else tuple(builder.info.features[tfds.supervised(name, builder)[0]].shape),
        "classes": constants.INFO[name].classes if name in constants.INFO else tfds.classes(builder),
        "sizes": sizes,
        "mean": mean,
        "std": std,
        "state": "prepared" if found else "not prepared",
        "folder": str(builder.data_dir),
        "files": [_file(file) for file in needed.files or downloads.registered(builder)],
        "by_hand": downloads.instructions(builder) if needed.by_hand else None,
        "put_into": str(paths.manual_advised(builder.name)),
    }


def _file(file: downloads.File) -> dict[str, Any]:
    where = "downloaded" if file.cached else str(file.manual) if file.manual else None
    return {"name": file.name, "size": file.size, "sha256": file.sha256, "host": file.host, "found": where}


def _plain(info: DatasetInfo) -> dict[str, Any]:
    return {key: getattr(info, key) for key in ("name", "shape", "classes", "sizes", "mean", "std")}


def _outline(found: prepared.Prepared) -> constants.Outline | None:
    """What is listed of a prepared data set, or None where it is no image classification set that can be read."""
    if found.shape is None or found.classes is None or found.shape[0] != found.shape[1]:
        return None
    with contextlib.suppress(UsageError):
        return constants.Outline(found.shape, found.classes, tfds.sizes(found.name, found.sizes))
    return None


def _row(name: str, state: str, outline: constants.Outline) -> dict[str, Any]:
    return {"name": name, "shape": outline.shape, "classes": outline.classes, "sizes": outline.sizes, "state": state}
