"""Digest of user data: their content identifies them, never their path."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.errors import UsageError
from bn_vuln.runtime.files import regular_file_stat
from bn_vuln.runtime.threads import map_in_order

LARGEST_READ_AHEAD = 1 << 22  # bytes of a file


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
    stats = [(name, path, regular_file_stat(path)) for name, path in files]
    return _digest(tuple((name, path, stat.st_size, stat.st_mtime_ns) for name, path, stat in stats))


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    in_order = sorted(files)
    contents = map_in_order(_small_content, [(path, size) for _, path, size, _ in in_order])
    for (name, path, size, _), content in zip(in_order, contents, strict=True):
        # Name and size come first, so that no content can be taken for that of another file.
        total.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        for block in _blocks(path) if content is None else [content]:
            total.update(block)
    return total.hexdigest()[:ID_LENGTH]


def _small_content(file: tuple[Path, int]) -> bytes | None:
    """The content of a file that is small, which is read ahead of its turn."""
    path, size = file
    return b"".join(_blocks(path)) if size <= LARGEST_READ_AHEAD else None


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
