"""`bnvuln reproduce`: an experiment, beside what is claimed of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import Experiment, Scale
    from bn_vuln.reporting.aggregate import Results
    from bn_vuln.reporting.pages import Format
    from bn_vuln.typing import Plain

EXAMPLES = """
Examples:

\b
  bnvuln reproduce --list
  bnvuln reproduce table6 --scale quick
  bnvuln reproduce table6 --set grid.data.width=[28,56] --set seeds=[0] \\
      --dry-run
  bnvuln reproduce my_experiment.yaml --jobs 2
"""


@click.command("reproduce", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("name", required=False)
@o.option("Experiment")("--list", "listing", is_flag=True, help="List the experiments with claim, cost and state.")
@o.scale_option("full")
@o.set_option
@o.dry_run_option
@o.run_options
@o.data_options
@o.strategy_option
@o.output_options
def command(
    name: str | None, listing: bool, scale: Scale, overrides: tuple[str, ...], dry_run: bool, verbose: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run the missing cells of an experiment, then print its table beside what is claimed.

    NAME is one of --list, or the path of a YAML file. The table has the measured value +- SEM (n seeds), the paper's,
    or what your file claims, their difference and the verdict. What is finished is kept: after an interruption run the
    command again.
    """
    o.set_up(verbose)
    if listing:
        _list(options["out"], options["as_json"])
        return
    if name is None:
        raise click.UsageError("name an experiment, or see them with --list")
    from bn_vuln.experiments import catalog

    if name in catalog.names("commands") and not overrides:
        raise click.UsageError(f"{name} needs an input width: use bnvuln scale-input --width N")
    experiment = catalog.experiment(name, scale, overrides)
    if dry_run:
        print_dry_run(experiment, options["as_json"])
        return
    o.log(_announcement(experiment, options["out"]))
    run_and_print(name, scale, overrides, options)


def _announcement(experiment: Experiment, out: Path) -> str:
    """Return a line on what is about to run, with the cost of the whole scale, to which --set makes no difference."""
    from bn_vuln.experiments import runner

    todo, cost = runner.tasks(experiment), experiment.cost.get(experiment.scale)
    if all(task.finished(out) for task in todo):
        text = "every cell is finished"
    elif cost:
        machine = "" if " on " in cost else " on two cores with --jobs 2"
        text = f"the whole of it takes about {cost}{machine}"
    else:
        text = f"{len(todo)} cells"
    return f"{experiment.name} at scale {experiment.scale}: {text}"


def run_and_print(name: str, scale: Scale, overrides: Sequence[str], options: o.Options) -> None:
    """Run an experiment, print its tables and write its report; with --check, exit with 1 for a verdict that fails."""
    from bn_vuln import api
    from bn_vuln.reporting import exports, pages

    out: Path = options["out"]
    results = api.reproduce(
        name,
        scale=scale,
        root=out,
        jobs=options["jobs"],
        strategy=options["strategy"],
        overrides=overrides,
        progress=o.progress(options["quiet"]),
    )
    o.print_json(exports.to_json(results)) if options["as_json"] else _print(results)
    forms: tuple[Format, ...] = ("md", "csv", "tex", "html")  # the page comes last, where it is seen
    for form in forms:
        for path in pages.write(out, form, results.experiment):
            o.log(f"report: {path}")
    o.closing(out, f"bnvuln report {o.quote(out)}", quiet=options["quiet"])
    if options["check"] and any(comparison.verdict_at_full_scale == "fails" for comparison in results.comparisons):
        click.get_current_context().exit(1)


def _print(results: Results) -> None:
    from bn_vuln.reporting import tables

    click.echo(f"{results.experiment.title}\nClaim: {results.experiment.claim}\n")
    for table in tables.result_tables(results):
        click.echo(f"{table.title}\n{tables.text_table(table)}\n")
    for note in results.experiment.notes:
        click.echo(f"Note: {note}\n")


def print_dry_run(experiment: Experiment, as_json: bool) -> None:
    """Print the resolved config and the cells of an experiment."""
    from bn_vuln import config
    from bn_vuln.experiments import runner

    todo = runner.tasks(experiment)
    if as_json:
        cells = [{"id": t.folder(Path()).name, **config.to_plain(t.cell)} for t in todo]
        o.print_json({"experiment": config.to_plain(experiment), "cells": cells})
        return
    click.echo(config.to_yaml(experiment))
    click.echo(f"{len(todo)} cells:")
    for task in todo:
        click.echo(f"  {task.folder(Path()).name}  {config.describe_cell(task.cell)}")


def _list(out: Path, as_json: bool) -> None:
    from bn_vuln.experiments import catalog

    rows = [_state(catalog.experiment(name), out) for kind in ("paper", "beyond") for name in catalog.names(kind)]
    if as_json:
        o.print_json({"experiments": rows})
        return
    for row in rows:
        cost = ", ".join(f"{scale} {text}" for scale, text in row["cost"].items())
        click.echo(f"{row['name']}\n  claim: {row['claim']}\n  cost on two cores with --jobs 2, unless named: {cost}")
        click.echo(f"  state in {out}: {row['state']}")


def _state(experiment: Experiment, out: Path) -> Plain:
    """Return claim, cost, and how many cells of each scale are finished in the results folder."""
    from bn_vuln.experiments import catalog, runner

    scales: list[Scale] = list(dict.fromkeys([*experiment.scales, "full"]))
    states = []
    for scale in scales:
        todo = runner.tasks(catalog.experiment(experiment.name, scale))
        states.append(f"{scale} {sum(task.finished(out) for task in todo)}/{len(todo)} cells")
    return {
        "name": experiment.name, "title": experiment.title, "claim": experiment.claim, "cost": dict(experiment.cost),
        "state": ", ".join(states),
    }  # fmt: skip
