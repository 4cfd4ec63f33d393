"""Tables as LaTeX, for a paper: booktabs, nothing else beyond the kernel."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from bn_vuln.reporting import summary, tables
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.tables import MISSING, TextTable

# What LaTeX does not set as it stands. It knows accents, dashes, quotes, degrees and the like of UTF-8.
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "mu", "rho", "sigma", "tau", "phi")
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}",
    "\N{MINUS SIGN}": "$-$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "≠": r"$\neq$",
    "∞": r"$\infty$", "→": r"$\to$", "√": r"$\surd$", "λ": r"$\lambda$", "Δ": r"$\Delta$",
    **{unicodedata.lookup(f"greek small letter {name}"): rf"$\{name}$" for name in _GREEK},
}  # fmt: skip
_TABLE = str.maketrans(ESCAPES)


def latex(results: Results) -> str:
    """All tables of an experiment, under a comment that says where they come from and what they need."""
    lines = [
        results.experiment.title,
        f"Command: {summary.command(results)}",
        f"Versions: {'; '.join(results.versions) or 'none yet'}",
        r"Needs \usepackage{booktabs}",
    ]
    comment = "\n".join(f"% {' '.join(line.split())}" for line in lines)
    return "\n\n".join([comment, *(latex_table(table) for table in tables.tables(results))]) + "\n"


def latex_table(table: TextTable) -> str:
    """One `table` with its title as caption: numbers to the right, differences in bold, notes under it."""
    words = table.text_columns
    columns = "".join("l" if i in words else "r" for i in range(len(table.heads)))
    notes = [rf"  {escape(note)}\par" for note in table.notes]
    lines = [
        r"\begin{table}",
        r"  \centering\small",
        rf"  \caption{{{escape(table.title)}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"  \toprule",
        _row(table.heads),
        r"  \midrule",
        *_rows(table),
        r"  \bottomrule",
        r"  \end{tabular}",
        *([r"  \par\medskip\raggedright\footnotesize", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _rows(table: TextTable) -> Iterable[str]:
    """The rows, with some space after a difference, where its block ends."""
    for i, row in enumerate(table.rows):
        yield _row(row, bold=i in table.differences)
        if i in table.differences and i + 1 < len(table.rows):
            yield r"  \addlinespace"


def _row(cells: Iterable[str], *, bold: bool = False) -> str:
    texts = [_cell(cell) for cell in cells]
    return "  " + " & ".join(map(_bold, texts) if bold else texts) + r" \\"


def _bold(text: str) -> str:
    r"""Bold text; "±" and minus signs are mathematics, which \textbf alone leaves thin."""
    return rf"\textbf{{\boldmath {text}}}" if "$" in text else rf"\textbf{{{text}}}"


def _cell(text: str) -> str:
    """A cell; a missing value is a dash, alone or before its reason."""
    first, _, reason = text.partition(" ")
    return " ".join(filter(None, ["--", escape(reason)])) if first == MISSING else escape(text)


def escape(text: str) -> str:
    """Text in one line that LaTeX sets as it is."""
    escaped = re.sub("[ \t\n]+", " ", text).translate(_TABLE)
    escaped = re.sub(r"^[\[*]", r"{\g<0>}", escaped)  # would be an argument of the row's end before it
    return re.sub("-(?=-)", "-{}", escaped)  # "--jobs" has two hyphens, not a dash
