"""The options of adversarial training, and the config that they make."""

from __future__ import annotations

from typing import Any

import click

from . import options as o

# What each attack says of the search; the rest are the config's defaults, which are PGD's.
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "bim": {"random_start": False},
    "fgsm": {"random_start": False, "steps": 1},
}
FIELDS = ("eps", "ord", "unit", "box", "steps", "step_size")


def adversarial_options(command: o.Command) -> o.Command:
    """--adversarial and its settings."""
    add = o.option("Adversarial training")
    for decorate in (
        add("--adversarial-step-size", type=o.NUMBER, help="In that unit.  [default: 2.5 eps / steps; fgsm eps]"),
        add("--adversarial-steps", type=int, help="Gradient steps.  [default: 10; fgsm 1]"),
        add("--adversarial-box", type=o.RANGE, help="Range of pixels, or none.  [default: 0,1]"),
        add(
            "--adversarial-unit",
            type=click.Choice(["pixel", "standardized"]),
            help="Unit of eps and step size.  [default: pixel]",
        ),
        add("--adversarial-ord", type=click.Choice(["inf", "2"]), help="Norm of the ball.  [default: inf]"),
        add("--adversarial-eps", type=o.NUMBER, help="Radius, e.g. 8/255; must be given."),
        add(
            "--adversarial",
            type=click.Choice(list(ATTACKS)),
            help="Train on adversarial examples: pgd (random start), bim (from the image), fgsm (one step).",
        ),
    ):
        command = decorate(command)
    return command


def adversarial_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The options as the field `adversarial` of a training's config, where there are any."""
    from bn_vuln.errors import UsageError

    name = given["adversarial"]
    fields = {key: given[f"adversarial_{key}"] for key in FIELDS if given[f"adversarial_{key}"] is not None}
    if name is None and fields:
        raise UsageError(f"--adversarial-{next(iter(fields)).replace('_', '-')} needs --adversarial, e.g. pgd")
    if name is None:
        return {}
    if "eps" not in fields:
        raise UsageError(f"--adversarial {name} needs --adversarial-eps, e.g. 8/255")
    if name == "fgsm" and {"steps", "step_size"} & set(fields):
        raise UsageError(
            "--adversarial fgsm is one step of size eps: leave --adversarial-steps and --adversarial-step-size out, "
            "or use bim"
        )
    return {"adversarial": {**ATTACKS[name], **fields}}
