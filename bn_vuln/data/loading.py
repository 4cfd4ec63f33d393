"""Loading of data sets: splits, validation examples, subsets of fixed size, classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bn_vuln import config
from bn_vuln.analysis.tilt import centroids
from bn_vuln.data import sources
from bn_vuln.data.images import as_lazy, take
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import SPLIT_SEED, permutation
from bn_vuln.data.transforms import Size, pixel_array
from bn_vuln.errors import UsageError
from bn_vuln.typing import DatasetImages, Floats, Index, Labels

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Dataset:
    """Examples in memory. The arrays may be shared and read-only: do not write into them.

    Attributes:
        images: uint8 [n, height, width, channels]; the points of `toy` are float32.
        labels: int32 [n].
        index: int64 [n], place of each example in its published split, of `all` among all examples; it keys
            per-example noise in any subset.
        info: Info of the data set.
    """

    images: DatasetImages
    labels: Labels
    index: Index
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """A line without the arrays."""
        return f"Dataset({self.info.label}: {len(self)} images, shape {tuple(self.images.shape[1:])})"

    def take(self, positions: Index) -> Dataset:
        """The examples at these positions, in this order."""
        return replace(
            self, images=take(self.images, positions), labels=self.labels[positions], index=self.index[positions]
        )


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
    """Load a split of a data set.

    Args:
        name: `mnist`, `toy`, a data set of TFDS, the path of an .npz file, or folder:PATH.
        split: `train` (without the validation examples), `validation`, `test`, or `all`: everything there is, in its
            order, that of train, validation and test where these are published.
        validation: Number of validation examples where none are published: the first of a fixed permutation of the
            published training set. 0: none are held out.
        limit: Number of examples to take: the first of another fixed permutation of the split, so that a smaller
            limit is a subset of a larger. (The order of a published split is rarely random: the first half of MNIST's
            test set is the easier one.) None: all.
        classes: Numbers of the classes to take, renumbered from 0 in this order. None: all.
        balanced: Take as many examples of each class where there is a limit.
        subset_seed: Seed of the examples that a limit takes, and of the training points of `toy`. None: the same
            examples for everybody.

    Returns:
        The examples; images uint8 (points of `toy` float32) at their native width.

    Raises:
        UsageError: The name or a class is not known, there is no such split, or it has fewer examples than asked for.
        BnvulnError: The data are not there and cannot be downloaded; in one line.
    """
    if split not in SPLITS:
        raise UsageError(f"split: expected {', '.join(SPLITS)}, received {split!r}")
    published_as = sources.splits(name)
    hold_out = split in ("train", "validation") and published_as != ("test",) and "validation" not in published_as
    published = sources.read(name, "train" if hold_out else split, subset_seed)
    dataset = Dataset(published.images, published.labels, published.index, sources.dataset_info(name))
    if hold_out:
        dataset = _without_validation(dataset, split, validation, sources.label(name))
    if classes is not None:
        dataset = _select_classes(dataset, classes)
    return subset(
        dataset, limit, f"{sources.label(name)}: limit: the {split} split", balanced=balanced, subset_seed=subset_seed
    )


def _without_validation(dataset: Dataset, split: str, validation: int, label: str) -> Dataset:
    """The `train` or `validation` examples of a published training set, in the published order."""
    if validation == 0 and split == "train":
        return dataset
    if not 0 < validation < len(dataset):
        raise UsageError(
            f"{label}: expected 1 to {len(dataset) - 1} of its {len(dataset)} training images to be "
            f"held out for validation, received {validation}; say how many with --validation N (data.validation)"
        )
    order = permutation(len(dataset), SPLIT_SEED)
    return dataset.take(np.sort(order[:validation] if split == "validation" else order[validation:]))


def subset(
    dataset: Dataset, limit: int | None, label: str, *, balanced: bool = False, subset_seed: int | None = None
) -> Dataset:
    """Take `limit` examples of a data set, by a fixed permutation, as `load` does.

    Args:
        dataset: The examples to take from.
        limit: Number of examples; None takes all in their order.
        label: Beginning of the error message.
        balanced: Take as many examples of each class.
        subset_seed: Seed of the permutation; None: the same for everybody.

    Returns:
        The examples in the order of the permutation.

    Raises:
        UsageError: The data set, or a class of it, has too few examples.
    """
    if limit is None:
        return dataset
    if limit > len(dataset):
        raise UsageError(f"{label} has {len(dataset)} examples, {limit} were asked for")
    seeds = [SPLIT_SEED + 1] if subset_seed is None else [SPLIT_SEED + 3, subset_seed]
    order = permutation(len(dataset), *seeds)
    return dataset.take((_alternate_classes(order, dataset, limit) if balanced else order)[:limit])


def load_training_data(options: config.Data, split: str, seed: int = 0) -> Dataset:
    """Load the examples that a model is trained on, or its validation examples.

    Args:
        options: The data section of a config.
        split: `train` or `validation`.
        seed: Seed of the model, which picks the examples where `options.subset_seed` says so.

    Returns:
        The examples; the validation examples whole, without limit.

    Raises:
        UsageError: As `load`; or a class of user data has no training image, or the images are not square.
        BnvulnError: As `load`.
    """
    sources.check_trainable(options.name)
    examples = load(
        options.name,
        split,
        validation=options.validation,
        limit=options.limit if split == "train" else None,
        classes=options.classes,
        balanced=options.balanced and split == "train",
        subset_seed=seed if options.subset_seed == "seed" else None,
    )
    return _in_memory(examples)


def load_whole_training_set(options: config.Data) -> Dataset:
    """Load all published training examples of the classes in `options`.

    Returns:
        The training examples, then the validation examples that are held out of them.

    Raises:
        UsageError: As `load`.
        BnvulnError: As `load`.
    """
    sources.check_trainable(options.name)
    train, validation = (
        _in_memory(load(options.name, split, validation=options.validation, classes=options.classes))
        for split in ("train", "validation")
    )
    if "validation" in sources.splits(options.name):
        return train
    return replace(
        train,
        images=np.concatenate([train.images, validation.images]),
        labels=np.concatenate([train.labels, validation.labels]),
        index=np.concatenate([train.index, validation.index]),
    )


def _in_memory(examples: Dataset) -> Dataset:
    lazy = as_lazy(examples.images)
    return examples if lazy is None else replace(examples, images=lazy[:])


def class_centroids(options: config.Data, size: Size) -> Floats:
    """Mean image of each class over all published training examples.

    Args:
        options: The data section of a config.
        size: Size to resize to, which is linear: these are the means of the resized images too.

    Returns:
        float64 [classes, height * width * channels], in pixels [0, 1].

    Raises:
        UsageError: As `load`.
        BnvulnError: As `load`.
    """
    examples = load_whole_training_set(options)
    means = centroids(examples.images, examples.labels, len(examples.info.classes))
    images = means.reshape(-1, *examples.info.shape).astype(np.float32)
    return pixel_array(images, size).reshape(len(means), -1).astype(np.float64)


def _select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The examples of these classes, renumbered in this order."""
    names = dataset.info.classes
    if max(classes) >= len(names):
        raise UsageError(
            f"data.classes: {dataset.info.label} has classes 0 to {len(names) - 1}, received {max(classes)}"
        )
    new_label = np.full(len(names), -1, np.int32)
    new_label[list(classes)] = np.arange(len(classes))
    selected = dataset.take(np.flatnonzero(new_label[dataset.labels] >= 0))
    info = replace(dataset.info, classes=tuple(names[label] for label in classes))
    return replace(selected, labels=new_label[selected.labels], info=info)


def _alternate_classes(order: Index, dataset: Dataset, limit: int) -> Index:
    """The positions in `order`, rearranged so that the classes take turns."""
    labels = dataset.labels[order]
    turn = np.empty(len(order), np.int64)
    for label, name in enumerate(dataset.info.classes):
        in_class = labels == label
        if in_class.sum() < limit // len(dataset.info.classes):
            raise UsageError(
                f"data.balanced: {limit} examples were asked for, equally many of each class, "
                f"but class {name} has {in_class.sum()}"
            )
        turn[in_class] = np.arange(in_class.sum())
    return order[np.lexsort((labels, turn))]
