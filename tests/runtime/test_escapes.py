"""Texts of configs and names stay texts in Markdown, CSV and on a terminal."""

import pytest

from bn_vuln.runtime.escapes import code, csv_cell, markdown, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("*b* **c**", r"\*b\* \*\*c\*\*"),
        ("_b_ and snake_case", r"\_b\_ and snake_case"),
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("[1](u) [1][2]", r"[1\](u) [1\][2]"),
        ("[1]: u", r"\[1]: u"),
        ("![x](u)", r"\!\[x\](u)"),
        ("&lt; &#60; & b", r"\&lt; \&#60; & b"),
        ("a\\*b", r"a\\\*b"),
        ("~~a~~", r"\~\~a\~\~"),
        ("a\r\n\n# b", "a # b"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("===", r"\==="),
        ("\x1b[31m", "\N{REPLACEMENT CHARACTER}\\[31m"),
        ("AWGN, clip [0, 1]", "AWGN, clip [0, 1]"),
        ("97.7 (3; examples [+96.0, \N{MINUS SIGN}1.0]) [1] [2]",) * 2,
        ("batch \N{MINUS SIGN} none, c = 1e-5",) * 2,
    ],
)
def test_markdown(text, expected):
    assert markdown(text) == expected


def test_code_ends_where_it_should():
    assert code("a`b|c\nd") == "`a'b\\|c d`"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_a_formula_of_a_spreadsheet_becomes_text(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+1e-5", "a=b", "", None, 3, "batch - none"])
def test_other_cells_stay(value):
    assert csv_cell(value) is value


def test_nothing_steers_a_terminal():
    assert visible("a\x1b]0;title\x07b\r\x9b2J\u202ec\u2066") == "a?]0;title?b??2J?c?".replace("?", "\ufffd")
    assert visible("a\n\tb\xa0é") == "a\n\tb\xa0é"
