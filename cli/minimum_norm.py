"""Minimum-norm attacks of `bnvuln attack`: their own options, and the options that they do not take."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config import MinimumNorm

NAMES = ("carlini_wagner",)
SHARED = ("unit", "box", "steps", "step_size", "target")
MINIMUM_NORM_ONLY = ("confidence", "binary_search_steps", "initial_const")
EPS_BALL_ONLY = (
    "eps", "random_start", "restarts", "keep", "targets", "queries", "eps_grid", "min_eps_tolerance", "seed",
)  # fmt: skip

_option = o.option("Minimum-norm attack (--attack carlini_wagner, without --eps)")
_OPTIONS = (
    _option(
        "--binary-search-steps",
        type=int,
        metavar="N",
        help="Constants that are tried, with 1,000 --steps each, of --step-size 0.01, by default.  [default: 9]",
    ),
    _option("--initial-const", type=o.NUMBER, help="First constant.  [default: 0.001]"),
    _option("--confidence", type=o.NUMBER, help="Margin of the logits that counts as success.  [default: 0]"),
)


minimum_norm_options = o.options(_OPTIONS)  # those that only minimum-norm attacks have


def minimum_norm_config(options: o.Options) -> MinimumNorm | None:
    """Return the config of a minimum-norm attack; None for another attack.

    Raises:
        click.UsageError: The attack does not exist, or an option was given that the attack does not take.
    """
    from bn_vuln import config

    name = options["name"]
    known = (*get_args(config.Attack.model_fields["attack"].annotation), *NAMES)
    if name not in known:
        hint = config.nearest(name, known)
        raise click.UsageError(f"--attack: {name!r} is not known (known: {', '.join(known)}){hint}")
    if name not in NAMES:
        _reject(MINIMUM_NORM_ONLY, f"an option of {', '.join(NAMES)}, not of {name}")
        return None
    _reject(EPS_BALL_ONLY, f"no option of {name}, which looks for the nearest adversarial image, without an eps")
    if options["ord"] == "inf" and o.is_given("ord"):
        raise click.UsageError(f"--ord: {name} minimizes the norm 2, received inf")
    if options["checks"] != "none" and o.is_given("checks"):
        raise click.UsageError(f"--checks: {name} has no eps ball for further attacks; leave it out")
    if options["backend"] == "cleverhans":
        raise click.UsageError(f"--backend: CleverHans' {name} does not run with Keras 3; leave it out, own is used")
    fields = {key: options[key] for key in (*SHARED, *MINIMUM_NORM_ONLY) if options[key] is not None}
    return config.validate(config.MinimumNorm, {"attack": name, **fields}, "attack")


def _reject(names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if o.is_given(name):
            raise click.UsageError(f"{o.flag_name(name)} is {reason}")
