"""`bnvuln reproduce`: an experiment, beside what is claimed of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import Experiment, Scale
    from bn_vuln.experiments.runner import Task
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
  bnvuln reproduce table2 --where arch.name=vgg8 --seeds 0-2   # a part
  bnvuln reproduce --plan gpu                                  # several parts
"""
_experiment = o.option("Experiment")


@click.command("reproduce", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("name", required=False)
@_experiment("--list", "listing", is_flag=True, help="List the experiments with claim, command, cost and state.")
@o.scale_option("full")
@o.set_option
@_experiment(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Run the cells with this value alone, or with one of A,B, e.g. arch.name=vgg8; nothing else is changed.",
)
@_experiment("--seeds", type=o.SEEDS, help="Run these seeds alone, e.g. 0-2 or 0,2.")
@_experiment(
    "--plan",
    metavar="NAME",
    help=f"Run parts of experiments one after another: {', '.join(o.shipped('plans'))}, or a YAML file.",
)
@o.dry_run_option
@o.run_options
@o.data_options
@o.strategy_option
@o.output_options
def command(
    name: str | None, listing: bool, scale: Scale, overrides: tuple[str, ...], where: tuple[str, ...],
    seeds: tuple[int, ...] | None, plan: str | None, dry_run: bool, verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Run the missing cells of an experiment, then print its table beside what is claimed.

    NAME is one of --list, or the path of a YAML file. The table has the measured value +- SEM (n seeds), the paper's,
    or what your file claims, their difference and the verdict; after a part (--where, --seeds) it has the numbers that
    there are. What is finished is kept: after an interruption run the command again.
    """
    o.set_up(verbose)
    if listing:
        _list(options["out"], options["as_json"])
        return
    if plan is not None:
        if name is not None or where or seeds or o.is_given("scale"):
            raise click.UsageError("--plan has experiments, scales and parts of its own: give it without them")
        if dry_run:
            _print_plan(plan, overrides, options["as_json"])
        else:
            _run_plan(plan, overrides, options)
        return
    if name is None:
        raise click.UsageError("name an experiment, or see them with --list")
    from bn_vuln.experiments import catalog, runner

    if name in catalog.names("commands") and not overrides:
        raise click.UsageError(f"{name} needs an input width: use bnvuln scale-input --width N")
    experiment, part = catalog.experiment(name, scale, overrides), _part(where)
    todo = runner.tasks(experiment, part | ({"seed": list(seeds)} if seeds else {}))
    if dry_run:
        print_dry_run(experiment, todo, options["as_json"])
        return
    o.log(_announcement(experiment, todo, options["out"]))
    run_and_print(name, scale, overrides, options, part, seeds)


def _part(where: Sequence[str]) -> Plain:
    """Parse --where: `arch.name=vgg8,vgg11` to {"arch.name": ["vgg8", "vgg11"]}."""
    from bn_vuln import config

    part: Plain = {}
    for text in where:
        key, value = config.parse_assignment(text, "--where")
        if key in part:
            raise click.UsageError(f"--where {text}: {key} is there twice; join its values by commas: {key}=A,B")
        pieces = value.split(",") if isinstance(value, str) else []
        part[key] = [config.parse_assignment(f"{key}={piece}", "--where")[1] for piece in pieces] or value
    return part


def _announcement(experiment: Experiment, todo: Sequence[Task], out: Path) -> str:
    """Return a line on what is about to run, with the cost of the whole scale, to which --set makes no difference."""
    from bn_vuln.experiments import runner

    cost, whole = experiment.cost.get(experiment.scale), len(runner.tasks(experiment))
    if all(task.finished(out) for task in todo):
        text = "every cell is finished"
    elif len(todo) < whole:
        text = f"{len(todo)} of {whole} cells"
    elif cost:
        machine = "" if " on " in cost else " on two cores with --jobs 2"
        text = f"the whole of it takes about {cost}{machine}"
    else:
        text = f"{len(todo)} cells"
    return f"{experiment.name} at scale {experiment.scale}: {text}"


def run_and_print(
    name: str,
    scale: Scale,
    overrides: Sequence[str],
    options: o.Options,
    where: Plain | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Run an experiment, print its tables and write its report; with --check, exit with 1 for a verdict that fails."""
    from bn_vuln import api
    from bn_vuln.reporting import exports

    out: Path = options["out"]
    results = api.reproduce(
        name,
        scale=scale,
        root=out,
        jobs=options["jobs"],
        strategy=options["strategy"],
        overrides=overrides,
        where=where,
        seeds=seeds,
        progress=o.progress(options["quiet"]),
    )
    o.print_json(exports.to_json(results)) if options["as_json"] else _print(results)
    _write_report(results, out)
    o.closing(out, f"bnvuln report {o.quote(out)}", quiet=options["quiet"])
    if options["check"] and _fails(results):
        click.get_current_context().exit(1)


def _write_report(results: Results, out: Path) -> None:
    from bn_vuln.reporting import pages

    forms: tuple[Format, ...] = ("md", "csv", "tex", "html")  # the page comes last, where it is seen
    for form in forms:
        for path in pages.write(out, form, results.experiment):
            o.log(f"report: {path}")


def _fails(results: Results) -> bool:
    return any(comparison.verdict_at_full_scale == "fails" for comparison in results.comparisons)


def _run_plan(name: str, overrides: Sequence[str], options: o.Options) -> None:
    """Run a plan; print and write the report of each part as soon as it is there.

    The exit code is 1 where a part has failed, none was run or, with --check, a verdict fails.
    """
    from bn_vuln import api, config
    from bn_vuln.reporting import aggregate, exports

    out: Path = options["out"]
    parts, states, wrong = [], [], False
    for one in api.reproduce_plan(
        name, root=out, jobs=options["jobs"], strategy=options["strategy"], overrides=overrides,
        progress=o.progress(options["quiet"]),
    ):  # fmt: skip
        states.append(one.state)
        parts.append({**config.to_plain(one.part), "state": one.state, "reason": one.reason})
        if one.state != "finished" or one.experiment is None:
            o.log(f"{one.state}: {one.part.text}: {one.reason}")
            continue
        results = aggregate.aggregate(one.experiment, out)
        wrong = wrong or (options["check"] and _fails(results))
        parts[-1]["results"] = exports.to_json(results)
        if not options["as_json"]:
            _print(results)
        _write_report(results, out)
    if options["as_json"]:
        o.print_json({"parts": parts})
    o.log(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    o.closing(out, f"bnvuln report {o.quote(out)}", quiet=options["quiet"])
    if wrong or "failed" in states or "finished" not in states:
        click.get_current_context().exit(1)


def _print_plan(name: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print the parts of a plan, with their cells."""
    from bn_vuln import config
    from bn_vuln.experiments import catalog, plans

    parts = [(part, plans.resolve(part, overrides)[1]) for part in catalog.plan(name).parts]
    if as_json:
        plain = [{**config.to_plain(part), "cells": [t.folder(Path()).name for t in todo]} for part, todo in parts]
        o.print_json({"parts": plain})
    for part, todo in () if as_json else parts:
        click.echo(f"{part.text}: {len(todo)} cells")
        _print_cells(todo)


def _print(results: Results) -> None:
    from bn_vuln.reporting import tables

    click.echo(f"{results.experiment.title}\nClaim: {results.experiment.claim}\n")
    for table in tables.result_tables(results):
        click.echo(f"{table.title}\n{tables.text_table(table)}\n")
    for note in results.experiment.notes:
        click.echo(f"Note: {note}\n")


def print_dry_run(experiment: Experiment, todo: Sequence[Task], as_json: bool) -> None:
    """Print the resolved config of an experiment, and the cells that would be run."""
    from bn_vuln import config

    if as_json:
        cells = [{"id": t.folder(Path()).name, **config.to_plain(t.cell)} for t in todo]
        o.print_json({"experiment": config.to_plain(experiment), "cells": cells})
        return
    click.echo(config.to_yaml(experiment))
    click.echo(f"{len(todo)} cells:")
    _print_cells(todo)


def _print_cells(todo: Sequence[Task]) -> None:
    from bn_vuln import config

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
        click.echo(f"{row['name']}\n  claim: {row['claim']}\n  command: {row['command']}")
        click.echo(f"  cost on two cores with --jobs 2, unless named: {cost}")
        click.echo(f"  state in {out}: {row['state']}")


def _state(experiment: Experiment, out: Path) -> Plain:
    """Return claim, command, cost, and how many cells of each scale are finished in the results folder."""
    from bn_vuln.experiments import catalog, runner

    scales: list[Scale] = list(dict.fromkeys([*experiment.scales, "full"]))
    states = []
    for scale in scales:
        todo = runner.tasks(catalog.experiment(experiment.name, scale))
        states.append(f"{scale} {sum(task.finished(out) for task in todo)}/{len(todo)} cells")
    return {
        "name": experiment.name, "title": experiment.title, "claim": experiment.claim, "command": experiment.command,
        "cost": dict(experiment.cost),
        "state": ", ".join(states),
    }  # fmt: skip
