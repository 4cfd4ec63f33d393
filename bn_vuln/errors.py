"""Errors that a user can cause and mend: the command line prints them in one line, without a traceback."""


class BnvulnError(Exception):
    """Work that failed; the message says why (exit code 1)."""


class UsageError(BnvulnError):
    """A request that cannot be done as it stands; the message says what can (exit code 2)."""


class ConfigError(UsageError):
    """An invalid config or override; the message names file, key, what was expected and what was received."""


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of a program that an error ends, and the line that it prints."""
    if isinstance(error, BnvulnError):
        return 2 if isinstance(error, UsageError) else 1, f"Error: {error}"
    if isinstance(error, MemoryError):
        return 1, f"Error: memory is exhausted ({error}): take fewer images with --limit, or smaller ones"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return 1, f"Error: {error.filename or 'file system'}: {error.strerror or error}"
    return 130, (
        "Interrupted. What was finished is kept; run the same command again to go on (a training goes on after its "
        "last checkpoint)."
    )
