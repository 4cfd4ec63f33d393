"""What identifies one's own data: their content, never their path."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.errors import UsageError


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """The first 12 hex digits of the sha256 of files, by their relative names (which count) and their bytes.

    A file is read again only if its path, size or time of change is another. Raises `UsageError` naming a file that
    cannot be read.
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
        # Name and size in front, so that no content can be taken for another file's.
        total.update(f"{name}\0{size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:ID_LENGTH]
