"""Digest of user data: their content identifies them, never their path."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.errors import UsageError


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """Hash the names and contents of files.

    A file is read again only if its path, size or time of change is another.

    Args:
        files: (relative name, path) of each file, in any order.

    Returns:
        The first 12 hex digits of a sha256 of all names and bytes.

    Raises:
        UsageError: A file, which is named, cannot be read.
    """
    try:
        stats = [(name, str(path), path.stat()) for name, path in files]
        return _digest(tuple((name, path, stat.st_size, stat.st_mtime_ns) for name, path, stat in stats))
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, path, size, _ in sorted(files):
        # Name and size come first, so that no content can be taken for that of another file.
        total.update(f"{name}\0{size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:ID_LENGTH]
