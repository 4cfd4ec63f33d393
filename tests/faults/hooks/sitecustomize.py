"""Faults inside a command: Python runs this file as it starts, in the command and in the processes that it starts.

FAULT names the functions below that are called; their numbers and paths are variables of the environment, too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
IS_WORKER = "joblib.externals.loky.backend.popen_loky_posix" in sys.orig_argv


def changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path in the results folder RUNS, that an audited event is about to change; None of other events."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
    elif event not in WRITES:
        return None
    path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    return path if path.startswith(os.environ["RUNS"] + "/") else None


def count() -> None:
    """Note each change in the folder COUNTS, in a file for each process: its size is their number."""
    counted = os.open(f"{os.environ['COUNTS']}/{'worker' if IS_WORKER else 'command'}-{os.getpid()}", os.O_CREAT | 1)

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if changed(event, arguments):
            os.write(counted, b".")

    sys.addaudithook(see)


def kill() -> None:
    """Kill, before the change numbered AT, the first process WHICH (worker or command) that comes to it."""
    if os.environ["WHICH"] != ("worker" if IS_WORKER else "command"):
        return
    left = [int(os.environ["AT"])]

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if changed(event, arguments):
            left[0] -= 1
            if not left[0] and not os.path.exists(os.environ["KILLED"]):
                os.close(os.open(os.environ["KILLED"], os.O_CREAT))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)


def full() -> None:
    """The disk is full while there is the file FULL: no file in RUNS can be created."""

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and (path := changed(event, arguments)) and os.path.exists(os.environ["FULL"]):
            raise OSError(28, "No space left on device", path)

    sys.addaudithook(see)


def wrap_epoch(before: Any) -> None:
    """Call a function of the training loop before each epoch."""
    from bn_vuln.training.loop import TrainingLoop

    epoch = TrainingLoop.epoch

    def wrapped(self: TrainingLoop, *arguments: Any) -> Any:
        before(self, *arguments)
        return epoch(self, *arguments)

    TrainingLoop.epoch = wrapped  # type: ignore[method-assign]


def slow() -> None:
    """Each epoch takes SECONDS more."""
    wrap_epoch(lambda *_: time.sleep(float(os.environ["SECONDS"])))


def kill_cell() -> None:
    """Kill the process that trains a cell with batch norm, in its second epoch, while there is the file DEADLY."""

    def before(loop: Any, number: int, *_: Any) -> None:
        if number == 1 and loop.cell.normalization.name == "batch" and os.path.exists(os.environ["DEADLY"]):
            os.kill(os.getpid(), signal.SIGKILL)

    wrap_epoch(before)


def note_trainings() -> None:
    """Add a line to the file TRAININGS for each epoch that is begun: the cell, and the number of the epoch."""
    from bn_vuln.config import digest, identity_of

    def before(loop: Any, number: int, *_: Any) -> None:
        with Path(os.environ["TRAININGS"]).open("a") as file:
            file.write(f"{digest(identity_of(loop.cell))} {number}\n")

    wrap_epoch(before)


def short_lease() -> None:
    """A lease expires after two seconds."""
    from bn_vuln.runtime import lease

    lease.BEAT_SECONDS, lease.EXPIRES_SECONDS, lease.POLL_SECONDS = 0.2, 2.0, 0.2


def jumping_clock() -> None:
    """The clock of the day jumps by hours, back and forth, each time that it is looked at."""
    real, looked = time.time, [0]

    def jumped() -> float:
        looked[0] += 1
        return real() + (0, 7200, -7200, 86400)[looked[0] % 4]

    time.time = jumped


for name in os.environ.get("FAULT", "").split():
    globals()[name]()
