"""`bnvuln show`: one run or external model, with its records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.records import Entry

EXAMPLES = """
Examples:

\b
  bnvuln show runs/ID
  bnvuln show 3fa9                          # the beginning of an id in runs/
  bnvuln show model.keras                   # a model that was measured
  bnvuln show results/paper/dd15bd2a8efa    # a cell of a packed store
  bnvuln show runs/ID --json
"""


@click.command("show", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("target", metavar="RUN")
@o.runs_option
@o.json_option
@o.quiet_option
def command(target: str, runs: Path, as_json: bool, quiet: bool) -> None:
    """Show a run or an external model: how it was made, every record with its flags, every measurement.

    RUN is a run folder, the beginning of an id, the file of an external model, or STORE/CELL of a packed store.
    """
    from bn_vuln import records
    from bn_vuln.reporting import models
    from bn_vuln.reporting.tables import WIDTH, text_table, wrap

    found = records.entry(*records.find(target, runs))
    if as_json:
        o.print_json(models.entry_fields(found))
    else:
        click.echo("\n".join(wrap(found.name, WIDTH)))
        rows = models.summary_rows(found)
        label = max(len(name) for name, _ in rows)
        for name, text in rows:
            click.echo("\n".join(wrap(f"{name:{label}}  {text}", WIDTH, indent=" " * (label + 2))))
        tables = models.result_tables(found)
        for table in tables:
            click.echo(f"\n{table.title}\n{text_table(table)}")
        if not tables:
            click.echo("no records")
    o.closing(found.folder, *_next(found), quiet=quiet)


def _next(found: Entry) -> list[str]:
    """The commands that make sense now."""
    run = o.quote(found.folder)
    if found.records:
        return [f"bnvuln compare {run} OTHER", *([f"bnvuln report {run}"] if found.folder.is_dir() else [])]
    if found.state == "trained":
        return [f"bnvuln attack {run} --eps 8/255", f"bnvuln evaluate {run}"]
    return ["the same bnvuln train again goes on"] if found.state == "unfinished" else []
