"""Options of the commands that attack, and the configs that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import options as o
from .targets import data_option, external_model_options, split_option

if TYPE_CHECKING:
    from bn_vuln.config import Attack

_model_option, _threat_option, _attack_option = (
    o.option("Model and data"), o.option("Threat model"), o.option("Attack"),
)  # fmt: skip
_BEFORE_ATTACK = (
    data_option,
    split_option,
    _model_option(
        "--limit", type=int, metavar="N", help="Number of examples, in a fixed random order.  [default: all]"
    ),
    *external_model_options,
    _threat_option(
        "--eps",
        type=o.NUMBER,
        default=8 / 255,
        help="Radius of the eps ball, in --unit; fractions work.  [default: 8/255]",
    ),
    _threat_option(
        "--ord",
        type=click.Choice(["inf", "2"]),
        default="inf",
        show_default=True,
        help="Norm of the perturbation: inf, the largest change of a pixel; 2, the Euclidean length.",
    ),
    _threat_option(
        "--unit",
        type=click.Choice(["pixel", "standardized"]),
        default="pixel",
        show_default=True,
        help="Unit of --eps and --step-size: pixels in [0, 1], or pixels / std of the data.",
    ),
    _threat_option(
        "--box",
        type=o.RANGE,
        metavar="LOW,HIGH|none",
        default="0,1",
        show_default=True,
        help="Range of pixels of adversarial images, or none.",
    ),
)
_ATTACKS = (
    "fgsm, bim (starts at the image), pgd (random start), apgd-ce, apgd-dlr, apgd-t, fmn, square (no gradients), or "
    "strong: an ensemble of apgd-ce, apgd-t, fmn and square."
)
_AFTER_ATTACK = (
    _attack_option(
        "--steps",
        type=int,
        metavar="N",
        help="Gradient steps, or queries of square.  [default: 20; fgsm 1; square 5000; others 100]",
    ),
    _attack_option(
        "--step-size", type=o.NUMBER, help="Step size of bim and pgd, in --unit.  [default: 2.5 eps / steps]"
    ),
    _attack_option(
        "--random-start/--no-random-start",
        default=None,
        help="Random starting point in the eps ball.  [default: random, but for bim]",
    ),
    _attack_option(
        "--restarts",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="Number of random starts; the worst case of each example counts.",
    ),
    _attack_option(
        "--target",
        type=click.Choice(["none", "next", "least_likely"]),
        default="none",
        show_default=True,
        help="Class that the attack aims at.",
    ),
    _attack_option(
        "--keep",
        older=["--iterate"],
        type=o.RenamedChoice(["first_success", "last", "best_loss"], {"any": "first_success", "best": "best_loss"}),
        help="Iterate that counts. first_success: the first adversarial one, which ends the search; last: the last "
        "one, as in the paper; best_loss: the adversarial one of the highest loss.  [default: first_success; fgsm and "
        "cleverhans: last]",
    ),
    _attack_option(
        "--targets", type=int, metavar="N", help="Classes that apgd-t (and strong) aims at in turn.  [default: 9]"
    ),
    _attack_option("--queries", type=int, metavar="N", help="Queries of Square in strong.  [default: 5000]"),
    _attack_option("--seed", type=int, metavar="N", default=0, show_default=True, help="Seed of the random starts."),
    _attack_option(
        "--backend",
        type=click.Choice(["own", "cleverhans"]),
        default="own",
        show_default=True,
        help="Attack implementation.",
    ),
)
_curve_option = o.option("Several eps")
_CURVE_OPTIONS = (
    _curve_option(
        "--eps-grid",
        older=["--ladder"],
        type=o.NUMBERS,
        metavar="EPS,EPS,...",
        help="Smaller eps, each with a row of its own: the robustness curve in one search, from --eps down.",
    ),
    _curve_option(
        "--min-eps-tolerance",
        older=["--bisect"],
        type=o.NUMBER,
        metavar="TOLERANCE",
        help="Search of the smallest eps, up to --eps, at which each example is adversarial, to within this much, in "
        "--unit.",
    ),
)


def attack_options(more_attacks: str = "") -> o.OptionDecorator:
    """Return a decorator that adds the options of model, data, threat model and attack.

    `more_attacks` is the help text of attacks that only this command takes.
    """
    text = f"{_ATTACKS} {more_attacks}".strip()
    name = _attack_option("--attack", "name", default="pgd", show_default=True, metavar="NAME", help=text)
    return o.options((*_BEFORE_ATTACK, name, *_AFTER_ATTACK))


curve_options = o.options(_CURVE_OPTIONS)  # attacks at several eps


def attack_config(options: o.Options) -> Attack:
    """Return the config of an attack in the eps ball."""
    from bn_vuln import config

    fields = {key: options[key] for key in ("ord", "eps", "unit", "box", "restarts", "target", "seed", "backend")}
    optional = ("steps", "step_size", "random_start", "keep", "targets", "queries", "min_eps_tolerance")
    fields |= {key: options[key] for key in optional if options.get(key) is not None}
    if options.get("eps_grid"):
        eps, eps_grid = options["eps"], options["eps_grid"]
        if max(eps_grid) > eps:
            raise click.UsageError(f"--eps-grid: expected eps of at most --eps {eps:.4g}, from which it goes down")
        fields["eps_grid"] = sorted({smaller for smaller in eps_grid if smaller != eps})  # eps itself may be named
    return config.validate(config.Attack, {"attack": options["name"], **fields}, "attack")
