"""Data sets: `load(name, split)` gives uint8 images in memory, labels and facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import nearest
from bn_vuln.data import mnist
from bn_vuln.errors import UsageError
from bn_vuln.facts import Facts

__all__ = ["DATASETS", "Dataset", "Facts", "load", "facts", "permutation"]

# name -> (facts, reader of the published splits)
DATASETS: dict[str, tuple[Facts, Callable[[str], tuple[NDArray[np.uint8], NDArray[np.int32]]]]] = {
    "mnist": (mnist.FACTS, mnist.read),
}
SPLIT_SEED = 20200


@dataclass(frozen=True)
class Dataset:
    """`images` uint8 [n, height, width, channels]; `labels` int32 [n]; `index` int64 [n], each example's place
    in the published split, which keys per-example noise whatever the subset."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    index: NDArray[np.int64]
    facts: Facts

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: NDArray[np.int64]) -> Dataset:
        """The examples at these positions, in this order."""
        return replace(self, images=self.images[positions], labels=self.labels[positions], index=self.index[positions])


def facts(name: str) -> Facts:
    """What is known of a data set without reading it. Raises `UsageError` for an unknown name."""
    return _entry(name)[0]


def load(name: str, split: str = "test", *, validation: int = 5000, limit: int | None = None) -> Dataset:
    """A split of a data set: `train` (without the validation examples), `validation`, or `test`.

    The `validation` examples are the first of a fixed permutation of the published training set. `limit` takes
    the first examples of another fixed permutation of the split (the order of a published split is rarely
    random: the first half of MNIST's test set is the easier one), so a smaller limit is a subset of a larger.
    Raises `UsageError` for an unknown name or split, or where the split has fewer examples than asked for.
    """
    known, read = _entry(name)
    if split not in ("train", "validation", "test"):
        raise UsageError(f"split: expected train, validation or test, received {split!r}")
    images, labels = read("test" if split == "test" else "train")
    whole = Dataset(images, labels, np.arange(len(labels)), known)
    if split != "test":
        if not 0 < validation < len(whole):
            raise UsageError(f"{name}: validation: expected 1 to {len(whole) - 1} examples, received {validation}")
        order = permutation(len(whole), SPLIT_SEED)
        chosen = order[:validation] if split == "validation" else order[validation:]
        whole = whole.take(np.sort(chosen))
    if limit is None:
        return whole
    if limit > len(whole):
        raise UsageError(f"{name}: limit: the {split} split has {len(whole)} examples, {limit} were asked for")
    return whole.take(permutation(len(whole), SPLIT_SEED + 1)[:limit])


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on nothing but n and the seeds (as many in every use of one kind: NumPy
    takes trailing zeros for nothing)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed)))).permutation(n)


def _entry(name: str) -> tuple[Facts, Callable[[str], tuple[NDArray[np.uint8], NDArray[np.int32]]]]:
    if name not in DATASETS:
        raise UsageError(f"data set {name!r} is not known (known: {', '.join(DATASETS)}){nearest(name, DATASETS)}")
    return DATASETS[name]
