"""Progress of a training or an evaluation: a progress bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bn_vuln.runtime import signals
from bn_vuln.runtime.escapes import line, visible
from bn_vuln.typing import Plain


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: number from 1, mean loss in nats, accuracies as fractions."""

    number: int
    epochs: int
    learning_rate: float
    loss: float
    train_accuracy: float
    validation_accuracy: float
    images_per_second: float
    seconds: float


class Progress(Protocol):
    """The interface that training and evaluation report to."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a task of `total` units, of which some were `done` before."""

    def advance(self, done: int, detail: str = "") -> None:
        """Report that `done` units in all are finished."""

    def message(self, text: str) -> None:
        """Print a line that stays."""

    def stop(self) -> None:
        """End the task."""


class Quiet:
    """No progress. Starting and advancing raise an interruption that was lost (`signals.check`)."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Only look for a lost interruption."""
        signals.check()

    def advance(self, done: int, detail: str = "") -> None:
        """Only look for a lost interruption."""
        signals.check()

    def message(self, text: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class PlainLines(Quiet):
    """Lines on standard error: every message, and while work goes on one line each 30 seconds at the most."""

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every, self.title, self.total, self.unit, self.done_before = every_seconds, "", 0, "", 0
        self.began = self.last_printed = time.monotonic()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Remember the task; nothing is printed."""
        super().start(title, total, unit, done)
        self.title, self.total, self.unit, self.done_before = title, total, unit, done
        self.began = self.last_printed = time.monotonic()

    def advance(self, done: int, detail: str = "") -> None:
        """Print a line, if the last one is old enough, with the time that is left."""
        super().advance(done, detail)
        now = time.monotonic()
        if now - self.last_printed < self.every or done >= self.total:
            return
        self.last_printed = now
        left = (now - self.began) / max(done - self.done_before, 1) * (self.total - done)
        self.message(f"{self.title}: {done}/{self.total} {self.unit} {detail} {duration(left)} left")

    def message(self, text: str) -> None:
        """Print the line; where no one can read it any more, work goes on."""
        with contextlib.suppress(OSError):
            print(visible(text), file=sys.stderr, flush=True)


class LiveBar(Quiet):
    """A rich progress bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.bar: Any = None
        self.task: Any = None

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Show a bar for the task."""
        from rich import progress

        super().start(title, total, unit, done)
        self.stop()
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.completed}/{task.total} " + unit),
            progress.TextColumn("{task.fields[detail]}", markup=False),
            progress.TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(line(title), total=total, completed=done, detail="")
        self.bar.start()

    def advance(self, done: int, detail: str = "") -> None:
        """Move the bar."""
        super().advance(done, detail)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, detail=detail)

    def message(self, text: str) -> None:
        """Print the line above the bar; where the terminal was closed, work goes on."""
        with contextlib.suppress(OSError):
            self.console.print(visible(text), markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None


class Noted:
    """Another progress, whose state is noted where other processes see it (`lease.Lease.work`).

    The note has title, total, unit, done and, as soon as something was timed, seconds left.
    """

    def __init__(self, progress: Progress, note: Plain, log: Callable[[str], None] | None = None) -> None:
        """`progress` shows, `note` is changed, `log` receives the messages too."""
        self.progress, self.note, self.log, self.done_before = progress, note, log, 0
        self.began = time.monotonic()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a task."""
        self.began, self.done_before = time.monotonic(), done
        self.note.pop("left", None)
        self.note.update(title=title, total=total, unit=unit, done=done)
        self.progress.start(title, total, unit, done)

    def advance(self, done: int, detail: str = "") -> None:
        """Note the number of units that are done, and the time that the rest will take."""
        rate = (done - self.done_before) / max(time.monotonic() - self.began, 1e-6)
        self.note.update(done=done, **({"left": round((self.note["total"] - done) / rate, 1)} if rate > 0 else {}))
        self.progress.advance(done, detail)

    def message(self, text: str) -> None:
        """Pass a line on."""
        if self.log is not None:
            self.log(text)
        self.progress.message(text)

    def stop(self) -> None:
        """End the task."""
        self.progress.stop()


def make_progress(*, quiet: bool = False) -> Progress:
    """Return a progress bar on a terminal, plain lines elsewhere, or nothing if `quiet`."""
    if quiet:
        return Quiet()
    return LiveBar() if sys.stderr.isatty() else PlainLines()


@contextlib.contextmanager
def progress_task(progress: Progress, title: str, total: int, unit: str, done: int = 0) -> Iterator[None]:
    """Run the block as a task of a progress, which is stopped however the block ends.

    Args:
        progress: reports the task.
        title: of the task.
        total: number of units.
        unit: name of the units.
        done: units that were done before.
    """
    try:
        progress.start(title, total, unit, done)
        yield
    finally:
        progress.stop()


def duration(seconds: float) -> str:
    """Format seconds as 42 s, 3 min 05 s, or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
