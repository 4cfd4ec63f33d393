"""Locks of run folders: a file created exclusively, so that one process works on a run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock.json"  # who holds it: host, process and time
_held: set[Path] = set()  # the lock files of this process


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a run folder for this process; yield False if another one holds it already.

    A lock left by a process of this host that no longer lives is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK).resolve()
    if not _create(path) and not _take_over(path):
        yield False
        return
    try:
        yield True
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        with path.open("x") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}, file)
    except FileExistsError:
        return False
    _held.add(path)
    return True


def _take_over(path: Path) -> bool:
    """Replace a stale lock by a fresh one.

    A flock makes looking and replacing one step: of several processes that see the same stale lock, the second one
    sees the first one's fresh one.
    """
    with (path.parent / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not _is_stale(path):
            return False
        path.unlink(missing_ok=True)
        return _create(path)


def is_stale_lock(folder: Path) -> bool:
    """Return True if the lock of a run folder was left by a process of this host that no longer lives."""
    return _is_stale((folder / LOCK).resolve())


def _is_stale(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text())
        host, pid = owner["host"], int(owner["pid"])
        if not 0 < pid < 2**31:
            return _is_old(path)
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return _is_old(path)
    if host != socket.gethostname():
        return False
    # Our own process id on a lock that is not ours is that of an earlier process.
    return path not in _held if pid == os.getpid() else not _lives(pid)


def _is_old(path: Path) -> bool:
    """Return True if an unreadable lock was left by a process killed while it wrote, rather than being written now."""
    try:
        return time.time() - path.stat().st_mtime > 60
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
