"""Attempts at cells: the log of the one that runs, and what is kept of a cell that was given up."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bn_vuln import records
from bn_vuln.runtime.files import atomic_write, remove
from bn_vuln.runtime.lease import Lease
from bn_vuln.runtime.progress import Noted, Progress

LOG = "log.txt"  # of a cell that is not finished: what its process said, the traceback of its errors
FAILED = "failed.json"
MOST_LINES = 100  # of the log, that are kept with a failure


@dataclass(frozen=True)
class Failure:
    """A cell that was given up.

    Attributes:
        reason: Why the last attempt failed, in one line.
        attempts: Their number.
        time: When it was given up, in seconds since the epoch.
        log: The last lines of its log.
    """

    reason: str
    attempts: int
    time: float
    log: list[str]


def give_up(folder: Path, reason: str, attempts: int) -> Failure:
    """Write that a cell was given up into its run folder, whose lease this process holds."""
    failure = Failure(reason, attempts, time.time(), _last_lines(folder))
    atomic_write(folder / FAILED, json.dumps(dataclasses.asdict(failure), indent=2) + "\n")
    return failure


def failure(folder: Path) -> Failure | None:
    """Return the failure of a cell; None where it was not given up, or the file says nothing."""
    try:
        found = records.parse_json(records.read_file(folder / FAILED))
        return Failure(str(found["reason"]), int(found["attempts"]), float(found["time"]), list(found["log"]))  # type: ignore[index]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forget(folder: Path) -> None:
    """Remove log and failure of a run folder, whose cell is finished."""
    for name in (LOG, FAILED):
        remove(folder / name)


def _last_lines(folder: Path) -> list[str]:
    try:
        return records.read_file(folder / LOG).decode(errors="replace").splitlines()[-MOST_LINES:]
    except (OSError, ValueError):
        return []


@contextlib.contextmanager
def logged(lease: Lease, progress: Progress) -> Iterator[Progress]:
    """Run an attempt at a cell, whose messages and errors also go into its log, which an attempt that succeeds removes.

    Args:
        lease: The lease of its run folder, where others see how far it is.
        progress: Shows it here.

    Yields:
        The progress that the attempt reports to.
    """
    path = lease.path.parent / LOG

    def write(text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    log = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    own_faults = not faulthandler.is_enabled()
    if own_faults:
        faulthandler.enable(log)  # a crash in native code leaves the line of Python there
    try:
        yield Noted(progress, lease.work, write)
    except BaseException:
        write(traceback.format_exc())
        raise
    finally:
        if own_faults:
            faulthandler.disable()
        with contextlib.suppress(OSError):  # which tries again to write
            log.close()
    remove(path)
