"""`bnvuln compare`: two runs, measured under the same perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.api import Comparison
    from bn_vuln.typing import Plain

EXAMPLES = """
Examples:

\b
  bnvuln compare runs/no-bn runs/bn
  bnvuln compare runs/no-bn runs/bn --json
  bnvuln compare results/paper/df28a7b8f872 results/paper/dd15bd2a8efa
"""


@click.command("compare", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
@o.option("Output")("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def command(first: Path, second: Path, as_json: bool) -> None:
    """Paired differences, second - first, for every perturbation measured on both.

    The uncertainty is over test examples: one pair of runs says nothing about other seeds (`bnvuln reproduce`
    runs several).
    """
    from bn_vuln import api

    pairs = api.compare(first, second)
    if as_json:
        o.print_json({"first": str(first), "second": str(second), "pairs": [_plain(pair) for pair in pairs]})
        return
    from bn_vuln.config import describe_fields
    from bn_vuln.reporting.tables import TextTable, format_estimate, markdown_table

    notes = list(dict.fromkeys(flag.text for p in pairs for r in (p.first, p.second) for flag in r.flags))
    rows = [
        [describe_fields(p.first.perturbation), str(p.first.n), f"{100 * p.first.accuracy:.2f}",
         f"{100 * p.second.accuracy:.2f}", format_estimate(p.difference, signed=True), _flags(p, notes)]
        for p in pairs
    ]  # fmt: skip
    header = ["under", "examples", "first, %", "second, %", "second \N{MINUS SIGN} first, points ± SE over examples"]
    numbered = tuple(f"[{i}] {note}" for i, note in enumerate(notes, 1))
    click.echo(markdown_table(TextTable("", [*header, "flags"], rows, notes=numbered)))
    click.echo(f"\nfirst: {first}\nsecond: {second}\none pair of runs: the spread over seeds is unknown (n = 1)")


def _flags(pair: Comparison, notes: list[str]) -> str:
    """The numbers of the notes on each run: `first [1], second [1] [2]`."""
    found = []
    for name, record in (("first", pair.first), ("second", pair.second)):
        numbers = dict.fromkeys(f"[{1 + notes.index(flag.text)}]" for flag in record.flags)
        found += [f"{name} {' '.join(numbers)}"] if numbers else []
    return ", ".join(found) or "none"


def _plain(pair: Comparison) -> Plain:
    return {
        "perturbation": pair.first.perturbation,
        "n": pair.first.n,
        "first": pair.first.accuracy,
        "second": pair.second.accuracy,
        "difference": pair.difference.mean,
        "standard_error_over_examples": pair.difference.sem,
        "flags": [flag.model_dump() for flag in (*pair.first.flags, *pair.second.flags)],
    }
