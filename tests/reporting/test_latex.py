"""Tables as LaTeX: escaped, aligned, differences in bold, notes under them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers_records import HARM, SMALL, by_arm, fill, small

from bn_vuln.records import Flag
from bn_vuln.reporting import pages, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.latex import ESCAPES, escape, latex_table, latex_tables
from bn_vuln.reporting.tables import TextTable

MINUS = "\N{MINUS SIGN}"
FLAG = Flag(check=18, name="steps cannot reach the border", value=0.05, message="take 100 % more --steps")
TABLE = TextTable(
    f"50% & {MINUS}1 ± 2",
    ["key_1", "words", "acc, %"],
    [["28", "none", "97.00 ± 0.08"], ["28", "batch", "- (2 not run)"], ["28", f"batch {MINUS} none", f"{MINUS}0.10"],
     ["56", "none", "-"]],
    frozenset({2}),
    ("[1] one_note", "[2] another"),
)  # fmt: skip


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Results:
    experiment = small(title="Costs 40% & more", grid={**SMALL["grid"], "data.width": [28, 56]})
    root = fill(tmp_path_factory.mktemp("harm"), experiment, by_arm(HARM), flags=lambda cell, name: [FLAG])
    return aggregate(experiment, root)


def body(text: str) -> list[list[str]]:
    """The cells of the rows of a table, its head first."""
    rows = [line.strip() for line in text.splitlines() if line.endswith(r" \\")]
    return [re.split(r" (?<!\\)& ", row.removesuffix(r" \\")) for row in rows]


def columns(text: str) -> str:
    return re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)[0]


# ---------------------------------------------------------------- text


def test_text_is_escaped() -> None:
    assert escape("a & b 100% $5 #1 a_b {x}") == r"a \& b 100\% \$5 \#1 a\_b \{x\}"
    assert escape(r"~ ^ \input <a|b>") == (
        r"\textasciitilde{} \textasciicircum{} \textbackslash{}input \textless{}a\textbar{}b\textgreater{}"
    )
    assert escape(r"\%") == r"\textbackslash{}\%"
    assert escape(f"{MINUS}43.75 ± 0.50 a ≤ b → c ε = λ") == (
        r"$-$43.75 $\pm$ 0.50 a $\leq$ b $\to$ c $\epsilon$ = $\lambda$"
    )
    assert escape("bnvuln --jobs a---b") == "bnvuln -{}-jobs a-{}-{}-b"
    assert (escape("[1] [2]"), escape("*")) == ("{[}1] [2]", "{*}")
    assert (escape("one\n\n two\tthree"), escape("Ångström"), escape("")) == ("one two three", "Ångström", "")


# ---------------------------------------------------------------- one table


def test_a_table_is_a_float_with_rules() -> None:
    lines = [line.strip() for line in latex_table(TABLE).splitlines()]
    places = [lines.index(rf"\{name}") for name in ("begin{table}", "toprule", "midrule", "bottomrule", "end{table}")]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, len(lines) - 1)
    assert r"\caption{50\% \& $-$1 $\pm$ 2}" in lines


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    assert columns(latex_table(TABLE)) == "rlr"


def test_differences_are_bold_with_their_signs_and_set_apart() -> None:
    text = latex_table(TABLE)
    *_, difference, last = body(text)
    assert difference == [r"\textbf{28}", r"\textbf{\boldmath batch $-$ none}", r"\textbf{\boldmath $-$0.10}"]
    assert text.count(r"\textbf") == 3
    assert [line.strip() for line in text.splitlines()].count(r"\addlinespace") == 1
    assert last == ["56", "none", "--"]


def test_a_difference_at_the_end_needs_no_space_below() -> None:
    table = TextTable("t", ["a"], [["none"], ["batch"]], frozenset({1}))
    assert r"\addlinespace" not in latex_table(table)


def test_missing_values_are_dashes() -> None:
    assert body(latex_table(TABLE))[2] == ["28", "batch", "-- (2 not run)"]


def test_notes_stand_under_the_table() -> None:
    text = latex_table(TABLE)
    notes = text[text.index(r"\end{tabular}") :]
    assert r"{[}1] one\_note\par" in notes
    assert r"{[}2] another\par" in notes


def test_without_notes_there_is_nothing_under_the_table() -> None:
    last = latex_table(TextTable("t", ["a"], [["b"]])).splitlines()[-2:]
    assert last == [r"  \end{tabular}", r"\end{table}"]


def test_a_table_without_rows_is_its_head() -> None:
    text = latex_table(TextTable("t", ["a", "b"], []))
    assert (columns(text), body(text)) == ("rr", [["a", "b"]])


# ---------------------------------------------------------------- an experiment


def test_an_experiment_is_all_its_tables(harm: Results) -> None:
    comment, *parts = latex_tables(harm).split("\n\n")
    expected = tables.result_tables(harm)
    assert len(parts) == len(expected) == 2
    for part, table in zip(parts, expected, strict=True):
        assert len(body(part)) == 1 + len(table.rows)
        assert {len(row) for row in body(part)} == {len(columns(part))} == {len(table.header)}
    assert r"check 18: in 4 of 4 seeds, at most: take 100 \% more -{}-steps\par" in parts[1]
    assert [line for line in comment.splitlines() if not line.startswith("% ")] == []


def test_the_comment_says_where_the_tables_come_from_and_what_they_need(harm: Results) -> None:
    lines = latex_tables(harm).splitlines()
    assert lines[:4] == [
        "% Costs 40% & more",
        "% Command: bnvuln reproduce small.yaml",
        "% Versions: bnvuln 0.0, tensorflow 2.99",
        r"% Needs \usepackage{booktabs}",
    ]


def test_a_title_of_several_lines_stays_in_the_comment(tmp_path: Path) -> None:
    text = latex_tables(aggregate(small(title="one\n\\input{two}"), tmp_path))
    assert text.startswith("% one \\input{two}\n%")


def test_a_file_is_written_for_each_experiment(tmp_path: Path) -> None:
    fill(tmp_path, small(), by_arm(HARM))
    path = tmp_path / "report" / "small-full.tex"
    assert pages.write(tmp_path, "tex") == [path]
    assert path.read_text() == latex_tables(aggregate(small(), tmp_path))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_sets_the_tables(harm: Results, tmp_path: Path) -> None:
    characters = "".join(ESCAPES) + "[]*()!?/é°²§"
    everything = latex_table(TextTable(characters, ["a"], [[f"[{characters}"], ["*"]], notes=(characters,)))
    text = (
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{latex_tables(harm)}{everything}\n"
    )
    (tmp_path / "page.tex").write_text(text + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
