"""`bnvuln report`: tables and figures from existing records."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as o

EXAMPLES = """
Examples:

\b
  bnvuln report runs
  bnvuln report results/paper --format md
  bnvuln report results/paper --format tex
"""


@click.command("report", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@o.option("Result")(
    "--format",
    "form",
    type=click.Choice(["html", "md", "csv", "tex"]),
    default="html",
    show_default=True,
    help="html: one page for all; md, csv and tex (LaTeX): a file for each experiment.",
)
@o.option("Output")("--json", "as_json", is_flag=True, help="Print the tables as one JSON object on standard output.")
def command(folder: Path, form: str, as_json: bool) -> None:
    """Write the report of a results folder into DIR/report, from its records; nothing is trained or measured.

    It is of experiments run by `bnvuln reproduce`; single runs are compared by `bnvuln compare`.
    """
    from bn_vuln.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    below = list(dict.fromkeys(path.parent.parent for path in sorted(folder.glob("*/experiments/*.yaml"))))
    if below and not list(folder.glob("experiments/*.yaml")):
        raise UsageError(f"{folder}: no experiment here, but in {', '.join(map(str, below))}: bnvuln report {below[0]}")
    from bn_vuln.records import open_store
    from bn_vuln.reporting import aggregate, exports, pages

    written = pages.write(folder, form)  # type: ignore[arg-type]
    if as_json:
        store = open_store(folder)
        results = [exports.to_json(aggregate.aggregate(experiment, store)) for experiment in store.experiments()]
        o.print_json({"files": [str(path) for path in written], "experiments": results})
        return
    for path in written:
        click.echo(str(path))
