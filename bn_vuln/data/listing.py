"""Lists and descriptions of data sets as plain dicts, for `bnvuln data list` and `info`.

TensorFlow is needed only where user data have to be read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from bn_vuln.data import constants, mnist, tfds, toy, toy_photos
from bn_vuln.data.constants import Summary
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.sources import BUILT_IN, user_data_source
from bn_vuln.data.tfds import downloads, network, paths, plain, prepared
from bn_vuln.errors import UsageError
from bn_vuln.typing import Plain


def list_datasets() -> list[Plain]:
    """List the data sets that are bundled, well-known, or prepared in the data folder.

    Returns:
        A dict for each: `name`, `shape`, number of `classes`, `sizes` of train and test, and `state` (bundled, made,
        prepared, not prepared).
    """
    on_disk: dict[str, Summary] = {}
    for found in prepared.all_prepared():
        # Only sets of square images with a train or a test split can be read.
        if found.name not in BUILT_IN and found.shape and found.classes and found.shape[0] == found.shape[1]:
            with contextlib.suppress(UsageError):
                sizes = tfds.sizes(found.name, found.sizes)
                on_disk[found.name] = Summary(found.shape, found.classes, sizes)
    rows = [("mnist", Summary.of(mnist.INFO), "bundled")]
    rows += [(info.name, Summary.of(info), "made") for info in (toy.INFO, toy_photos.INFO)]
    for name, summary in {**constants.summaries(), **on_disk}.items():
        rows.append((name, summary, "prepared" if name in on_disk else "not prepared"))
    return [{"name": name, **summary._asdict(), "state": state} for name, summary, state in rows]


def describe_dataset(name: str) -> Plain:
    """Describe a data set without preparing it.

    Args:
        name: Any name that `load` takes.

    Returns:
        A dict of `name`, `label` (as `DatasetInfo` has it, like `notes` and `flags`), `shape`, `classes`, `splits`
        (what was published) and `sizes`, which are empty where they are not known yet, `mean` and `std` (None where
        they are computed when the data are first read), `state` (bundled, made, prepared, not prepared, user data),
        `folder`, `files`, `notes` and `flags`; of a data set of TFDS also `by_hand`, its instructions where files have
        to be downloaded by hand, and `put_into`, the folder for them.

    Raises:
        UsageError: The name is not known, or user data are not of the expected format.
        BnvulnError: The data set is damaged.
    """
    if name in (toy.INFO.name, toy_photos.INFO.name):
        return _describe(BUILT_IN[name], "made")
    if name == "mnist":
        files = [
            {
                "name": file,
                "size": (mnist.FOLDER / file).stat().st_size,
                "sha256": sha,
                "host": None,
                "found": "bundled",
            }
            for file, sha in mnist.SHA256.items()
        ]
        return {**_describe(mnist.INFO, "bundled", str(mnist.FOLDER)), "files": files}
    source = user_data_source(name)
    if source is not None:
        return _describe(source.dataset_info(name), "user data", source.absolute_name(name), source.splits(name))
    return _describe_tfds(name)


def _describe(info: DatasetInfo, state: str, folder: str = "", splits: tuple[str, ...] = ("train", "test")) -> Plain:
    shown = ("name", "label", "shape", "classes", "sizes", "mean", "std", "notes", "flags")
    fields = {key: getattr(info, key) for key in shown}
    return {**fields, "splits": splits, "state": state, "folder": folder, "files": []}


def _describe_tfds(name: str) -> Plain:
    plainly = plain.find(name)
    if plainly is not None:
        described = _describe(tfds.dataset_info(name), "prepared", str(plainly.folder), tfds.splits(name))
        return {**described, "by_hand": None, "put_into": ""}
    builder = tfds.find_builder(name)
    found, known = prepared.read(Path(builder.data_dir)), constants.summaries().get(name)
    statistics = tfds.stored_statistics(Path(builder.data_dir))
    computed = (statistics.mean, statistics.std) if statistics else (None, None)
    mean, std = constants.standardization(name) or computed
    sizes = tfds.sizes(name, found.sizes) if found else known.sizes if known else {}
    image, label = tfds.supervised(name, builder)
    return {
        "name": name,
        "label": name,
        "shape": statistics.shape if statistics else tuple(image.shape),
        "classes": constants.DATASET_INFO[name].classes if name in constants.DATASET_INFO else tuple(label.names),
        "splits": tuple(tfds.split_names(name, list(found.sizes))) if found else tuple(sizes),
        "sizes": sizes,
        "notes": (),
        "flags": (),
        "mean": mean,
        "std": std,
        "state": "prepared" if found else "not prepared",
        "folder": str(builder.data_dir),
        "files": [
            {
                "name": file.name,
                "size": file.size,
                "sha256": file.sha256,
                "host": network.host(file.url),
                "found": file.found,
            }
            for file in downloads.files(builder)
        ],
        "by_hand": downloads.by_hand(builder),
        "put_into": str(paths.suggested_manual_dir(builder.name)),
    }
