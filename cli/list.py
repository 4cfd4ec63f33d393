"""`bnvuln list`: the models of a results folder."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from . import options as o

EXAMPLES = """
  bnvuln list                       # runs and external models in runs/
  bnvuln list results/paper         # a packed store
  bnvuln list --json
"""


@o.command("list", EXAMPLES)
@cloup.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", default="runs")
@o.output_options
def command(folder: Path, as_json: bool, quiet: bool) -> None:
    """List the runs and external models in a results folder, the newest first.

    Each has its name, id, data set, state, clean accuracy and number of records. DIR is runs, if it is not given.
    """
    from bn_vuln import records
    from bn_vuln.errors import UsageError
    from bn_vuln.reporting import models
    from bn_vuln.reporting.tables import text_table

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a results folder, received a file")
    if not folder.exists() and folder != Path("runs"):
        raise UsageError(f"{folder}: no such folder")
    if records.is_run_folder(folder) and not records.is_packed(folder):
        raise UsageError(f"{folder} is one run: bnvuln show {o.quote(folder)}")
    found = records.entries(records.open_store(folder))
    if as_json:
        o.print_json({"folder": str(folder), "models": [models.entry_row_fields(one) for one in found]})
    elif found:
        click.echo(text_table(models.models_table(found)))
    else:
        click.echo(models.nothing_here(folder))
    if found:
        o.closing(folder, f"bnvuln show {o.quote(found[0].folder)}", quiet=quiet)
