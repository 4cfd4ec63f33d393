"""What attack, evaluate and transfer take: a run or an external model, its data, and its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.records import MeasurementRecord, Record

_model_option = o.option("Model and data")
_external_option = o.option("External models")
TARGET = "[RUN or MODEL]"

data_option = _model_option(
    "--data",
    "dataset",
    metavar="NAME",
    help="Data set: a name, FILE.npz or folder:PATH.  [default: that of the training; external models: mnist]",
)
split_option = _model_option(
    "--split",
    type=click.Choice(["test", "validation", "train", "all"]),
    help="Split that is measured; all: every image there is.  [default: test; all of data without a test split]",
)
external_model_options = (
    _external_option(
        "--input-scale",
        metavar="SCALE",
        help="What pixels become: 0-1, 0-255, -1-1, MEAN,STD, or MEAN and STD of each channel (in pixels of [0, 1]); "
        "caffe, torch or tf, as keras.applications has them; auto decides on labelled images.  [default: auto]",
    ),
    _external_option(
        "--resize",
        type=click.Choice(["auto", "none", "stretch", "crop", "pad"]),
        help="How images of another size become the model's input. stretch; crop: the shorter side fits, centre; pad: "
        "the longer side fits, zeros around; auto: crop where a size differs.  [default: auto]",
    ),
    _external_option("--gray-to-rgb", is_flag=True, help="Give gray images to a model of three channels."),
    _external_option(
        "--output",
        type=click.Choice(["auto", "logits", "softmax", "sigmoid", "log-softmax"]),
        help="What the model returns.  [default: auto]",
    ),
    _external_option("--head", metavar="NAME", help="Output that is taken, of a model with several."),
    _external_option(
        "--class-names",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Names of the classes in the order of the model's outputs: one a line, or JSON. Labels are matched by "
        "name.",
    ),
    _external_option(
        "--weights",
        metavar="imagenet|none|FILE",
        help="Weights of keras.applications:NAME.  [default: imagenet]",
    ),
    _external_option(
        "--custom-objects",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.py",
        help="Python file of custom layers and functions. It is run, and so is code inside the model's file.",
    ),
    _external_option(
        "--validation",
        type=click.IntRange(min=1),
        metavar="N",
        help="Images held out of the training split for --split validation, where the data have no such split.",
    ),
    _model_option("--no-exif", is_flag=True, help="Leave image files unturned, whatever their EXIF orientation says."),
    _model_option("--skip-bad", is_flag=True, help="Leave out image files that cannot be read, and list them."),
    _external_option("--from-probabilities", is_flag=True, hidden=True, help="Older name of --output softmax."),
)
runs_option = o.option("Results")(
    "--runs",
    type=o.OUTPUT_FOLDER,
    default="runs",
    show_default=True,
    help="Folder of the newest run, and of the records of external models.",
)
force_option = o.option("Results")("--force", is_flag=True, help="Measure again what is recorded already.")
_FIELDS = (
    "dataset", "split", "limit", "bn_statistics", "input_scale", "resize", "output", "head", "class_names", "weights",
    "custom_objects", "validation", "checks", "batch_size", "strategy",
)  # fmt: skip


def target_of(path: Path | None, runs: Path) -> Path:
    """Return the target, by default the newest run."""
    from bn_vuln import api

    if path is not None:
        return path
    newest = api.newest_run(runs)
    o.log(f"the newest run is {newest}")
    return newest


def api_options(options: o.Options, runs: Path) -> dict[str, Any]:
    """Return the options that the functions of `api` share, of those that were given."""
    fields = {name: options[name] for name in _FIELDS if options.get(name) is not None}
    if options.get("from_probabilities"):
        if options.get("output") not in (None, "softmax"):
            raise click.UsageError("--from-probabilities is the older name of --output softmax: give one of them")
        fields["output"] = "softmax"
    if options.get("gray_to_rgb"):
        fields["gray_to_rgb"] = True
    if options.get("no_exif") or options.get("skip_bad"):
        if options.get("dataset") is None:
            raise click.UsageError("--no-exif and --skip-bad are for --data folder:PATH")
        fields |= {"exif": not options["no_exif"], "skip_bad": options["skip_bad"]}
    return {
        **fields,
        "root": runs,
        "force": bool(options.get("force")),
        "progress": o.progress(options["quiet"]),
    }


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


def print_next(folder: Path, options: o.Options) -> None:
    """Say where the records are, and what to do with them."""
    name = o.quote(folder)
    o.closing(folder, f"bnvuln show {name}", f"bnvuln compare {name} OTHER", quiet=options["quiet"])
