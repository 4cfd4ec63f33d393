"""Errors that a user can cause and mend: the command line prints them in one line, without a traceback."""


class BnvulnError(Exception):
    """Work that failed; the message says why (exit code 1)."""


class UsageError(BnvulnError):
    """A request that cannot be done as it stands; the message says what can (exit code 2)."""


class ConfigError(UsageError):
    """An invalid config or override; the message names file, key, what was expected and what was received."""
