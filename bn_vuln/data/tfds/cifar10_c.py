"""CIFAR-10-C, the published corruptions of CIFAR-10's test images: `cifar10_corrupted` of TFDS."""

from __future__ import annotations

import numpy as np

from bn_vuln.data.describe import format_list
from bn_vuln.data.tfds import builders, downloads, paths, prepared, reading
from bn_vuln.errors import BnvulnError
from bn_vuln.typing import StoredImages

CLEAN = "cifar10"  # the data set that the corruptions are of


def is_available(corruption: str, severity: int) -> bool:
    """Return True if a corruption is prepared or can be without network; takes hundredths of a second."""
    name = _name(corruption, severity)
    return prepared.find(name) is not None or all(file.found for file in _files(name))


def require_available(corruption: str, severity: int) -> None:
    """Refuse a corruption that is not available without network.

    Raises:
        BnvulnError: It is not; the message says which file belongs where.
    """
    if is_available(corruption, severity):
        return
    name = _name(corruption, severity)
    missing = format_list(f"{file.name} ({file.url})" for file in _files(name) if not file.found)
    raise BnvulnError(
        f"{name} is not prepared in {paths.data_dir()}: put {missing} into "
        f"{paths.suggested_manual_dir('cifar10_corrupted')} (or into any folder, with --manual-dir), or download it "
        f"with bnvuln data prepare {name}; source made needs no file"
    )


def read(corruption: str, severity: int) -> StoredImages:
    """Read the published images of a corruption.

    TFDS shuffles both data sets by the places of the images in the published files, and so alike.

    Args:
        corruption: Kind of corruption.
        severity: 1 to 5.

    Returns:
        uint8 [n, 32, 32, 3], read-only; row i is test image i of cifar10 as `data.load` numbers them.

    Raises:
        BnvulnError: The labels show that the rows are not those of cifar10, or the data set cannot be prepared.
    """
    name = _name(corruption, severity)
    found = reading.read(name, "test")
    if not np.array_equal(found.labels, reading.read(CLEAN, "test").labels):
        raise BnvulnError(
            f"{name}: its labels are not those of the test split of {CLEAN}, image by image; remove {name} and {CLEAN} "
            f"from {paths.data_dir()} to prepare both again, or use source made"
        )
    return found.images.astype(np.uint8, copy=False)


def _name(corruption: str, severity: int) -> str:
    return f"cifar10_corrupted/{corruption}_{severity}"


def _files(name: str) -> list[downloads.File]:
    return downloads.files(builders.find_builder(name))
