"""`bnvuln reproduce` and `scale-input`: an experiment, beside what is claimed of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cloup
from cloup.constraints import If, accept_none

from bn_vuln.config import ALL_CELLS, Cell, ExperimentPart, Scale, Sweep, parse_number, validate
from bn_vuln.config.options import fields, given
from bn_vuln.evaluation.settings import EvaluateOptions

from . import options as o

EXAMPLES = """
  bnvuln reproduce --list
  bnvuln reproduce table6 --scale quick
  bnvuln reproduce table6 --set grid.data.width=[28,56] --dry-run
  bnvuln reproduce my_experiment.yaml --jobs 2
  bnvuln reproduce table2 --where arch.name=vgg8 --seeds 0-2   # a part
  bnvuln reproduce --plan gpu                                  # several parts
  bnvuln reproduce table2 --shard 3/8                          # in a job array
  bnvuln reproduce table2 --engine ray --ray-address auto
"""
WIDTH_EXAMPLES = """
  # a quick look: 10,000 training images, 500 test images, 1 seed
  bnvuln scale-input --width 56
  # a row of Table 7
  bnvuln scale-input --width 84 --weight-decay 0.01
  bnvuln scale-input --width 28 --scale full --jobs 2
"""
DRY_RUN = cloup.option("--dry-run", is_flag=True, help="Print the resolved config and its cells; run nothing.")
RUN_OPTIONS = cloup.option_group(
    "Run",
    cloup.option("--out", "root", type=o.OUTPUT_FOLDER, default="runs", show_default=True, help="Results folder."),
    fields(Sweep, "jobs"),
    cloup.option("--check", is_flag=True, help="Exit code 1 if a verdict fails."),
    fields(Sweep, "deterministic"),
    fields(EvaluateOptions, "strategy"),
)
ENGINE_OPTIONS = cloup.option_group(
    "Many cells",
    fields(Sweep, "engine", "shard", "ray_address", "cpus_per_cell", "gpus_per_cell"),
)


@o.command("reproduce", EXAMPLES)
@cloup.argument("name", required=False)
@cloup.option_group(
    "Experiment",
    cloup.option("--list", "listed", is_flag=True, help="List the experiments with claim, command, cost and state."),
    cloup.option("--plan", metavar="NAME", help="Run the parts of a plan (gpu, or a YAML file) one after another."),
    fields(ExperimentPart, "scale"),
    cloup.option(
        "--where", multiple=True, metavar="KEY=VALUE",
        help="Run the cells with this value alone, or with one of A,B, e.g. arch.name=vgg8; nothing else is changed.",
    ),
    cloup.option("--seeds", metavar="N-N,...", help="Run these seeds alone, e.g. 0-2 or 0,2."),
    o.set_option,
    DRY_RUN,
)  # fmt: skip
@cloup.constraint(If("plan", accept_none), ["name", "scale", "where", "seeds"])
@RUN_OPTIONS
@ENGINE_OPTIONS
@o.measuring_options
def reproduce(
    name: str | None, listed: bool, plan: str | None, scale: Scale | None, where: tuple[str, ...], seeds: str | None,
    overrides: tuple[str, ...], dry_run: bool, as_json: bool, root: Path, **options: Any,
) -> None:  # fmt: skip
    """Run the missing cells of an experiment, then print its table beside what is claimed.

    NAME is one of --list, or the path of a YAML file. The table has the measured value +- SEM (n seeds), the paper's,
    or what your file claims, their difference and the verdict; after a part (--where, --seeds) it has the numbers that
    there are. What is finished is kept: after an interruption run the command again.
    """
    from bn_vuln.experiments import catalog, listing, plans

    if listed:
        o.output(as_json, *listing.experiments(root))
    elif plan and dry_run:
        o.output(as_json, *listing.dry_run_of_plan(plan, overrides))
    elif plan:
        _run_plan(plan, overrides, as_json=as_json, root=root, **options)
    elif name is None:
        raise click.UsageError("name an experiment, or see them with --list")
    elif name in catalog.names("commands") and not overrides:
        raise click.UsageError(f"{name} needs an input width: use bnvuln scale-input --width N")
    else:
        part = plans.parse_part(name, scale or "full", where, seeds)
        experiment, todo = plans.resolve(part, overrides)
        sweep, whole = validate(Sweep, given(Sweep), "reproduce"), len(todo)
        todo = sweep.cells(todo)
        if not todo:
            raise click.UsageError(f"--shard {sweep.shard}: none of the {whole} cells is in it")
        if dry_run:
            o.output(as_json, *listing.dry_run(experiment, todo))
        else:
            if not options["quiet"]:
                o.log(listing.announcement(experiment, todo, root))
            _run(part, overrides, as_json=as_json, root=root, **options)
            if sweep.shard != ALL_CELLS.shard and not options["quiet"]:
                others = whole - len(todo)
                o.log(f"shard {sweep.shard}: {others} cells are of other shards; without --shard what is left is run")


@o.command("scale-input", WIDTH_EXAMPLES)
@cloup.option_group(
    "Experiment",
    cloup.option("--width", type=int, required=True, metavar="N", help="Side of the images, >= 28 (bilinear)."),
    fields(Cell, "weight_decay"),
    fields(ExperimentPart, "scale", scale="quick"),
    o.set_option,
    cloup.option("--estimate", "estimated", is_flag=True, help="Print how long it would take; run nothing."),
    DRY_RUN,
)
@RUN_OPTIONS
@ENGINE_OPTIONS
@o.measuring_options
def scale_input(
    width: int, weight_decay: str | None, scale: Scale | None, overrides: tuple[str, ...], estimated: bool,
    dry_run: bool, as_json: bool, root: Path, **options: Any,
) -> None:  # fmt: skip
    """Train and evaluate an MLP with and without batch norm on MNIST at one width, and print its row of Table 6.

    The hidden layers grow with the input (half its dimension each), noise is added before resizing, eps is in
    standardized units at every width. Prints first how long it will take. What is finished is kept.
    """
    from bn_vuln.experiments import cost_estimate, listing, plans, task

    decay = float(parse_number(weight_decay or 0))
    chosen = (f"grid.data.width=[{width}]", *([f"weight_decay={decay!r}"] if decay else []), *overrides)
    part = ExperimentPart(experiment="scale_input_l2" if decay else "scale_input", scale=scale or "quick")
    experiment, todo = plans.resolve(part, chosen)
    if dry_run:
        task.check_widths(todo)
        o.output(as_json, *listing.dry_run(experiment, todo))
        return
    seconds, text = cost_estimate.estimate(experiment, root)
    o.log(text)
    if not estimated:
        _run(part, chosen, as_json=as_json, root=root, **options)
    elif as_json:
        o.print_json({"seconds": round(seconds, 1)})


def _run(part: ExperimentPart, overrides: Sequence[str], *, as_json: bool, **options: Any) -> None:
    """Run a part of an experiment, print its tables and write its report."""
    from bn_vuln import api
    from bn_vuln.experiments import catalog
    from bn_vuln.experiments.runner import CellsFailedError
    from bn_vuln.reporting import aggregate, exports, pages

    how, failed = _how(**options), None
    try:
        results = api.reproduce(
            part.experiment, scale=part.scale, overrides=overrides, where=part.where, seeds=part.seeds or None, **how
        )
    except CellsFailedError as error:  # what there is of the others is shown all the same
        failed = error
        results = aggregate.aggregate(catalog.experiment(part.experiment, part.scale, overrides), how["root"])
    found = exports.to_json(results)
    o.output(as_json, {**found, "error": str(failed), "exit_code": 1} if failed else found, pages.text(results))
    pages.write_all(how["root"], results.experiment, how["progress"])
    if failed:
        o.log(f"Error: {failed}")
    _close(wrong=failed is not None or (options["check"] and results.any_fails), **options)


def _run_plan(name: str, overrides: Sequence[str], *, as_json: bool, **options: Any) -> None:
    """Do the same for each part of a plan, as soon as it is there; the exit code is 1 if one failed or none was run."""
    from bn_vuln import api
    from bn_vuln.reporting import aggregate, exports, pages

    how, parts, wrong = _how(**options), [], False
    for one in api.reproduce_plan(name, overrides=overrides, **how):
        parts.append(one.fields)
        if one.state != "finished" or one.experiment is None:
            o.log(f"{one.state}: {one.part.text}: {one.reason}")
            continue
        results = aggregate.aggregate(one.experiment, how["root"])
        parts[-1]["results"] = exports.to_json(results)
        if not as_json:
            o.echo(pages.text(results))
        pages.write_all(how["root"], one.experiment, how["progress"])
        wrong |= options["check"] and results.any_fails
    if as_json:
        o.print_json({"parts": parts})
    states = Counter(part["state"] for part in parts)
    o.log(", ".join(f"{count} {state}" for state, count in states.items()))
    _close(wrong=wrong or bool(states["failed"]) or not states["finished"], **options)


def _how(*, root: Path, quiet: bool, **_: Any) -> dict[str, Any]:
    """Return what the functions of `api` that run experiments share."""
    return {"root": root, "progress": o.progress(quiet), **given(Sweep), **given(EvaluateOptions)}


def _close(*, wrong: bool, root: Path, quiet: bool, **_: Any) -> None:
    """Name the next step; the exit code is 1 where something is wrong."""
    o.closing(root, f"bnvuln report {o.quote(root)}", quiet=quiet)
    if wrong:
        click.get_current_context().exit(1)
