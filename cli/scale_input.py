"""`bnvuln scale-input`: the pair of Table 6 (or 7) at one input width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options as o
from .reproduce import run_and_show, show_dry_run

what, result = o.option("What"), o.option("Result")

EXAMPLES = """
Examples:

\b
  bnvuln scale-input --width 56                      # a quick look: 10,000 training images, 500 test images, 1 seed
  bnvuln scale-input --width 84 --weight-decay 0.01  # a row of Table 7
  bnvuln scale-input --width 28 --scale full --jobs 2
"""


@click.command("scale-input", cls=o.GroupedCommand, epilog=EXAMPLES)
@what("--width", type=int, required=True, help="Width of the images in pixels, >= 28 (bilinear).")
@what("--weight-decay", type=o.NUMBER, help="lambda of both arms, as in Table 7: a penalty lambda/2 ||w||^2.")
@o.scale_option("quick")
@what("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any field of the config, e.g. train.epochs=3.")
@what("--estimate", is_flag=True, help="Say how long it would take, run nothing.")
@what("--dry-run", is_flag=True, help="Print the resolved config and the cells, run nothing.")
@o.experiment_options
@o.strategy_option
@o.data_options
@o.output_options
def command(
    width: int, weight_decay: float | None, scale: Any, overrides: tuple[str, ...], estimate: bool, dry_run: bool,
    verbose: bool, **given: Any,
) -> None:  # fmt: skip
    """Train and evaluate an MLP with and without batch norm on MNIST at one width, and print its row of Table 6.

    The hidden layers grow with the input (half its dimension each), noise is added before resizing, eps is in
    standardized units at every width. Says first how long it will take; what is finished is kept.
    """
    o.set_up(verbose)
    if weight_decay is not None and not weight_decay > 0:
        raise click.BadParameter(f"expected a number > 0, received {weight_decay:g}", param_hint="--weight-decay")
    from bn_vuln.experiments import catalog

    name = "scale_input" if weight_decay is None else "scale_input_l2"
    chosen = [f"grid.data.width=[{width}]", *([] if weight_decay is None else [f"weight_decay={weight_decay!r}"])]
    experiment = catalog.experiment(name, scale, [*chosen, *overrides])
    if dry_run:
        show_dry_run(experiment, given["as_json"])
        return
    seconds = _say_how_long(experiment, given["out"])
    if estimate:
        if given["as_json"]:
            o.print_json({"seconds": round(seconds, 1)})
        return
    run_and_show(experiment, **given)


def _say_how_long(experiment: Any, out: Path) -> float:
    """The estimated seconds of the cells that are not finished."""
    from bn_vuln.experiments import cost_estimate, runner
    from bn_vuln.runtime.progress import duration

    todo = runner.tasks(experiment)
    left = [task for task in todo if not task.finished(out)]
    runner.check_data(left)
    cost_estimate.check_memory(left)
    seconds = cost_estimate.seconds_of(left)
    o.say(
        f"{experiment.name} at scale {experiment.scale}: {len(left)} of {len(todo)} trainings and evaluations to do"
        + (f", about {duration(seconds)} on this machine" if left else "")
    )
    return seconds
