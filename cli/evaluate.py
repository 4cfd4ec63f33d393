"""`bnvuln evaluate`: a suite of perturbations and measurements on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options as o
from .targets import TARGET, data_option, external_model_options, open_target, print_records, runs_option

EXAMPLES = """
Examples:

\b
  bnvuln evaluate --suite quick                 # the newest run
  bnvuln evaluate runs/ID --suite paper
  bnvuln evaluate runs/ID --suite mechanism     # tilting angle and spectrum
  bnvuln evaluate runs/ID --split validation    # leaves the test set alone
  bnvuln evaluate model.keras --data mnist --from-probabilities --json
"""
_suite_option = o.option("Model and data")
_OPTIONS = (
    _suite_option(
        "--suite",
        default="quick",
        show_default=True,
        metavar="NAME",
        help=f"Suite: {', '.join(o.shipped('suites'))}, or a YAML file of perturbations and measurements.",
    ),
    data_option,
    _suite_option(
        "--split",
        type=click.Choice(["test", "validation", "train"]),
        help="Split that is evaluated.  [default: the suite's]",
    ),
    _suite_option(
        "--limit", type=int, metavar="N", help="Number of examples, in a fixed random order.  [default: the suite's]"
    ),
    _suite_option(
        "--bn-statistics",
        type=click.Choice(["tracked", "reestimated", "batch"]),
        help="BN's statistics: tracked in training; reestimated, the mean over a pass through the training examples; "
        "or those of the batch under evaluation.  [default: the suite's]",
    ),
    *external_model_options,
)


@click.command("evaluate", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("target_path", required=False, type=click.Path(path_type=Path), metavar=TARGET)
@o.options(_OPTIONS)
@runs_option
@o.checks_option
@o.data_options
@o.strategy_option
@o.batch_option
@o.output_options
def command(
    target_path: Path | None, suite: str, runs: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Evaluate a run or any .keras classifier with a suite; by default the newest run.

    Prints accuracy under each perturbation and each measurement, with warnings on unreliable numbers. The records
    go into the run folder.
    """
    o.set_up(verbose)
    from bn_vuln import api
    from bn_vuln.experiments import catalog

    changes = {key: options[key] for key in ("dataset", "split", "limit", "bn_statistics")}
    evaluation, _ = api.resolve_suite(suite, **changes)  # before TensorFlow is started, so that mistakes show at once
    target, classifier = open_target(target_path, runs, options)
    from bn_vuln.evaluation.measurements import run  # TensorFlow

    run.check(classifier, catalog.suite(suite).measurements, evaluation)
    shared: o.Options = {
        **changes,
        "folder": target if target.is_dir() else runs / classifier.id,
        "strategy": options["strategy"],
        "progress": o.progress(quiet),
    }
    records = api.evaluate(classifier, suite, checks=options["checks"], batch_size=options["batch_size"], **shared)
    print_records(records, as_json, target, api.measure(classifier, suite, **shared))
