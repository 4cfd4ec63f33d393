"""Shapes, lists of names, and errors of other libraries in a few words, for people."""

from __future__ import annotations

from collections.abc import Iterable


def format_shape(sizes: Iterable[int | None]) -> str:
    """The sizes as 32x32x3, with ? for one that is not known."""
    return "x".join(str(size or "?") for size in sizes)


def format_list(names: Iterable[str], shown: int = 8) -> str:
    """The names as "a, b and c"; of more than `shown` only the first, and the number of the rest."""
    words = list(names)
    if len(words) > shown:
        words = [*words[:shown], f"{len(words) - shown} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def first_line(error: Exception) -> str:
    """The first line of an error's message that is not empty, or the error's type."""
    lines = (line.strip().rstrip(":") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
