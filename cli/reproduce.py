"""`bnvuln reproduce`: an experiment, beside the paper's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options as o

what = o.option("What")

EXAMPLES = """
Examples:

\b
  bnvuln reproduce --list
  bnvuln reproduce table6 --scale quick
  bnvuln reproduce table6 --set grid.data.width=[28,56] --set seeds=[0] --dry-run
  bnvuln reproduce my_experiment.yaml --jobs 2
"""


@click.command("reproduce", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("name", required=False)
@what("--list", "listing", is_flag=True, help="Every experiment with its claim, cost and state.")
@o.scale_option("full")
@what("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any field of the config, e.g. train.epochs=3.")
@what("--dry-run", is_flag=True, help="Print the resolved config and the cells, run nothing.")
@o.experiment_options
@o.strategy_option
@o.data_options
@o.output_options
def command(
    name: str | None, listing: bool, scale: Any, overrides: tuple[str, ...], dry_run: bool, verbose: bool, **given: Any
) -> None:
    """Run the missing cells of an experiment, then print ours +- SEM (n), the paper's, the difference, the verdict.

    NAME is one of --list, or the path of a YAML file. What is finished is kept: run the command again after an
    interruption and it goes on.
    """
    o.set_up(verbose)
    if listing:
        _list(given["out"], given["as_json"])
        return
    if name is None:
        raise click.UsageError("name an experiment, or see them with --list")
    from bn_vuln.experiments import catalog

    experiment = catalog.experiment(name, scale, overrides)
    if dry_run:
        show_dry_run(experiment, given["as_json"])
        return
    o.say(_announcement(experiment, given["out"]))
    run_and_show(experiment, **given)


def _announcement(experiment: Any, out: Path) -> str:
    """What is about to run, with the cost of the whole scale, which --set does not know of."""
    from bn_vuln.experiments import runner

    todo, cost = runner.tasks(experiment), experiment.cost.get(experiment.scale)
    if all(task.finished(out) for task in todo):
        said = "every cell is finished"
    elif cost:
        said = f"the whole of it takes about {cost} on two cores with --jobs 2"
    else:
        said = f"{len(todo)} cells"
    return f"{experiment.name} at scale {experiment.scale}: {said}"


def run_and_show(
    experiment: Any, *, out: Path, jobs: int, strategy: Any, check: bool, as_json: bool, quiet: bool
) -> None:
    """Run what is missing of an experiment, print its tables, write its report; with `check`, exit 1 for a verdict
    that fails."""
    results = _run(experiment, out, jobs, strategy, quiet)
    if as_json:
        from bn_vuln.reporting.tables import to_json

        o.print_json(to_json(results))
    else:
        _print(results)
    for path in _write_report(out, experiment):
        o.say(f"report: {path}")
    if check and any(c.unscaled == "fails" for c in results.comparisons):
        click.get_current_context().exit(1)


def _run(experiment: Any, out: Path, jobs: int, strategy: Any, quiet: bool) -> Any:
    from bn_vuln.experiments import runner
    from bn_vuln.reporting import aggregate

    runner.run(experiment, out, jobs=jobs, strategy=strategy, progress=o.progress(quiet))
    return aggregate.aggregate(experiment, out)


def _write_report(out: Path, experiment: Any) -> list[Path]:
    from bn_vuln.reporting import pages

    forms: tuple[pages.Format, ...] = ("md", "csv", "tex", "html")  # the page comes last, where it is seen
    return [path for form in forms for path in pages.write(out, form, experiment)]


def _print(results: Any) -> None:
    from bn_vuln.reporting import tables

    click.echo(f"{results.experiment.title}\nClaim: {results.experiment.claim}\n")
    for table in tables.tables(results):
        click.echo(f"{table.title}\n{tables.markdown_table(table)}\n")
    for note in results.experiment.notes:
        click.echo(f"Note: {note}\n")


def show_dry_run(experiment: Any, as_json: bool) -> None:
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
        click.echo(f"{row['name']}\n  claim: {row['claim']}\n  cost on two cores with --jobs 2: {cost}")
        click.echo(f"  state in {out}: {row['state']}")


def _state(experiment: Any, out: Path) -> dict[str, Any]:
    """Claim, cost, and how many cells of each scale are finished in the results folder."""
    from bn_vuln.experiments import catalog, runner

    states = []
    for scale in dict.fromkeys([*experiment.scales, "full"]):
        todo = runner.tasks(catalog.experiment(experiment.name, scale))
        states.append(f"{scale} {sum(task.finished(out) for task in todo)}/{len(todo)} cells")
    return {
        "name": experiment.name, "title": experiment.title, "claim": experiment.claim, "cost": dict(experiment.cost),
        "state": ", ".join(states),
    }  # fmt: skip
