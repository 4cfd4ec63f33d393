"""Errors that a user can cause and mend: the command line prints them in one line, without a traceback."""


class BnvulnError(Exception):
    """The work could not be done; the message says why (exit code 1)."""


class UsageError(BnvulnError):
    """What the user asked for makes no sense as asked; the message says what would (exit code 2)."""


class ConfigError(UsageError):
    """A config, or an override of one, is wrong; the message names file, key, expected and received."""
