"""`bnvuln status`, `list`, `show`, `compare`, `report`, `publish` and `unpack`: what is in results folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from bn_vuln.config import ExperimentPart, Scale
from bn_vuln.config.options import fields

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.reporting.pages import Format

WATCH_SECONDS, IDLE_SECONDS = 2.0, 60.0  # between two looks; without anything that runs, until watching ends
STATUS = """
  bnvuln status                 # of runs/
  bnvuln status runs --watch    # until nothing runs or waits
  bnvuln status runs --json
"""
_WATCH = "Show it again every few seconds, until nothing waits, or nothing has run for a minute."
LIST = """
  bnvuln list                       # runs and external models in runs/
  bnvuln list results/paper         # a packed store
  bnvuln list --json
"""
SHOW = """
  bnvuln show runs/ID
  bnvuln show 3fa9                          # the beginning of an id in runs/
  bnvuln show model.keras                   # a model that was measured
  bnvuln show results/paper/dd15bd2a8efa    # a cell of a packed store
  bnvuln show runs/ID --json
"""
COMPARE = """
  bnvuln compare runs/no-bn runs/bn
  bnvuln compare a.keras b.keras            # both were measured
  bnvuln compare 3fa9 model.keras --json    # an id in runs/
  bnvuln compare results/paper/df28a7b8f872 results/paper/dd15bd2a8efa
"""
REPORT = """
  bnvuln report runs
  bnvuln report runs/ID                     # one model with its records
  bnvuln report results/paper --format md
"""
PUBLISH = """
  bnvuln publish table6 table6_matched --to results/paper
  bnvuln publish figure2 --scale cpu --to results/paper
  bnvuln publish my_experiment.yaml --from runs --to results/mine --models 0
"""
UNPACK = """
  bnvuln unpack results/paper runs
  bnvuln unpack results/paper runs && bnvuln reproduce table6
"""


VERIFY = """
  bnvuln verify runs
  bnvuln verify runs --repair && bnvuln reproduce table6
  bnvuln verify results/paper
  bnvuln verify runs/ID --json
"""


@o.command("status", STATUS)
@cloup.argument("folder", type=o.FOLDER, metavar="[DIR]", default="runs")
@cloup.option(
    "--watch",
    is_flag=True,
    help="Show it again every few seconds, until nothing runs or waits, or for a minute nothing has run.",
)
@o.json_option
def status(folder: Path, watch: bool, as_json: bool) -> None:
    """Show how far a results folder is: finished, running, failed and waiting cells.

    It reads files alone, so it can be asked from any terminal or host that sees the folder. DIR is runs, if it is not
    given. Running cells have what is done, the time left and their process; failed ones their reason and log.
    """
    from bn_vuln import api
    from bn_vuln.experiments.status import is_over, text

    if as_json and watch:
        raise click.UsageError("--watch and --json: use one of them")
    found = api.status(folder)
    if not watch:
        o.output(as_json, found, text(found))
        return
    with o.live() as show:
        show(text(found))
        worked = time.monotonic()
        while not is_over(found) and time.monotonic() - worked < IDLE_SECONDS:
            time.sleep(WATCH_SECONDS)
            show(text(found := api.status(folder)))
            worked = time.monotonic() if found["running"] else worked


@o.command("list", LIST)
@cloup.argument("folder", type=o.FOLDER, metavar="[DIR]", default="runs")
@o.output_options
def list_(folder: Path, as_json: bool, quiet: bool) -> None:
    """List the runs and external models in a results folder, the newest first.

    Each has its name, id, data set, state, clean accuracy and number of records. DIR is runs, if it is not given.
    """
    from bn_vuln.reporting import models

    data, text = models.listed(folder)
    o.output(as_json, data, text)
    if data["models"]:
        o.closing(folder, f"bnvuln show {o.quote(data['models'][0]['folder'])}", quiet=quiet)


@o.command("show", SHOW)
@cloup.argument("target", metavar="RUN")
@o.runs_option
@o.output_options
def show(target: str, runs: Path, as_json: bool, quiet: bool) -> None:
    """Show a run or an external model: how it was made, every record with its flags, every measurement.

    RUN is a run folder, the beginning of an id, the file of an external model, or STORE/CELL of a packed store.
    """
    from bn_vuln import records
    from bn_vuln.reporting import models

    found = records.entry(*records.find(target, runs))
    o.output(as_json, models.entry_fields(found), models.text(found))
    o.closing(found.folder, *models.next_steps(found), quiet=quiet)


@o.command("compare", COMPARE)
@cloup.argument("first", metavar="MODEL")
@cloup.argument("second", metavar="MODEL")
@o.runs_option
@o.output_options
def compare(first: str, second: str, runs: Path, as_json: bool, quiet: bool) -> None:
    """Paired differences, second - first, for every perturbation measured on both.

    A MODEL is a run folder, the beginning of an id, the file of an external model that was measured, or STORE/CELL of
    a packed store. The uncertainty is over test examples: one pair of runs says nothing about other seeds (`bnvuln
    reproduce` runs several).
    """
    from bn_vuln.reporting import paired

    one, other, pairs = paired.pair(first, second, runs)
    for problem in (*one.problems, *other.problems):
        o.log(problem)
    o.output(as_json, paired.to_json(one, other, pairs), paired.text(one, other, pairs))
    o.closing(one.folder, *(f"bnvuln show {o.quote(model.folder)}" for model in (one, other)), quiet=quiet)


@o.command("report", REPORT)
@cloup.argument("folder", type=o.EXISTING_FOLDER, metavar="DIR")
@cloup.option(
    "--format", "form", type=click.Choice(["html", "md", "csv", "tex"]), default="html", show_default=True,
    help="html: one page for all; md, csv and tex (LaTeX): a file for each experiment.",
)  # fmt: skip
@o.output_options
def report(folder: Path, form: Format, as_json: bool, quiet: bool) -> None:
    """Write the report of a results folder into DIR/report, from its records; nothing is trained or measured.

    It is of experiments run by `bnvuln reproduce`. Where there are none, it is of the runs and external models in DIR,
    or of the one that DIR is.
    """
    from bn_vuln.records import is_run_folder
    from bn_vuln.reporting import pages

    files = [str(path) for path in pages.write(folder, form, progress=o.progress(quiet))]
    o.print_json({"files": files, **pages.to_json(folder)}) if as_json else o.echo("\n".join(files))
    o.closing(folder, f"bnvuln {'show' if is_run_folder(folder) else 'list'} {o.quote(folder)}", quiet=quiet)


@o.command("publish", PUBLISH)
@cloup.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@cloup.option("--to", type=o.OUTPUT_FOLDER, required=True, help="Packed store; what is in it already stays.")
@cloup.option("--from", "source", type=o.FOLDER, default="runs", show_default=True, help="Working folder.")
@fields(ExperimentPart, "scale")
@cloup.option("--models", type=int, metavar="SEED", help="Publish the models of this seed as well.")
@o.output_options
def publish(
    experiments: tuple[str, ...], to: Path, source: Path, scale: Scale | None, models: int | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Add the finished cells of experiments to a packed store (JSON lines: one per model and one per record).

    `bnvuln report` and `bnvuln compare` read a packed store as it is; `bnvuln unpack` makes a working folder of it.
    """
    from bn_vuln import api

    progress = o.progress(quiet=False)
    published = api.publish(experiments, to, source=source, scale=scale or "full", models=models, progress=progress)
    plain = [{"name": one.experiment.name, "published": one.published, "cells": one.cells} for one in published]
    text = "\n".join(f"published {one.text} to {to}" for one in published)
    o.output(as_json, {"to": str(to), "experiments": plain}, text)
    o.closing(to, f"bnvuln report {o.quote(to)}", quiet=quiet)


@o.command("unpack", UNPACK)
@cloup.argument("store", type=o.FOLDER, metavar="STORE")
@cloup.argument("folder", type=o.OUTPUT_FOLDER, metavar="DIR")
@o.output_options
def unpack(store: Path, folder: Path, as_json: bool, quiet: bool) -> None:
    """Write a packed store as a working folder, from which `bnvuln reproduce` goes on.

    What is in DIR already stays. A cell whose model was not published is trained again when something new is to be
    measured on it.
    """
    from bn_vuln import api, records

    before = records.contents(folder)
    runs = api.unpack(store, folder, progress=o.progress(quiet=False))
    text = f"{folder}: {records.describe_unpacked(runs, before, records.contents(folder))}"
    o.output(as_json, {"store": str(store), "runs": [str(path) for path in runs]}, text)
    o.closing(folder, f"bnvuln list {o.quote(folder)}", quiet=quiet)


@o.command("verify", VERIFY)
@cloup.argument("folder", type=o.EXISTING_FOLDER, metavar="DIR")
@cloup.option("--repair", is_flag=True, help="Rename what is damaged to NAME.damaged; remove what is left over.")
@o.output_options
@click.pass_context
def verify(context: click.Context, folder: Path, repair: bool, as_json: bool, quiet: bool) -> None:
    """Check every file in DIR: a results folder, a run folder, a packed store, an audit, or a folder of these.

    Each is compared with its sha256; of older files, which have none, numbers and ids are checked. Exit code 1:
    something is wrong, and not repaired.
    """
    from bn_vuln import api
    from bn_vuln.runtime import lease

    found = api.verify(folder, repair=repair, progress=o.progress(quiet))
    problems = [
        {"path": str(one.path), "reason": one.reason, "remedy": one.remedy, "repaired": one.repaired}
        for one in found.problems
    ]
    data = {"folder": str(folder), "files": found.files, "problems": problems, "commands": found.commands}
    data |= {"unknown": [str(path) for path in found.unknown], "busy": [str(path) for path in found.busy]}
    lines = [one.text for one in found.problems]
    lines += [f"{path}: not checked, because of {lease.describe(path)}" for path in found.busy]
    lines += [f"{path}: of a name that bnvuln does not write; left alone" for path in found.unknown]
    o.output(as_json, data, "\n".join([*lines, f"{folder}: {found.summary}"]))
    if not quiet:
        first = [] if found.is_whole or repair else [f"bnvuln verify {o.quote(folder)} --repair"]
        for command in (*first, *found.commands):
            o.log(f"next: {command}")
    context.exit(0 if found.is_whole else 1)
