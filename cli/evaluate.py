"""`bnvuln evaluate`: a suite of perturbations and measurements on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from bn_vuln.evaluation.settings import EvaluateOptions

from . import options as o
from . import targets as t

EXAMPLES = """
  bnvuln evaluate --suite quick                 # the newest run
  bnvuln evaluate runs/ID --suite paper
  bnvuln evaluate runs/ID --suite mechanism     # tilting angle and spectrum
  bnvuln evaluate runs/ID --split validation    # leaves the test set alone
  bnvuln evaluate model.keras --data images.npz --json
"""
_SUITES = f"Suite: {', '.join(o.shipped('suites'))}, or a YAML file of perturbations and measurements."
_OF_SUITE = dict.fromkeys(("split", "limit", "bn_statistics"), "the suite's")
_suite_option = cloup.option("--suite", default="quick", show_default=True, metavar="NAME", help=_SUITES)


@o.command("evaluate", EXAMPLES)
@t.target_argument
@cloup.option_group("Suite", _suite_option, o.setting("limit=100"))
@t.model_options("limit", "bn_statistics", **_OF_SUITE)
@cloup.option_group("Results", t.runs_option, o.fields(EvaluateOptions, "force", "checks"))
@t.computing_options
def command(model: Path | None, suite: str, **options: Any) -> None:
    """Evaluate a run or any Keras classifier with a suite; by default the newest run.

    MODEL is a .keras or .h5 file, or keras.applications:NAME. Records go into the run folder, or into RUNS/ID; what is
    recorded is not measured again (--force does).
    """
    from bn_vuln import api
    from bn_vuln.evaluation.opening import folder_of
    from bn_vuln.experiments import catalog

    catalog.suite(suite)  # before TensorFlow is started, so that mistakes show at once
    shared = t.asked(options)
    o.override(shared, options["overrides"], EvaluateOptions)
    target = t.target_of(model, options["runs"])
    classifier = api.open_classifier(target, **shared)
    found = api.evaluate(classifier, suite=suite, **shared)
    measured = api.measure(classifier, suite=suite, **shared)
    t.finish(target, folder_of(classifier, options["runs"]), options, found, measured)
