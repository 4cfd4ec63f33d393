"""`bnvuln audit`: how fragile a model is, why, and what to do about it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from . import options as o
from .targets import api_options, data_option, external_model_options, split_option

EXAMPLES = """
Examples:

\b
  # a model and photos of your own, one folder a class
  bnvuln audit model.keras --data folder:photos
  # two models as a pair
  bnvuln audit with_bn.keras without_bn.keras --data images.npz
  # in continuous integration: exit code 1 if it is not met
  bnvuln audit model.keras --data images.npz --require 'strong 2/255 >= .4'
  # then
  bnvuln mend model.keras --data folder:photos \\
      --from-audit audits/model -o mended.keras
"""
_audit_option = o.option("Audit")
_OPTIONS = (
    data_option,
    split_option,
    _audit_option(
        "--limit",
        type=click.IntRange(min=20),
        metavar="N",
        help="Images, in a fixed random order; half of them choose, half report.  [default: 200; thorough: 500]",
    ),
    _audit_option(
        "--ord",
        type=click.Choice(["inf", "2"]),
        default="inf",
        show_default=True,
        help="Norm of the perturbations: inf, the largest change of a pixel; 2, the Euclidean length.",
    ),
    _audit_option(
        "--max-clean-cost",
        type=o.NUMBER,
        default=1.0,
        metavar="POINTS",
        help="Points of clean accuracy that an advice may cost.  [default: 1]",
    ),
    _audit_option(
        "--time",
        metavar="TIME",
        help="90s, 10m, 1h or none. Less is measured where it would take longer, and it is said what.  [default: 10m; "
        "thorough: none]",
    ),
    _audit_option("--thorough", is_flag=True, help="strong with its standard settings: many times slower."),
    _audit_option(
        "--require",
        multiple=True,
        metavar="CONDITION",
        help="Exit code 1 unless it holds: 'strong 2/255 >= .4', 'noise 0.1 >= 80%', 'clean >= .9', 'half-eps >= "
        "1/255'; of a pair for the first model. May be given several times.",
    ),
    *external_model_options,
    o.option("Results")(
        "--out",
        type=o.OUTPUT_FOLDER,
        metavar="FOLDER",
        help="Folder of the page; an audit that was interrupted goes on there.  [default: audits/MODEL]",
    ),
)


@click.command("audit", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.argument("second", required=False, type=click.Path(path_type=Path), metavar="[MODEL2]")
@o.options(_OPTIONS)
@o.data_options
@o.strategy_option
@o.output_options
def command(model: Path, second: Path | None, out: Path | None, as_json: bool, verbose: bool, **options: Any) -> None:
    """Audit a classifier: is it fragile, does its normalization have to do with it, and what can be done?

    MODEL is a run, a .keras or .h5 file, or keras.applications:NAME. Measures noise, corruptions and strong attacks,
    looks at every normalization layer, tries what can be changed without training, and writes one page:
    FOLDER/index.html. With MODEL2 both are audited as a pair.
    """
    o.set_up(verbose)
    from bn_vuln import api

    folder = out or Path("audits") / _name(model, second)
    time = options["time"] or (None if options["thorough"] else "10m")
    names = ("ord", "limit", "max_clean_cost", "thorough", "require")
    shared = {k: v for k, v in api_options(options, folder).items() if k not in ("root", "force", "limit")}
    result = api.audit(
        model,
        second=second,
        out=folder,
        time=time,
        command=shlex.join(["bnvuln", *sys.argv[1:]]),
        **{name: options[name] for name in names},
        **shared,
    )
    if as_json:
        o.print_json(result.findings.model_dump(mode="json"))
    else:
        click.echo(str(result))
    if not options["quiet"]:
        o.log(f"page: {result.page}")
    if not result.met:
        click.get_current_context().exit(1)


def _name(model: Path, second: Path | None) -> str:
    """The name of the folder: those of the models."""
    paths = [Path(str(one).rpartition(":")[2]) for one in (model, second) if one is not None]
    return "-".join(path.stem if path.suffix in (".keras", ".h5") else path.name for path in paths) or "model"
