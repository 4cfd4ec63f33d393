"""`bnvuln evaluate`: a suite of perturbations on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options as o

what, result = o.option("What"), o.option("Result")

EXAMPLES = """
Examples:

\b
  bnvuln evaluate --suite quick                      # the newest run
  bnvuln evaluate runs/ID --suite paper
  bnvuln evaluate runs/ID --suite mechanism          # why: tilting angle, energy in directions of low variance
  bnvuln evaluate runs/ID --split validation         # a look that leaves the test set alone
  bnvuln evaluate model.keras --data mnist --from-probabilities --json
"""


@click.command("evaluate", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("target", required=False, type=click.Path(path_type=Path), metavar="[RUN or MODEL.keras]")
@what(
    "--suite",
    default="quick",
    show_default=True,
    metavar="NAME",
    help=f"{', '.join(o.shipped('suites'))}, or a YAML file of perturbations and measurements. mechanism is the angle "
    "and the spectrum.",
)
@what(
    "--data",
    "dataset",
    metavar="NAME",
    help="Data set by name, FILE.npz or folder:PATH.  [default: the one trained on; mnist for a foreign model]",
)
@what("--split", type=click.Choice(["test", "validation", "train"]), help="Whose examples.  [default: the suite's]")
@what("--limit", type=int, help="Evaluate N examples of a fixed random order.  [default: the suite's]")
@what(
    "--bn-statistics",
    type=click.Choice(["tracked", "reestimated", "batch"]),
    help="BN's statistics: tracked in training, the mean over a pass through the training examples, or those of the "
    "batch under evaluation.  [default: the suite's]",
)
@what("--input-scale", type=click.Choice(["0-1", "0-255"]), help="Pixels a foreign model expects.  [default: 0-1]")
@what("--from-probabilities", is_flag=True, help="A foreign model ends in a softmax.")
@result(
    "--runs",
    type=o.FOLDER,
    default="runs",
    show_default=True,
    help="Where the newest run is looked for, and a foreign model's records go.",
)
@o.checks_option
@o.strategy_option
@o.batch_option
@o.data_options
@o.output_options
def command(
    target: Path | None, suite: str, runs: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Measure a run, or any .keras classifier, under a suite of perturbations; without a target, the newest run."""
    o.set_up(verbose)
    from bn_vuln import api
    from bn_vuln.experiments import catalog

    where = {key: given[key] for key in ("dataset", "split", "limit", "bn_statistics")}
    evaluation, _ = api.resolve_suite(suite, **where)  # before TensorFlow is started, so that a mistake is said at once
    target, classifier = o.open_target(target, runs, given)
    from bn_vuln.evaluation.measurements import run  # TensorFlow

    run.check(classifier, catalog.suite(suite).measurements, evaluation)
    folder = target if target.is_dir() else runs / classifier.id
    how: dict[str, Any] = {**where, "folder": folder, "strategy": given["strategy"], "progress": o.progress(quiet)}
    found = api.evaluate(classifier, suite, checks=given["checks"], batch_size=given["batch_size"], **how)
    o.print_records(found, as_json, str(target), api.measure(classifier, suite, **how))
