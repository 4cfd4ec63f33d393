"""Signals that end a program, handled as Ctrl-C is; and how worker processes are ended.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) raise `Terminated`, a `KeyboardInterrupt`, so that each of them
writes the checkpoint, releases locks, keeps what was finished and removes the bar. Only programs install handlers
(the command line, and workers): a library leaves signals to its user. A signal that is ignored when the program starts
(nohup) stays ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from bn_vuln.errors import Terminated, explain

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PRESSES, PRESSED_WITHIN = 3, 5.0  # signals in so many seconds end the process at once
POLL_SECONDS = 0.05
_SHOW_CURSOR = b"\x1b[?25h"


class _State(threading.local):
    """What the main thread, which runs the handlers, knows; to all other threads nothing was received."""

    received: int | None = None  # the first signal
    deferred = 0  # blocks within which nothing is raised
    times: tuple[float, ...] = ()


_state = _State()


def remember() -> None:
    """Handle signals by remembering them, until `raised` raises them: what a program does as it starts and ends."""
    if threading.current_thread() is threading.main_thread() and not _state.deferred:
        _state.deferred = 1
        _install()
        atexit.register(_ignore)  # at the very end Python restores what the system does: end at once, by the signal


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise signals of this process in the block; afterwards the handlers are those from before.

    Raises:
        Terminated: A signal came. Another error that ends the block after that comes of it, and is replaced by it:
            native code makes errors of its own of an interruption.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    handlers, hook, deferred = _install(), sys.unraisablehook, _state.deferred

    def ignore_interruption(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):  # which `check` raises again
            hook(unraisable)

    sys.unraisablehook = ignore_interruption
    try:
        _state.deferred = 0
        check()
        yield
    except BaseException as error:
        if (found := interruption()) is None or isinstance(error, KeyboardInterrupt):
            raise
        raise found from error
    finally:
        _state.deferred = deferred
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if not deferred:
            _state.received, _state.times = None, ()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off what a signal raises to the end of the block, which must be short: two steps that belong together."""
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1
    check()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep the handlers through a block that sets others, as the start of Ray does."""
    handlers = _handlers()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def check() -> None:
    """Raise what a signal raised before and native code swallowed, or what was put off; else do nothing.

    Callbacks of TensorFlow and HDF5, and `__del__`, lose exceptions. So loops call this now and then.
    """
    found = interruption()
    if found is not None and not _state.deferred and not _is_unwinding():
        raise found


def interruption() -> Terminated | None:
    """Return what the first signal that was received raises, or None."""
    return None if _state.received is None else Terminated(_state.received)


def _handlers() -> dict[int, Any]:
    """Return the handlers of all signals that are not ignored, and that Python can set again."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


def _install() -> dict[int, Any]:
    """Handle the signals that are not ignored; return the handlers from before."""
    handlers = _handlers()
    for number in handlers:
        signal.signal(number, _handle)
    return handlers


def _ignore() -> None:
    for number in _handlers():
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _: FrameType | None) -> None:
    """Remember a signal, and raise it where that is safe."""
    now = time.monotonic()
    _state.times = (*_state.times, now)[-PRESSES:]
    if len(_state.times) == PRESSES and now - _state.times[0] < PRESSED_WITHIN:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        os._exit(128 + number)
    if _state.received is None:
        _state.received = number
    check()


def _is_unwinding() -> bool:
    """Return if an interruption is on its way up already: what it lets `finally` do must not be interrupted."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _forget() -> None:
    """Let signals end a forked process, as one of a pool, at once."""
    for number, handler in _handlers().items():
        if handler is _handle:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)


# ---------------------------------------------------------------- worker processes


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Start processes in the block that never see Ctrl-C or a closed terminal: their parent ends them by SIGTERM.

    Threads and processes inherit what is blocked. A signal of this process comes after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ending_worker() -> Iterator[None]:
    """Run the work of a worker process: a signal interrupts it, and when it has kept what is finished it ends.

    Between two blocks a signal ends the process at once.
    """
    for number in _handlers():
        signal.signal(number, signal.SIG_DFL)
    try:
        with raised():
            yield
            check()
    except KeyboardInterrupt as error:
        os._exit(explain(error)[0])


def end_processes(pids: Iterable[int], grace: float = 10.0) -> list[int]:
    """End processes in order: SIGTERM to each, then SIGKILL to those that are still there.

    Args:
        pids: of processes that may be interrupted, as workers in `ending_worker` are; those that are gone do no harm.
        grace: seconds that they have to keep what is finished.

    Returns:
        Those that got SIGKILL.
    """
    left, end = _signalled(pids, signal.SIGTERM), time.monotonic() + grace
    while left and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        left = [pid for pid in left if _runs(pid)]
    return _signalled(left, signal.SIGKILL)


def _signalled(pids: Iterable[int], number: int) -> list[int]:
    """Send a signal to those processes that run; return them."""
    running = [pid for pid in pids if _runs(pid)]
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return running


def _runs(pid: int) -> bool:
    """Return if a process runs; a child that has ended does not, even before its exit code was asked for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # none of ours, or its exit code was asked for
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
