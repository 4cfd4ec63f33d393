"""`bnvuln scale-input`: the pair of Table 6 (or 7) at one input width."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o
from .reproduce import print_dry_run, run_and_print

if TYPE_CHECKING:
    from bn_vuln.config import Experiment, Scale

EXAMPLES = """
Examples:

\b
  # a quick look: 10,000 training images, 500 test images, 1 seed
  bnvuln scale-input --width 56
  # a row of Table 7
  bnvuln scale-input --width 84 --weight-decay 0.01
  bnvuln scale-input --width 28 --scale full --jobs 2
"""
_option = o.option("Experiment")


@click.command("scale-input", cls=o.GroupedCommand, epilog=EXAMPLES)
@_option("--width", type=int, required=True, metavar="N", help="Width of the images in pixels, >= 28 (bilinear).")
@_option("--weight-decay", type=o.NUMBER, help="lambda of both arms, as in Table 7: a penalty lambda/2 ||w||^2.")
@o.scale_option("quick")
@o.set_option
@_option("--estimate", is_flag=True, help="Print how long it would take; run nothing.")
@o.dry_run_option
@o.run_options
@o.data_options
@o.strategy_option
@o.output_options
def command(
    width: int, weight_decay: float | None, scale: Scale, overrides: tuple[str, ...], estimate: bool, dry_run: bool,
    verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Train and evaluate an MLP with and without batch norm on MNIST at one width, and print its row of Table 6.

    The hidden layers grow with the input (half its dimension each), noise is added before resizing, eps is in
    standardized units at every width. Prints first how long it will take. What is finished is kept.
    """
    o.set_up(verbose)
    if weight_decay is not None and not weight_decay > 0:
        raise click.BadParameter(f"expected a number > 0, received {weight_decay:g}", param_hint="--weight-decay")
    from bn_vuln.experiments import catalog, runner

    name = "scale_input" if weight_decay is None else "scale_input_l2"
    chosen = [f"grid.data.width=[{width}]", *([] if weight_decay is None else [f"weight_decay={weight_decay!r}"])]
    experiment = catalog.experiment(name, scale, [*chosen, *overrides])
    if dry_run:
        todo = runner.tasks(experiment)
        runner.check_widths(todo)
        print_dry_run(experiment, todo, options["as_json"])
        return
    seconds = _log_estimate(experiment, options["out"])
    if not estimate:
        run_and_print(name, scale, experiment.overrides, options)
    elif options["as_json"]:
        o.print_json({"seconds": round(seconds, 1)})


def _log_estimate(experiment: Experiment, out: Path) -> float:
    """Print how long the cells that are not finished will take; return the seconds."""
    from bn_vuln.experiments import cost_estimate, runner
    from bn_vuln.runtime.progress import duration

    todo = runner.tasks(experiment)
    unfinished = [task for task in todo if not task.finished(out)]
    runner.check_data(unfinished)
    cost_estimate.check_memory(unfinished)
    seconds = cost_estimate.seconds_of(unfinished)
    o.log(
        f"{experiment.name} at scale {experiment.scale}: {len(unfinished)} of {len(todo)} trainings and evaluations "
        "to do" + (f", about {duration(seconds)} on this machine" if unfinished else "")
    )
    return seconds
