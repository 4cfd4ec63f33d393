"""`bnvuln evaluate`: a suite of perturbations and measurements on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options as o
from .targets import (
    TARGET,
    api_options,
    data_option,
    external_model_options,
    force_option,
    print_next,
    print_records,
    runs_option,
    target_of,
)

EXAMPLES = """
Examples:

\b
  bnvuln evaluate --suite quick                 # the newest run
  bnvuln evaluate runs/ID --suite paper
  bnvuln evaluate runs/ID --suite mechanism     # tilting angle and spectrum
  bnvuln evaluate runs/ID --split validation    # leaves the test set alone
  bnvuln evaluate model.keras --data images.npz --json
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
        type=click.Choice(["test", "validation", "train", "all"]),
        help="Split that is measured; all: every image there is.  [default: the suite's]",
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
@force_option
@o.checks_option
@o.data_options
@o.strategy_option
@o.batch_option
@o.output_options
def command(target_path: Path | None, suite: str, runs: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Evaluate a run or any Keras classifier with a suite; by default the newest run.

    MODEL is a .keras or .h5 file, or keras.applications:NAME. Prints accuracy under each perturbation and each
    measurement, with warnings on unreliable numbers. The records go into the run folder, or into RUNS/ID; what is
    recorded is not measured again (--force does).
    """
    o.set_up(verbose)
    from bn_vuln import api
    from bn_vuln.evaluation.opening import folder_of
    from bn_vuln.experiments import catalog

    catalog.suite(suite)  # before TensorFlow is started, so that mistakes show at once
    shared = api_options(options, runs)
    target = target_of(target_path, runs)
    classifier = api.open_classifier(target, **shared)
    found = api.evaluate(classifier, suite=suite, **shared)
    print_records(found, as_json, target, api.measure(classifier, suite=suite, **shared))
    print_next(folder_of(classifier, runs), options)
