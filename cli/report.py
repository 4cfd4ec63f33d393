"""`bnvuln report`: tables and figures from existing records."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as o

EXAMPLES = """
Examples:

\b
  bnvuln report runs
  bnvuln report runs/ID                     # one model with its records
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
@o.json_option
@o.quiet_option
def command(folder: Path, form: str, as_json: bool, quiet: bool) -> None:
    """Write the report of a results folder into DIR/report, from its records; nothing is trained or measured.

    It is of experiments run by `bnvuln reproduce`. Where there are none, it is of the runs and external models in DIR,
    or of the one that DIR is.
    """
    from bn_vuln.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder}: {'expected a folder, received a file' if folder.exists() else 'no such folder'}")
    from bn_vuln.records import is_run_folder, open_store
    from bn_vuln.reporting import aggregate, exports, models, pages

    below = list(dict.fromkeys(path.parent.parent for path in sorted(folder.glob("*/experiments/*.yaml"))))
    if below and not pages.has_experiments(folder) and not models.read(folder):
        raise UsageError(f"{folder}: no experiment here, but in {', '.join(map(str, below))}: bnvuln report {below[0]}")
    written = pages.write(folder, form, progress=o.progress(quiet))  # type: ignore[arg-type]
    if as_json:
        plain = {"files": [str(path) for path in written], "experiments": []}
        if pages.has_experiments(folder):
            store = open_store(folder)
            results = [aggregate.aggregate(experiment, store) for experiment in store.experiments()]
            o.print_json({**plain, "experiments": [exports.to_json(one) for one in results]})
        else:
            o.print_json({**plain, "models": [models.entry_fields(one) for one in models.read(folder)]})
    else:
        for path in written:
            click.echo(str(path))
    one = is_run_folder(folder)
    o.closing(folder, f"bnvuln {'show' if one else 'list'} {o.quote(folder)}", quiet=quiet)
