"""`bnvuln unpack`: a packed store as a working folder."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as o

EXAMPLES = """
Examples:

\b
  bnvuln unpack results/paper runs
  bnvuln unpack results/paper runs && bnvuln reproduce table6
"""


@click.command("unpack", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("store", type=o.FOLDER, metavar="STORE")
@click.argument("folder", type=o.OUTPUT_FOLDER, metavar="DIR")
@o.json_option
@o.quiet_option
def command(store: Path, folder: Path, as_json: bool, quiet: bool) -> None:
    """Write a packed store as a working folder, from which `bnvuln reproduce` goes on.

    What is in DIR already stays. A cell whose model was not published is trained again when something new is to be
    measured on it.
    """
    from bn_vuln import api

    before = _files(folder)
    folders = api.unpack(store, folder, progress=o.progress(quiet=False))
    if as_json:
        o.print_json({"store": str(store), "runs": [str(path) for path in folders]})
    else:
        click.echo(_summary(folder, folders, before))
    o.closing(folder, f"bnvuln list {o.quote(folder)}", quiet=quiet)


def _summary(folder: Path, folders: list[Path], before: dict[Path, set[Path]]) -> str:
    """Say how many runs were added."""
    after = _files(folder)
    added = sum(run not in before for run in folders)
    unchanged = sum(before.get(run) == after[run] for run in folders)
    completed = len(folders) - added - unchanged
    return f"{folder}: added {added} runs, unchanged {unchanged}" + (f", completed {completed}" if completed else "")


def _files(folder: Path) -> dict[Path, set[Path]]:
    """Return the files of each run folder."""
    return {run: set(run.rglob("*")) for run in folder.iterdir()} if folder.is_dir() else {}
