"""Image classification sets of TensorFlow Datasets by name: `fashion_mnist`, `cifar10`, `cifar10_1/v6`, any other."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bn_vuln.config import nearest
from bn_vuln.data import constants
from bn_vuln.data.describe import first_line, listed
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.splits import Part, channel_statistics, part, split_off, split_sizes
from bn_vuln.data.tfds import paths, prepared
from bn_vuln.data.tfds.prepare import is_prepared, prepare
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write

# What is computed of the training images is kept beside them, so that it is computed once.
MEASURED = "bnvuln_facts.json"
Measured = tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set. Those with constants in use are known without their data; any other is prepared.

    Raises `UsageError` for an unknown name or a set of another kind, `BnvulnError` where it cannot be prepared.
    """
    if name in constants.INFO:
        found = prepared.find(name)
        return constants.INFO[name] if found is None else replace(constants.INFO[name], sizes=sizes(name, found.sizes))
    builder = ready(name)
    shape, mean, std = _measured(name, builder)
    mean, std = constants.units(name) or (mean, std)
    return DatasetInfo(name, shape, classes(builder), mean, std, sizes(name, _published(builder)))


def read(name: str, split: str) -> Part:
    """`train` or `test` of a data set, prepared if it was not.

    The test split is TFDS' `test`, else its `validation`, else a fifth of `train` by a fixed permutation; `index` is
    the place in TFDS' split. Raises as `dataset_info` does, and `UsageError` where there are no training images.
    """
    builder = ready(name)
    theirs = split_names(name, list(builder.info.splits))
    if split not in theirs:
        raise UsageError(f"{name} has only a {theirs['test']} split: models can be evaluated on it, not trained")
    whole = _whole(name, theirs[split], builder.data_dir)
    return split_off(whole, name)[split] if len(set(theirs.values())) < len(theirs) else whole


def find_builder(name: str) -> Any:
    """TFDS' builder of a data set in the data folder; neither TensorFlow nor the data are needed.

    Raises `UsageError` for a name or a config that TFDS does not know, or a set that is not of labelled images.
    """
    if not constants.NAME.fullmatch(name):
        raise _unknown(name)
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=str(paths.data_dir()))
    except tensorflow_datasets.core.DatasetNotFoundError:
        raise _unknown(name) from None
    except Exception as error:
        _refuse_unknown_config(name)
        folder = paths.data_dir() / name
        mend = f"; remove {folder} to prepare it again" if folder.exists() else ""
        raise BnvulnError(f"{name}: {first_line(error)}{mend}") from error
    supervised(name, builder)
    return builder


def ready(name: str) -> Any:
    """The builder of a data set that is prepared, now if it was not."""
    builder = find_builder(name)
    if not is_prepared(builder):
        prepare(name, builder)
        builder = find_builder(name)
    return builder


def supervised(name: str, builder: Any) -> tuple[str, str]:
    """The keys of a builder's image and label. Raises `UsageError` where it has not one of each, or the images are
    not square, gray or RGB, and uint8, as far as TFDS declares it."""
    from tensorflow_datasets import features

    # Some data sets have no dict of features, or nested keys.
    known_features = dict(getattr(builder.info.features, "items", dict)())
    keys = builder.info.supervised_keys
    kinds = [known_features.get(key) for key in keys or () if isinstance(key, str)]
    if len(kinds) != 2 or not isinstance(kinds[0], features.Image) or not isinstance(kinds[1], features.ClassLabel):
        found = listed(f"{key}: {type(kind).__name__}" for key, kind in known_features.items())
        raise UsageError(
            f"{name} is no image classification set: expected an Image and a ClassLabel as its supervised keys, "
            f"received {keys} of the features {found or builder.info.features}"
        )
    height, width, channels = kinds[0].shape
    if height != width or channels not in (1, 3) or kinds[0].np_dtype != np.uint8:
        raise UsageError(
            f"{name}: expected square uint8 images, gray or RGB, received {kinds[0].np_dtype.__name__} of shape "
            f"{kinds[0].shape}"
        )
    return keys[0], keys[1]


def split_names(name: str, names: list[str]) -> dict[str, str]:
    """ours -> TFDS', of those among `names` that hold it; train and test share one where test is to be split off."""
    test = next((split for split in ("test", "validation") if split in names), None)
    if "train" in names:
        return {"train": "train", "test": test or "train"}
    if test is None:
        raise UsageError(f"{name}: expected a train or a test split, received {', '.join(names) or 'none'}")
    return {"test": test}


def sizes(name: str, published: dict[str, int]) -> dict[str, int]:
    """How many examples train and test have, by the sizes of TFDS' splits."""
    theirs = split_names(name, list(published))
    if theirs.get("train") == theirs["test"]:
        return split_sizes(published["train"])
    return {ours: published[split] for ours, split in theirs.items()}


def classes(builder: Any) -> tuple[str, ...]:
    """The names of a builder's classes."""
    return tuple(builder.info.features[builder.info.supervised_keys[1]].names)


# ---------------------------------------------------------------- reading


@functools.lru_cache(maxsize=4)
def _whole(name: str, split: str, folder: str) -> Part:
    """A split as TFDS published it, in memory, remembered by the `folder` where it is prepared too."""
    try:
        images, labels = _arrays(name, find_builder(name), split)
    except UsageError:
        raise
    except Exception as error:
        raise BnvulnError(f"{name}: {first_line(error)}; remove {folder} to prepare it again") from error
    if not len(labels) or labels.min() < 0:
        raise UsageError(f"{name}: expected images with labels, the {split} split has others or none")
    return part(images, labels.astype(np.int32))


def _arrays(name: str, builder: Any, split: str) -> tuple[Any, Any]:
    """Images uint8 [n, h, w, c] and labels [n] of a prepared split, in an order that is always the same."""
    import tensorflow_datasets

    backend.tensorflow()
    config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    fixed = None not in builder.info.features[supervised(name, builder)[0]].shape
    examples = builder.as_dataset(split=split, as_supervised=True, batch_size=-1 if fixed else None, read_config=config)
    return tensorflow_datasets.as_numpy(examples) if fixed else _stack(name, tensorflow_datasets.as_numpy(examples))


def _stack(name: str, examples: Any) -> tuple[Any, Any]:
    """The same where TFDS declares no shape. Raises `UsageError` at the first image of another one."""
    images: list[Any] = []
    labels: list[Any] = []
    for image, label in examples:
        first = images[0].shape if images else image.shape
        if image.shape != first or first[0] != first[1]:
            raise UsageError(f"{name}: expected square images of one size, received {first} and {image.shape}")
        images.append(image)
        labels.append(label)
    return np.stack(images), np.array(labels)


def _published(builder: Any) -> dict[str, int]:
    return {split: int(info.num_examples) for split, info in builder.info.splits.items()}


def kept(folder: Path) -> Measured | None:
    """What was computed of a data set prepared in this folder, or None where nothing was."""
    try:
        found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
        return tuple(found["shape"]), tuple(found["mean"]), tuple(found["std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measured(name: str, builder: Any) -> Measured:
    """Shape, mean and std of the training images (of the test images where there are no others), computed once."""
    folder = Path(builder.data_dir)
    if found := kept(folder):
        return found
    train = "train" in split_names(name, list(builder.info.splits))
    images = read(name, "train" if train else "test").images
    height, width, channels = images.shape[1:]
    mean, std = channel_statistics(images)
    with contextlib.suppress(OSError):  # the folder may be another's
        measured = {"shape": (height, width, channels), "mean": mean, "std": std}
        atomic_write(folder / MEASURED, json.dumps(measured))
    return (height, width, channels), mean, std


# ---------------------------------------------------------------- names


def _unknown(name: str) -> UsageError:
    import tensorflow_datasets

    ours, word = ["mnist", *constants.outlines()], re.split("[:/]", name)[0]
    near = [*ours, *(found.name for found in prepared.all_prepared())]
    # Of TFDS' hundreds of names one is always a little like it.
    others = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(word, [*near, *others], n=1, cutoff=0.8) or near
    return UsageError(
        f"data set {name!r} is not known (known: {', '.join(ours)}, any other image classification set of TFDS, "
        f"a path ending in .npz, folder:PATH){nearest(word, near)}"
    )


def _refuse_unknown_config(name: str) -> None:
    """Raise `UsageError` for a config that a known data set has not."""
    import tensorflow_datasets

    base, _, config = name.partition("/")
    configs = list(tensorflow_datasets.builder_cls(base).builder_configs)
    if config and config not in configs:
        has = listed(configs) or "none"
        raise UsageError(f"{base} has no config {config!r} (it has {has}){nearest(config, configs)}")
