"""Minimum-norm attacks as `bnvuln attack --attack carlini_wagner`: options of their own, and those that they lack."""

from __future__ import annotations

from typing import Any, get_args

import click
from click.core import ParameterSource

from . import options as o

search = o.option("The nearest image, instead of a ball: --attack carlini_wagner")
NAMES = ("carlini_wagner",)
OWN = ("confidence", "binary_search_steps", "initial_const")
SHARED = ("unit", "box", "steps", "step_size", "target", "backend")
# Options of attacks in a ball of radius eps, which the others do not have.
FOREIGN = ("eps", "random_start", "restarts", "keep", "targets", "queries", "eps_grid", "min_eps_tolerance", "seed")

OPTIONS = (
    search(
        "--binary-search-steps",
        type=int,
        help="Constants that are tried, with 1,000 --steps each, of --step-size 0.01, where these are not given.  "
        "[default: 9]",
    ),
    search("--initial-const", type=o.NUMBER, help="The first of them.  [default: 0.001]"),
    search("--confidence", type=o.NUMBER, help="Margin of the logits that is asked for.  [default: 0]"),
)


def minimal_options(command: o.Command) -> o.Command:
    """The options that only minimum-norm attacks have."""
    for decorate in reversed(OPTIONS):
        command = decorate(command)
    return command


def resolve(given: dict[str, Any]) -> Any:
    """The config of a minimum-norm attack; None for another attack. Raises `UsageError` for an attack that does not
    exist, and for an option that the attack does not have."""
    from bn_vuln import config

    name = given["name"]
    known = (*get_args(config.Attack.model_fields["attack"].annotation), *NAMES)
    if name not in known:
        hint = config.nearest(name, known)
        raise click.UsageError(f"--attack: {name!r} is not known (known: {', '.join(known)}){hint}")
    if name not in NAMES:
        _refuse(OWN, f"an option of {', '.join(NAMES)}, not of {name}")
        return None
    _refuse(FOREIGN, f"no option of {name}, which looks for the nearest image and has no ball to search")
    if given["ord"] == "inf" and _is_given("ord"):
        raise click.UsageError(f"--ord: {name} minimizes the norm 2, received inf")
    if given["checks"] != "none" and _is_given("checks"):
        raise click.UsageError(f"--checks: {name} has no ball in which further attacks could doubt it; leave it out")
    fields = {key: given[key] for key in (*SHARED, *OWN) if given[key] is not None}
    return config.validate(config.MinimumNorm, {"attack": name, **fields}, "attack")


def _refuse(names: tuple[str, ...], why: str) -> None:
    for name in names:
        if _is_given(name):
            raise click.UsageError(f"--{name.replace('_', '-')} is {why}")


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)
