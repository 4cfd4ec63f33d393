"""Atomic file writes, a temporary file, then a rename; and the check that a path is a file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bn_vuln.errors import UsageError
from bn_vuln.runtime import lease, signals

KINDS = {  # what is no regular file -> its name
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` atomically; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, of its suffix; it becomes `path` on success and is removed on failure.

    What a killed process has left is removed by the next one that holds the lease, or writes into the folder.

    Raises:
        LeaseLostError: `path` is in a folder whose lease this process held, and another one has taken it over.
    """
    signals.check()
    temporary = path.with_name(lease.temporary_name(path))
    try:
        yield temporary
        now = temporary.stat().st_mtime  # by the clock of the file system
        with lease.checked(path) as held:
            os.replace(temporary, path)
        if held is None:
            lease.remove_temporaries(path.parent, now=now)
    except OSError as error:  # a write names no file, and others the temporary one
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        LeaseLostError: As `atomic_path`.
    """
    with lease.checked(path):
        path.unlink(missing_ok=True)


def regular_file_stat(path: Path) -> os.stat_result:
    """Look at a file without opening it: opening a pipe or a device may never return, or do something.

    Args:
        path: A file, or a link to one.

    Returns:
        Its stat.

    Raises:
        UsageError: It is not there, or no regular file; the message names it.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UsageError(f"{path}: {'a broken link' if path.is_symlink() else 'no such file'}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path}: expected a file, received {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}")
    return found
