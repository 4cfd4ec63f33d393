"""Tables as LaTeX, for a paper: booktabs, nothing else beyond the kernel."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from bn_vuln.reporting import summary
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.tables import MISSING, TextTable, result_tables

# Characters that LaTeX does not set as they stand. It knows accents, dashes, quotes, degrees and the like of UTF-8.
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


def latex_tables(results: Results) -> str:
    """Return all tables of an experiment, under a comment with title, command, versions and the package they need."""
    lines = [
        results.experiment.title,
        f"Command: {summary.command(results)}",
        f"Versions: {'; '.join(results.versions) or 'none yet'}",
        r"Needs \usepackage{booktabs}",
    ]
    comment = "\n".join(f"% {' '.join(line.split())}" for line in lines)
    return "\n\n".join([comment, *(latex_table(table) for table in result_tables(results))]) + "\n"


def latex_table(table: TextTable) -> str:
    """Return one `table` with its title as caption: numbers to the right, differences in bold, notes under it."""
    columns = "".join("l" if i in table.text_columns else "r" for i in range(len(table.header)))
    rows = []
    for i, row in enumerate(table.rows):
        rows.append(latex_row(row, bold=i in table.differences))
        if i in table.differences and i + 1 < len(table.rows):
            rows.append(r"  \addlinespace")  # a block ends with its difference
    notes = [rf"  {escape(note)}\par" for note in table.notes]
    lines = [
        r"\begin{table}",
        r"  \centering\small",
        rf"  \caption{{{escape(table.title)}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"  \toprule",
        latex_row(table.header),
        r"  \midrule",
        *rows,
        r"  \bottomrule",
        r"  \end{tabular}",
        *([r"  \par\medskip\raggedright\footnotesize", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines)


def latex_row(cells: Iterable[str], *, bold: bool = False) -> str:
    r"""Return a row, with a dash for a missing value, alone or before its reason.

    "±" and minus signs are mathematics, which \textbf alone leaves thin.
    """
    texts = []
    for cell in cells:
        first, _, reason = cell.partition(" ")
        text = " ".join(filter(None, ["--", escape(reason)])) if first == MISSING else escape(cell)
        if bold:
            text = rf"\textbf{{\boldmath {text}}}" if "$" in text else rf"\textbf{{{text}}}"
        texts.append(text)
    return "  " + " & ".join(texts) + r" \\"


def escape(text: str) -> str:
    """Return text in one line that LaTeX sets as it is."""
    escaped = re.sub("[ \t\n]+", " ", text).translate(_TABLE)
    escaped = re.sub(r"^[\[*]", r"{\g<0>}", escaped)  # would be an argument of the row's end before it
    return re.sub("-(?=-)", "-{}", escaped)  # "--jobs" has two hyphens, not a dash
