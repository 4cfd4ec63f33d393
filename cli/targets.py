"""The classifier that attack, evaluate and transfer take, and its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import Evaluation, Perturbation
    from bn_vuln.evaluation.classifier import Classifier
    from bn_vuln.evaluation.result import Result
    from bn_vuln.records import MeasurementRecord, Record

_model_option = o.option("Model and data")
TARGET = "[RUN or MODEL.keras]"

data_option = _model_option(
    "--data",
    "dataset",
    metavar="NAME",
    help="Data set: a name, FILE.npz or folder:PATH.  [default: that of the training; external models: mnist]",
)
external_model_options = (
    _model_option(
        "--input-scale",
        type=click.Choice(["0-1", "0-255"]),
        help="Range of pixels that an external model takes.  [default: 0-1]",
    ),
    _model_option("--from-probabilities", is_flag=True, help="For an external model that ends in a softmax."),
)
runs_option = o.option("Results")(
    "--runs",
    type=o.FOLDER,
    default="runs",
    show_default=True,
    help="Folder of the newest run, and of the records of external models.",
)


def open_target(target: Path | None, runs: Path, options: o.Options) -> tuple[Path, Classifier]:
    """Return the target, by default the newest run, and its classifier."""
    from bn_vuln import api
    from bn_vuln.runtime.distribution import choose

    prepare(options)
    if target is None:
        target = api.newest_run(runs)
        o.log(f"the newest run is {target}")
    if has_external_options(options) and target.is_dir():
        raise click.UsageError(f"{target} is a run: --input-scale and --from-probabilities are for .keras files")
    classifier = api.open_classifier(
        target,
        dataset=options["dataset"],
        input_scale=options["input_scale"] or "0-1",
        from_probabilities=options["from_probabilities"],
        distribution=choose(options["strategy"]),
    )
    return target, classifier


def prepare(options: o.Options) -> None:
    """Prepare the data set of --data before TensorFlow is started, so that a mistake is reported at once."""
    from bn_vuln import data

    if options["dataset"] is not None:
        data.prepare(options["dataset"])


def has_external_options(options: o.Options) -> bool:
    """Return whether an option was given that only external models have."""
    return options["from_probabilities"] or options["input_scale"] is not None


def evaluate(
    classifier: Classifier,
    evaluation: Evaluation,
    perturbations: Mapping[str, Perturbation],
    folder: Path,
    options: o.Options,
) -> dict[str, Result]:
    """Evaluate a classifier; each record is written into `folder` as soon as it is there."""
    from bn_vuln.evaluation import evaluator
    from bn_vuln.runtime.distribution import choose

    return dict(
        evaluator.measure(
            classifier,
            perturbations,
            evaluation,
            folder=folder,
            checks=options["checks"],
            batch_size=options["batch_size"],
            fold=not options["no_fold"],
            distribution=choose(options["strategy"]),
            progress=o.progress(options["quiet"]),
        )
    )


def print_records(
    records: Mapping[str, Record],
    as_json: bool,
    target: Path,
    measurements: Mapping[str, MeasurementRecord] | None = None,
) -> None:
    """Print records and measurements as one JSON object, or as tables with the flags under them."""
    if as_json:
        from bn_vuln.reporting.exports import measurement_fields, record_fields

        plain = [{"name": name, **record_fields(r)} for name, r in records.items()]
        others = [{"name": name, **measurement_fields(r)} for name, r in (measurements or {}).items()]
        o.print_json({"target": str(target), "records": plain, **({"measurements": others} if others else {})})
        return
    from bn_vuln.reporting.tables import measurements_table, records_table, text_table

    click.echo(text_table(records_table(records)))
    if measurements:
        click.echo(f"\n{text_table(measurements_table(measurements))}")
