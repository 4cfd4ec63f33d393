"""`bnvuln publish`: finished experiments, packed for review."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import Scale

EXAMPLES = """
Examples:

\b
  bnvuln publish table6 table6_matched --to results/paper
  bnvuln publish figure2 --scale cpu --to results/paper
  bnvuln publish my_experiment.yaml --from runs --to results/mine --models 0
"""
result = o.option("Result")


@click.command("publish", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@result("--to", "target", type=o.OUTPUT_FOLDER, required=True, help="Packed store; what is in it already stays.")
@result("--from", "source", type=o.FOLDER, default="runs", show_default=True, help="Working folder.")
@o.scale_option("full")
@result("--models", type=int, metavar="SEED", help="Publish the models of this seed as well.")
@o.json_option
@o.quiet_option
def command(
    experiments: tuple[str, ...], target: Path, source: Path, scale: Scale, models: int | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Add the finished cells of experiments to a packed store (JSON lines: one per model and one per record).

    `bnvuln report` and `bnvuln compare` read a packed store as it is; `bnvuln unpack` makes a working folder of it.
    """
    from bn_vuln import api

    published = api.publish(
        experiments, target, source=source, scale=scale, models=models, progress=o.progress(quiet=False)
    )
    if as_json:
        plain = [{"name": p.experiment.name, "published": p.published, "cells": p.cells} for p in published]
        o.print_json({"to": str(target), "experiments": plain})
    for one in () if as_json else published:
        unfinished = one.cells - one.published
        rest = f" ({unfinished} are not finished)" if unfinished else ""
        click.echo(f"published {one.published} of {one.cells} cells of {one.experiment.name} to {target}{rest}")
    o.closing(target, f"bnvuln report {o.quote(target)}", quiet=quiet)
