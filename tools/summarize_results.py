"""The table of results/README.md, from the records: every claim of every experiment beside ours, with its verdict.

    python tools/summarize_results.py [--folder results] [--check]

Writes it between the two markers of FOLDER/README.md; --check changes nothing and exits with 1 where it is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bn_vuln.experiments import catalog
from bn_vuln.reporting import pages, summary, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.tables import words
from bn_vuln.runtime.files import atomic_write

BEGIN, END = "<!-- made by tools/summarize_results.py -->", "<!-- end -->"
HEADS = ["experiment", "claim", "under", "paper", "ours ± SEM (n)", "verdict", "reason of a difference"]


def table(folder: Path) -> str:
    """The table as Markdown."""
    rows = []
    for part in sorted((path.parent for path in folder.glob("*/experiments")), reverse=True):
        for experiment in pages.experiments_in(part):
            rows += _rows(aggregate(experiment, part), f"{part.name}/report/{catalog.file_stem(experiment)}.md")
    lines = [" | ".join(text.replace("|", "\\|") for text in row) for row in (HEADS, *rows)]
    lines.insert(1, "|".join("---" for _ in HEADS))
    return "\n".join(f"| {line} |" for line in lines)


def _rows(results: Results, page: str) -> list[list[str]]:
    """What the experiment claims, with its verdicts counted; then one row for each claim that is judged."""
    head = [f"[{results.experiment.name}]({page})", results.experiment.claim, "", "", "", summary.verdicts(results), ""]
    found = [row for row in tables.claims(results) if row.verdict != "context"]
    return [head, *(["", _what(row), row.under, row.published, row.ours, row.verdict, row.remark] for row in found)]


def _what(row: tables.ClaimText) -> str:
    """What a claim is about, and in which row."""
    place = ", ".join(words(row.where, named=True))
    return f"{place}: {row.quantity}" if place else row.quantity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("results"))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path = args.folder / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    made = f"{before}{BEGIN}\n{table(args.folder)}\n{END}{after}"
    if args.check:
        sys.exit(made != text)
    atomic_write(path, made)


if __name__ == "__main__":
    main()
