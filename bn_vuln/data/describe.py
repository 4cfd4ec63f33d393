"""Shapes and foreign errors in a few words, for people."""

from __future__ import annotations

from collections.abc import Iterable


def shape(sizes: Iterable[int | None]) -> str:
    """32x32x3, as people write it; ? where a size is not known."""
    return "x".join(str(size or "?") for size in sizes)


def listed(names: Iterable[str], shown: int = 8) -> str:
    """a, b and c; of more than `shown` only those and how many more."""
    words = list(names)
    if len(words) > shown:
        words = [*words[:shown], f"{len(words) - shown} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, or its type."""
    lines = (line.strip().rstrip(":") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
