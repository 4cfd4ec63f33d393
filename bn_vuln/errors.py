"""Errors that a user can cause and mend: the command line prints them in one line, without a traceback."""

import signal


class BnvulnError(Exception):
    """Work that failed; the message says why (exit code 1)."""


class UsageError(BnvulnError):
    """A request that cannot be done as it stands; the message says what can (exit code 2)."""


class ConfigError(UsageError):
    """An invalid config or override; the message names file, key, what was expected and what was received."""


class Terminated(KeyboardInterrupt):
    """A signal that ends the work: SIGINT (Ctrl-C), SIGTERM, or SIGHUP where the terminal was closed.

    It is a class of its own for Ctrl-C too: after a `KeyboardInterrupt` out of `exec`, as dataclasses use it, Python
    ends by SIGINT, whatever exit code is asked for.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        """`number` is that of the signal."""
        super().__init__(number)
        self.number = number


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of a program that an error of a user or of the system ends, and what it says."""
    if isinstance(error, BnvulnError):
        return 2 if isinstance(error, UsageError) else 1, str(error)
    if isinstance(error, MemoryError):
        return 1, f"memory is exhausted ({error}): take fewer images with --limit, or smaller ones"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return 1, f"{error.filename or 'file system'}: {error.strerror or error}"
    number = error.number if isinstance(error, Terminated) else int(signal.SIGINT)
    names: dict[int, str] = {signal.SIGTERM: "Terminated", signal.SIGHUP: "The terminal was closed"}
    return 128 + number, (
        f"{names.get(number, 'Interrupted')}. What was finished is kept; run the same command again to go on (a "
        "training goes on after its last checkpoint)."
    )
