"""CIFAR-10-C, the published corruptions of CIFAR-10's test images: `cifar10_corrupted` of TFDS, where it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data import tfds
from bn_vuln.data.describe import listed
from bn_vuln.data.tfds import downloads, paths, prepared
from bn_vuln.errors import BnvulnError

CLEAN = "cifar10"


def at_hand(corruption: str, severity: int) -> bool:
    """Whether a corruption is prepared, or can be without network. Takes hundredths of a second."""
    name = _name(corruption, severity)
    return prepared.find(name) is not None or not any(file.missing for file in _files(name))


def require(corruption: str, severity: int) -> None:
    """Raise `BnvulnError`, which says which file belongs where, unless a corruption is `at_hand`."""
    if at_hand(corruption, severity):
        return
    name = _name(corruption, severity)
    missing = listed(f"{file.name} ({file.url})" for file in _files(name) if file.missing)
    raise BnvulnError(
        f"{name} is not prepared in {paths.data_dir()}: put {missing} into "
        f"{paths.manual_advised('cifar10_corrupted')} (or into any folder, with --manual-dir), or download it with "
        f"bnvuln data prepare {name}; source made needs no file"
    )


def read(corruption: str, severity: int) -> NDArray[np.uint8]:
    """The images, uint8 [n, 32, 32, 3], read-only: row i is test image i of cifar10 as `data.load` numbers them.

    TFDS shuffles both data sets by the places of the images in the published files, and so alike. Raises `BnvulnError`
    where the labels show that it did not, or the data set cannot be prepared.
    """
    name = _name(corruption, severity)
    found = tfds.read(name, "test")
    if not np.array_equal(found.labels, tfds.read(CLEAN, "test").labels):
        raise BnvulnError(
            f"{name}: its labels are not those of the test split of {CLEAN}, image by image; remove {name} and {CLEAN} "
            f"from {paths.data_dir()} to prepare both again, or use source made"
        )
    images: NDArray[np.uint8] = found.images
    return images


def _name(corruption: str, severity: int) -> str:
    return f"cifar10_corrupted/{corruption}_{severity}"


def _files(name: str) -> list[downloads.File]:
    return downloads.needs(tfds.find_builder(name)).files
