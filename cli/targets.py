"""What the commands that measure share: the options of models, data and attacks, and what they print at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import cloup

from bn_vuln.config import Attack, MinimumNorm
from bn_vuln.evaluation.settings import EvaluateOptions, ModelOptions
from bn_vuln.typing import Plain

from . import options as o

PATH = click.Path(path_type=Path)
_SHOWN = ("input_scale", "resize", "output", "class_names")

target_argument = cloup.argument("model", required=False, type=PATH, metavar="[RUN or MODEL]")
computing_options = o.options(
    o.fields(EvaluateOptions, "batch_size", "strategy", hidden=True), o.data_options, o.measuring_output_options
)
runs_option = cloup.option("--runs", type=o.OUTPUT_FOLDER, default="runs", show_default=True, help="Results folder.")


def model_options(*names: str, split: str = "test; all of data without one", **defaults: Any) -> o.OptionDecorator:
    """Return a decorator that adds the options of what is evaluated and, of external models, how it is called."""
    others = [name for name in ModelOptions.model_fields if name not in _SHOWN]
    return o.options(
        cloup.option_group(
            "Data", o.fields(EvaluateOptions, "--data=dataset", "split", *names, split=split, **defaults)
        ),
        cloup.option_group("Model of your own", o.fields(EvaluateOptions, *_SHOWN)),
        o.fields(EvaluateOptions, "--from-probabilities=output:softmax", *others, hidden=True),
    )


def attack_options(*attacks: type[Attack | MinimumNorm], more: tuple[str, ...] = ()) -> o.OptionDecorator:
    """Return a decorator that adds the options of attacks, which are the fields of these configs; a few are shown."""
    shown = ("attack", "steps", "restarts", "target", *more)
    return o.options(
        o.hidden_fields(*attacks),
        cloup.option_group("Threat model", o.fields(*attacks, "eps", "ord", "unit", eps="8/255", ord="inf")),
        cloup.option_group("Attack", o.fields(*attacks, *shown, attack="pgd"), o.setting("keep=last")),
    )


def attack_fields(options: o.Options) -> Plain:
    """Return the fields of the attack that the running command was given."""
    fields = {"attack": "pgd", **o.given(Attack)}
    o.override(fields, options["overrides"], Attack, MinimumNorm)
    return fields


def asked(options: o.Options) -> Plain:
    """Return the options of the running command that the functions of `api` share."""
    return {**o.given(EvaluateOptions), "root": options.get("runs"), "progress": o.progress(options["quiet"])}


def target_of(path: Path | None, runs: Path) -> Path:
    """Return the target, by default the newest run."""
    from bn_vuln import api

    if path is None:
        path = api.newest_run(runs)
        o.log(f"the newest run is {path}")
    return path


def shell() -> str:
    """Return the command line."""
    return shlex.join(["bnvuln", *sys.argv[1:]])


def finish(target: Path, folder: Path, options: o.Options, *found: Mapping[str, Any]) -> None:
    """Print records and measurements, with their flags, and say where they are and what to do next."""
    from bn_vuln.reporting import exports, tables

    if options["as_json"]:
        o.print_json(exports.records_to_json(target, *found))
    else:
        click.echo(tables.records_text(*found))
    name = o.quote(folder)
    o.closing(folder, f"bnvuln show {name}", f"bnvuln compare {name} OTHER", quiet=options["quiet"])
