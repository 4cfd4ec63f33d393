"""Data sets by name: `load(name, split)` gives uint8 images in memory, labels and facts.

A name is `mnist` (bundled), a data set of TFDS (`fashion_mnist`, `cifar10_1/v6`), the path of an .npz file, or
folder:PATH.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bn_vuln import config
from bn_vuln.data import arrays, folder, mnist, overview, tfds
from bn_vuln.data.splits import SPLIT_SEED, Part, part, permutation
from bn_vuln.errors import UsageError
from bn_vuln.facts import Facts

__all__ = [
    "DATASETS",
    "Dataset",
    "Facts",
    "load",
    "facts",
    "canonical",
    "pinned",
    "prepare",
    "listing",
    "describe",
    "permutation",
]

# Bundled: name -> (facts, reader of the published splits)
DATASETS: dict[str, tuple[Facts, Callable[[str], tuple[NDArray[np.uint8], NDArray[np.int32]]]]] = {
    "mnist": (mnist.FACTS, mnist.read),
}


class _Source(Protocol):
    """A module that reads data of one kind."""

    def facts(self, name: str) -> Facts: ...
    def read(self, name: str, split: str) -> Part: ...


class _OwnSource(_Source, Protocol):
    """A module that reads one's own data."""

    def is_mine(self, name: str) -> bool: ...
    def digest(self, name: str) -> str: ...
    def pinned(self, name: str) -> str: ...


OWN: tuple[_OwnSource, ...] = (arrays, folder)


@dataclass(frozen=True)
class Dataset:
    """`images` uint8 [n, height, width, channels]; `labels` int32 [n]; `index` int64 [n], each example's place
    in the published split, which keys per-example noise whatever the subset. The arrays may be shared: do not write."""

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
    """What is known of a data set: without its data where it has constants in use. Raises as `load` does."""
    return DATASETS[name][0] if name in DATASETS else _source(name).facts(name)


def load(name: str, split: str = "test", *, validation: int = 5000, limit: int | None = None) -> Dataset:
    """A split of a data set: `train` (without the validation examples), `validation`, or `test`.

    The `validation` examples are the first of a fixed permutation of the published training set. `limit` takes
    the first examples of another fixed permutation of the split (the order of a published split is rarely
    random: the first half of MNIST's test set is the easier one), so a smaller limit is a subset of a larger.
    Raises `UsageError` for an unknown name or split, or where the split has fewer examples than asked for, and
    `BnvulnError`, in one line, where the data are not there and cannot be had.
    """
    if split not in ("train", "validation", "test"):
        raise UsageError(f"split: expected train, validation or test, received {split!r}")
    published = "test" if split == "test" else "train"
    found = _bundled(name, published) if name in DATASETS else _source(name).read(name, published)
    whole = Dataset(found.images, found.labels, found.index, facts(name))
    if split != "test":
        if not 0 < validation < len(whole):
            raise UsageError(
                f"{name}: data.validation: expected 1 to {len(whole) - 1} examples held out, received {validation} "
                "(--validation)"
            )
        order = permutation(len(whole), SPLIT_SEED)
        chosen = order[:validation] if split == "validation" else order[validation:]
        whole = whole.take(np.sort(chosen))
    if limit is None:
        return whole
    if limit > len(whole):
        raise UsageError(f"{name}: limit: the {split} split has {len(whole)} examples, {limit} were asked for")
    return whole.take(permutation(len(whole), SPLIT_SEED + 1)[:limit])


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


def prepare(name: str) -> Facts:
    """Make a data set ready to be read, downloading what is missing, and return its facts. Raises as `load` does."""
    if _source(name) is tfds and name not in DATASETS:
        tfds.ready(name)
    return facts(name)


def listing() -> list[dict[str, Any]]:
    """The data sets that are bundled, known here or prepared, as plain dicts (see `overview.rows`)."""
    return overview.rows()


def describe(name: str) -> dict[str, Any]:
    """Everything about a data set, as a plain dict (see `overview.named`), without preparing it."""
    if name in DATASETS:
        return overview.bundled()
    source = own_source(name)
    return overview.named(name) if source is None else overview.own(source.facts(name), source.pinned(name))


def own_source(name: str) -> _OwnSource | None:
    """What reads one's own data of this name; None for all others."""
    return next((source for source in OWN if source.is_mine(name)), None)


def _source(name: str) -> _Source:
    return own_source(name) or tfds


@functools.lru_cache(maxsize=2)
def _bundled(name: str, split: str) -> Part:
    return part(*DATASETS[name][1](split))
