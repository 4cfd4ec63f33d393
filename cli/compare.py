"""`bnvuln compare`: two models, measured under the same perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.reporting.paired import Comparison
    from bn_vuln.reporting.tables import TextTable

EXAMPLES = """
Examples:

\b
  bnvuln compare runs/no-bn runs/bn
  bnvuln compare a.keras b.keras            # both were measured
  bnvuln compare 3fa9 model.keras --json    # an id in runs/
  bnvuln compare results/paper/df28a7b8f872 results/paper/dd15bd2a8efa
"""


@click.command("compare", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("first", metavar="MODEL")
@click.argument("second", metavar="MODEL")
@o.runs_option
@o.json_option
@o.quiet_option
def command(first: str, second: str, runs: Path, as_json: bool, quiet: bool) -> None:
    """Paired differences, second - first, for every perturbation measured on both.

    A MODEL is a run folder, the beginning of an id, the file of an external model that was measured, or STORE/CELL of
    a packed store. The uncertainty is over test examples: one pair of runs says nothing about other seeds (`bnvuln
    reproduce` runs several).
    """
    from bn_vuln.reporting import paired
    from bn_vuln.reporting.tables import WIDTH, text_table, wrap

    one, other, pairs = paired.pair(first, second, runs)
    for problem in (*one.problems, *other.problems):
        o.log(problem)
    if as_json:
        o.print_json(paired.to_json(one, other, pairs))
    else:
        click.echo(text_table(_table(pairs)))
        for label, model in (("first", one), ("second", other)):
            click.echo("\n".join(wrap(f"{label:7} {model.name} ({model.folder})", WIDTH, indent=" " * 8)))
        click.echo("± is one standard error over examples; the spread over seeds is unknown (n = 1)")
        for flag in paired.flags(pairs):
            click.echo("\n".join(wrap(flag.text, WIDTH, indent="    ")))
    o.closing(one.folder, f"bnvuln show {o.quote(one.folder)}", f"bnvuln show {o.quote(other.folder)}", quiet=quiet)


def _table(pairs: list[Comparison]) -> TextTable:
    from bn_vuln.config import describe_fields
    from bn_vuln.reporting.tables import TextTable, format_estimate

    notes = list(dict.fromkeys(flag.text for p in pairs for r in (p.first, p.second) for flag in r.flags))
    rows = [
        [describe_fields(p.first.perturbation), str(p.first.n), f"{100 * p.first.accuracy:.2f}",
         f"{100 * p.second.accuracy:.2f}", format_estimate(p.difference, signed=True), _flags(p, notes)]
        for p in pairs
    ]  # fmt: skip
    header = ["under", "examples", "first, %", "second, %", "second \N{MINUS SIGN} first, points"]
    return TextTable("", [*header, "flags"], rows, notes=tuple(f"[{i}] {note}" for i, note in enumerate(notes, 1)))


def _flags(pair: Comparison, notes: list[str]) -> str:
    """The numbers of the notes on each run: `first [1], second [1] [2]`."""
    found = []
    for name, record in (("first", pair.first), ("second", pair.second)):
        numbers = dict.fromkeys(f"[{1 + notes.index(flag.text)}]" for flag in record.flags)
        found += [f"{name} {' '.join(numbers)}"] if numbers else []
    return ", ".join(found) or "none"
