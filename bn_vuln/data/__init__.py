"""Data sets by name: `load(name, split)` gives uint8 images in memory, labels and info.

A name is `mnist` (bundled), `toy` (made), a data set of TFDS (`fashion_mnist`, `cifar10_1/v6`), the path of an .npz
file, or folder:PATH.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bn_vuln import config
from bn_vuln.analysis.tilt import centroids
from bn_vuln.data import image_folder, listing, mnist, npz, tfds, toy
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.splits import SPLIT_SEED, Part, part, permutation
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import UsageError

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "load",
    "training",
    "published",
    "class_centroids",
    "limited",
    "dataset_info",
    "canonical",
    "pinned",
    "prepare",
    "list_datasets",
    "describe_dataset",
    "permutation",
]

# Bundled: name -> (info, reader of the published splits)
DATASETS: dict[str, tuple[DatasetInfo, Callable[[str], tuple[NDArray[Any], NDArray[np.int32]]]]] = {
    "mnist": (mnist.INFO, mnist.read),
    "toy": (toy.INFO, toy.read),
}


class _Source(Protocol):
    """A module that reads data of one kind."""

    def dataset_info(self, name: str) -> DatasetInfo: ...
    def read(self, name: str, split: str) -> Part: ...


class _OwnSource(_Source, Protocol):
    """A module that reads one's own data."""

    def is_mine(self, name: str) -> bool: ...
    def digest(self, name: str) -> str: ...
    def pinned(self, name: str) -> str: ...


OWN: tuple[_OwnSource, ...] = (npz, image_folder)


@dataclass(frozen=True)
class Dataset:
    """`images` uint8 [n, height, width, channels] (the points of `toy` float32); `labels` int32 [n]; `index` int64 [n],
    each example's place in the published split, which keys per-example noise whatever the subset. The arrays may be
    shared: do not write."""

    images: NDArray[Any]
    labels: NDArray[np.int32]
    index: NDArray[np.int64]
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: NDArray[np.int64]) -> Dataset:
        """The examples at these positions, in this order."""
        return replace(self, images=self.images[positions], labels=self.labels[positions], index=self.index[positions])


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set: without its data where it has constants in use. Raises as `load` does."""
    return DATASETS[name][0] if name in DATASETS else _source(name).dataset_info(name)


def load(
    name: str,
    split: str = "test",
    *,
    validation: int = 5000,
    limit: int | None = None,
    classes: Sequence[int] | None = None,
    balanced: bool = False,
    subset_seed: int | None = None,
) -> Dataset:
    """A split of a data set: `train` (without the validation examples), `validation`, or `test`.

    The `validation` examples are the first of a fixed permutation of the published training set. `limit` takes
    the first examples of another fixed permutation of the split (the order of a published split is rarely
    random: the first half of MNIST's test set is the easier one), so a smaller limit is a subset of a larger.
    `classes`: these alone, renumbered; a `balanced` limit takes as many examples of each. `subset_seed` is the seed of
    the examples that a limit takes (and of the training points of `toy`); None: the same for everybody.
    Raises `UsageError` for an unknown name or split, or where the split has fewer examples than asked for, and
    `BnvulnError`, in one line, where the data are not there and cannot be had.
    """
    if split not in ("train", "validation", "test"):
        raise UsageError(f"split: expected train, validation or test, received {split!r}")
    published = "test" if split == "test" else "train"
    found = _read(name, published, subset_seed)
    whole = Dataset(found.images, found.labels, found.index, dataset_info(name))
    if split != "test":
        if not 0 < validation < len(whole):
            raise UsageError(
                f"{name}: data.validation: expected 1 to {len(whole) - 1} examples held out, received {validation} "
                "(--validation)"
            )
        order = permutation(len(whole), SPLIT_SEED)
        chosen = order[:validation] if split == "validation" else order[validation:]
        whole = whole.take(np.sort(chosen))
    if classes is not None:
        whole = _only(whole, classes)
    return limited(whole, limit, f"{name}: limit: the {split} split", balanced=balanced, subset_seed=subset_seed)


def limited(
    whole: Dataset, limit: int | None, what: str, *, balanced: bool = False, subset_seed: int | None = None
) -> Dataset:
    """The `limit` examples of a data set as `load` takes them; None: all. Raises `UsageError` if `what` has fewer."""
    if limit is None:
        return whole
    if limit > len(whole):
        raise UsageError(f"{what} has {len(whole)} examples, {limit} were asked for")
    seeds = [SPLIT_SEED + 1] if subset_seed is None else [SPLIT_SEED + 3, subset_seed]
    order = permutation(len(whole), *seeds)
    return whole.take((_balanced(order, whole, limit) if balanced else order)[:limit])


def training(options: config.Data, split: str, seed: int = 0) -> Dataset:
    """The examples that a model of these options and this seed is trained on (`train`), or chosen by
    (`validation`)."""
    return load(
        options.name,
        split,
        validation=options.validation,
        limit=options.limit if split == "train" else None,
        classes=options.classes,
        balanced=options.balanced and split == "train",
        subset_seed=seed if options.subset_seed == "seed" else None,
    )


def published(options: config.Data) -> Dataset:
    """All published training examples of the classes, validation examples among them."""
    parts = [load(options.name, split, validation=options.validation, classes=options.classes)
             for split in ("train", "validation")]  # fmt: skip
    images, labels, index = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels", "index")
    )
    return Dataset(images, labels, index, parts[0].info)


def class_centroids(options: config.Data, width: int) -> NDArray[np.float64]:
    """The mean pixels of each class over all published training examples, float64 [classes, d], resized to `width`
    (which is linear, so it is the mean of the resized images too)."""
    examples = published(options)
    means = centroids(examples.images, examples.labels, len(examples.info.classes))
    images = means.reshape(-1, *examples.info.shape).astype(np.float32)
    return pixel_array(images, width).reshape(len(means), -1).astype(np.float64)


def _only(whole: Dataset, classes: Sequence[int]) -> Dataset:
    """The examples of these classes, numbered in this order. Raises `UsageError` for a class that is not there."""
    names = whole.info.classes
    if max(classes) >= len(names):
        raise UsageError(f"data.classes: {whole.info.name} has classes 0 to {len(names) - 1}, received {max(classes)}")
    number = np.full(len(names), -1, np.int32)
    number[list(classes)] = np.arange(len(classes))
    chosen = whole.take(np.flatnonzero(number[whole.labels] >= 0))
    info = replace(whole.info, classes=tuple(names[c] for c in classes))
    return replace(chosen, labels=number[chosen.labels], info=info)


def _balanced(order: NDArray[np.int64], whole: Dataset, limit: int) -> NDArray[np.int64]:
    """The order in which the classes take turns. Raises `UsageError` where a class has too few examples."""
    labels = whole.labels[order]
    turn = np.empty(len(order), np.int64)
    for label in range(len(whole.info.classes)):
        mine = labels == label
        if mine.sum() < limit // len(whole.info.classes):
            raise UsageError(
                f"data.balanced: {limit} examples were asked for, equally many of each class, "
                f"but class {whole.info.classes[label]} has {mine.sum()}"
            )
        turn[mine] = np.arange(mine.sum())
    return order[np.lexsort((labels, turn))]


def canonical(name: str) -> str:
    """The name that identifies the data: the name itself, or npz:DIGEST or folder:DIGEST of one's own, by their
    content. Raises `UsageError` where one's own data are not there."""
    own = own_source(name)
    return name if own is None else config.Data(name=name, digest=own.digest(name)).canonical


def pinned(options: config.Data) -> config.Data:
    """The same data, one's own by absolute path and digest, so that they can be found and recognized later.

    Raises `UsageError` where the digest is set already and the content is another by now.
    """
    own = own_source(options.name)
    if own is None:
        return options
    digest = own.digest(options.name)
    if options.digest not in (None, digest):
        raise UsageError(
            f"{options.name}: changed since its digest was {options.digest}, it is {digest} now; "
            "leave the digest out to take the data as they are"
        )
    return options.model_copy(update={"name": own.pinned(options.name), "digest": digest})


def prepare(name: str) -> DatasetInfo:
    """Make a data set ready to be read, downloading what is missing, and return its info. Raises as `load` does."""
    if _source(name) is tfds and name not in DATASETS:
        tfds.ready(name)
    return dataset_info(name)


def list_datasets() -> list[dict[str, Any]]:
    """The data sets that are bundled, known here or prepared, as plain dicts (see `listing.rows`)."""
    return listing.rows()


def describe_dataset(name: str) -> dict[str, Any]:
    """Everything about a data set, as a plain dict (see `listing.named`), without preparing it."""
    if name == "toy":
        return listing.made(toy.INFO)
    if name in DATASETS:
        return listing.bundled()
    source = own_source(name)
    return listing.named(name) if source is None else listing.own(source.dataset_info(name), source.pinned(name))


def own_source(name: str) -> _OwnSource | None:
    """What reads one's own data of this name; None for all others."""
    return next((source for source in OWN if source.is_mine(name)), None)


def _source(name: str) -> _Source:
    return own_source(name) or tfds


def _read(name: str, split: str, subset_seed: int | None) -> Part:
    """A published split; `toy` makes another one for each subset_seed."""
    if name == "toy" and subset_seed is not None:
        images, labels = toy.read(split, subset_seed)
        return part(images, labels)
    return _bundled(name, split) if name in DATASETS else _source(name).read(name, split)


@functools.lru_cache(maxsize=4)
def _bundled(name: str, split: str) -> Part:
    return part(*DATASETS[name][1](split))
