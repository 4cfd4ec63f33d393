"""Finished parts of a measurement of many images, in files, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bn_vuln.config import digest
from bn_vuln.records import digests, read_file
from bn_vuln.records.folder import PARTS, check_no_links
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.typing import Arrays, Plain

SECONDS, OF = "seconds", "of"


class KeptParts:
    """The parts of one measurement.

    Attributes:
        seconds: time that the parts took which were finished before, by another process perhaps.
        found: their number.
    """

    def __init__(self, folder: Path | None, identity: Plain, distribution: Distribution = ONE_DEVICE) -> None:
        """Find what is finished.

        Args:
            folder: run folder; None: nothing is kept.
            identity: all that changes a number: parts of another one are left alone.
            distribution: the hosts, of which the chief keeps the parts for all.
        """
        self.seconds, self.found, self._distribution = 0.0, 0, distribution
        self._id = digest(identity)
        self._folder = None if folder is None else folder / PARTS / self._id
        if folder is not None:
            check_no_links(folder)

    def get(self, number: int, compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a part, computed now unless they were before. A damaged file counts as missing."""
        of, path = f"{self._id}/{number}", None if self._folder is None else self._folder / f"{number}.npz"
        kept = _parse(self._distribution.broadcast(None if path is None else _read(path)), of)
        if kept is not None:
            self.seconds += float(kept.pop(SECONDS))
            self.found += 1
            return kept
        begun = time.monotonic()
        arrays = compute()
        if path is not None:
            about = {SECONDS: np.array(time.monotonic() - begun), OF: np.array(of)}
            digests.write_arrays(path, {**about, **arrays}, compressed=False)
        return arrays

    def remove(self) -> None:
        """Remove the files, when the record is written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._folder.parent.is_dir() and not any(self._folder.parent.iterdir()):
                self._folder.parent.rmdir()


def forget_parts(folder: Path) -> None:
    """Remove all parts that a run folder keeps."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def read(path: Path) -> Arrays | None:
    """Return the arrays of a part, and its seconds; None where it is damaged, or the file of another part."""
    return _parse(_read(path), f"{path.parent.name}/{path.stem}")


def _read(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except OSError:
        return None


def _parse(content: bytes | None, of: str) -> Arrays | None:
    """The arrays of a part of a measurement, by its id and number."""
    if content is None:
        return None
    try:
        kept = digests.checked_arrays(content)
    except ValueError:
        return None
    return kept if SECONDS in kept and str(kept.pop(OF, of)) == of else None
