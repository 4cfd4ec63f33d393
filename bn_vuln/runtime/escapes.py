"""Text of configs, names and records as pages, tables and terminals show it: as it is, and never as more than text."""

from __future__ import annotations

import re
import unicodedata

FORMULA = tuple("=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
                "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")  # categories of Unicode
# What Markdown takes for more than text. Left as they are: an underscore inside of a word, and brackets around numbers
# alone, as of intervals and of the numbers of notes, where no link follows.
_NUMBERS = r"-\d.,+ \u2212"
_MARKDOWN = re.compile(
    rf"[\\`*<>~|]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|!(?=\[)|\](?=[(\[])|\[(?![{_NUMBERS}]*\])|(?<![{_NUMBERS}\[])\]"
)
# At the beginning of a line: a heading, a list, a rule, or what a link leads to.
_BLOCK = re.compile(r"^(\d*)([#+=-](?=[\s#=-])|(?<=\d)[.)](?=\s)|\[(?=[^\]]*\]:))")


def visible(text: str) -> str:
    """Return text for a terminal: control characters but line ends and tabs, and what changes directions, are shown."""
    if text.isprintable():
        return text
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in INVISIBLE else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )


def line(text: str) -> str:
    """Return text in one line."""
    return visible(re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text))


def markdown(text: str, *, in_cell: bool = False) -> str:
    """Return text that Markdown sets as it stands, in one line; `in_cell` of a table no line begins."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", line(text))
    return escaped if in_cell else _BLOCK.sub(r"\1\\\2", escaped)


def code(text: str) -> str:
    """Return text as code of Markdown, in one line, also in a cell of a table."""
    return f"`{line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def csv_cell(value: object) -> object:
    """Return a value of CSV, with an apostrophe before text that spreadsheets would take for a formula."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
