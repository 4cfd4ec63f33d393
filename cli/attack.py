"""`bnvuln attack`: one attack on one classifier."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from . import minimal
from . import options as o

what, threat, search, result = o.option("What"), o.option("Threat model"), o.option("Search"), o.option("Result")

EXAMPLES = """
Examples:

\b
  bnvuln attack --eps 8/255                          # PGD-20 on the newest run
  bnvuln attack runs/ID --attack bim --eps 0.1 --unit standardized --steps 100 --step-size 1e-3
  bnvuln attack runs/ID --attack strong --eps 0.1 --limit 1000
  bnvuln attack runs/ID --eps 16/255 --eps-grid 1/255,2/255,4/255,8/255     # the accuracy curve
  bnvuln attack runs/ID --attack apgd-ce --eps 0.2 --min-eps-tolerance 1/255         # each image's smallest eps
  bnvuln attack runs/ID --attack carlini_wagner --limit 500               # the nearest wrong images: a distance
  bnvuln attack runs/ID --ord 2 --eps 1 --restarts 5 --limit 1000 --save adversarial.npz
  bnvuln attack model.keras --data mnist --eps 8/255 --from-probabilities --input-scale 0-255
"""


# What every command that attacks takes, in the order of the help: before --attack, and after it.
SUBJECT_OPTIONS = (
    what(
        "--data",
        "dataset",
        metavar="NAME",
        help="Data set by name, FILE.npz or folder:PATH.  [default: the one trained on; mnist for a foreign model]",
    ),
    what("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True),
    what("--limit", type=int, help="Attack N examples of a fixed random order.  [default: all]"),
    what("--input-scale", type=click.Choice(["0-1", "0-255"]), help="Pixels a foreign model expects.  [default: 0-1]"),
    what("--from-probabilities", is_flag=True, help="A foreign model ends in a softmax."),
    threat("--ord", type=click.Choice(["inf", "2"]), default="inf", show_default=True, help="Norm of the ball."),
    threat("--eps", type=o.NUMBER, default=8 / 255, show_default="8/255", help="Radius, in --unit."),
    threat(
        "--unit",
        type=click.Choice(["pixel", "standardized"]),
        default="pixel",
        show_default=True,
        help="Unit of eps and step size: pixels in [0, 1], or pixels / std of the data.",
    ),
    threat("--box", type=o.RANGE, default="0,1", show_default=True, help="Range of pixels, or none."),
)
ATTACKS = (
    "fgsm, bim (from the image), pgd (random start), apgd-ce, apgd-dlr, apgd-t, fmn, square (no gradients), or strong: "
    "apgd-ce, apgd-t, fmn and square, each on what is left."
)
SEARCH_OPTIONS = (
    search(
        "--steps",
        type=int,
        help="Gradient steps, or queries of square.  [default: 20; fgsm 1; square 5000; others 100]",
    ),
    search("--step-size", type=o.NUMBER, help="In --unit, of bim and pgd.  [default: 2.5 eps / steps]"),
    search("--random-start/--no-random-start", default=None, help="Start in the ball at random.  [default: not bim]"),
    search(
        "--restarts", type=int, default=1, show_default=True, help="Random starts; the worst case is kept per example."
    ),
    search(
        "--target",
        type=click.Choice(["none", "next", "least_likely"]),
        default="none",
        show_default=True,
        help="Aim at a class.",
    ),
    search(
        "--keep",
        older=["--iterate"],
        type=o.RenamedChoice(["first_success", "last", "best_loss"], {"any": "first_success", "best": "best_loss"}),
        help="The point that counts. first_success: the first adversarial one, which ends the search; last: the last "
        "one, as in the paper; best_loss: the one of the highest loss.  [default: first_success; fgsm and cleverhans: "
        "last]",
    ),
    search("--targets", type=int, help="Classes that apgd-t (and strong) aims at in turn.  [default: 9]"),
    search("--queries", type=int, help="Queries of Square in strong.  [default: 5000]"),
    search("--seed", type=int, default=0, show_default=True, help="Seed of the random starts."),
    search(
        "--backend",
        type=click.Choice(["own", "cleverhans"]),
        default="own",
        show_default=True,
        help="Attack implementation.",
    ),
    search("--no-fold", is_flag=True, help="Keep batch norm in the model whose gradients are climbed (slower)."),
)

# Searches at several eps.
CURVE_OPTIONS = (
    search(
        "--eps-grid",
        older=["--ladder"],
        type=o.NUMBERS,
        metavar="EPS,EPS,...",
        help="Smaller eps, each with a row of its own: the accuracy curve in one search, from --eps down.",
    ),
    search(
        "--min-eps-tolerance",
        older=["--bisect"],
        type=o.NUMBER,
        metavar="TOLERANCE",
        help="Find the smallest eps, up to --eps, that fools each example, to within this much.",
    ),
)


def attack_options(more: str = "") -> Callable[[o.Command], o.Command]:
    """The options that say what is attacked, and how; `more` is said of attacks that only this command takes."""
    text = f"{ATTACKS} {more}".strip()
    name = search("--attack", "name", default="pgd", show_default=True, metavar="NAME", help=text)
    return functools.partial(_with, (*SUBJECT_OPTIONS, name, *SEARCH_OPTIONS))


def curve_options(command: o.Command) -> o.Command:
    """Those of an attack at several eps."""
    return _with(CURVE_OPTIONS, command)


def _with(options: Sequence[Callable[[o.Command], o.Command]], command: o.Command) -> o.Command:
    for decorate in reversed(options):
        command = decorate(command)
    return command


@click.command("attack", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("subject", required=False, type=click.Path(path_type=Path), metavar="[RUN or MODEL.keras]")
@attack_options(f"Or {', '.join(minimal.NAMES)}: the nearest image that fools, without --eps.")
@curve_options
@minimal.minimal_options
@result(
    "--runs",
    type=o.FOLDER,
    default="runs",
    show_default=True,
    help="Where the newest run is looked for, and a foreign model's records go.",
)
@result(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Save images, labels, outcomes and, where there are any, distances.",
)
@o.checks_option
@o.strategy_option
@o.batch_option
@o.data_options
@o.output_options
def command(
    subject: Path | None, runs: Path, save: Path | None, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Attack a run, or any .keras classifier; without a target, the newest run.

    Prints clean accuracy, accuracy under the attack, and every flag that says why the number may lie. The
    records go into the run folder.
    """
    o.set_up(verbose)
    if save is not None and save.suffix != ".npz":
        raise click.BadParameter(f"{save}: expected a file name ending in .npz", param_hint="--save")
    from bn_vuln import config

    nearest = minimal.resolve(given)
    attack, evaluation = (nearest, _evaluation(given)) if nearest else resolve(given)
    perturbations = {"clean": config.Clean(), given["name"]: attack}
    subject, classifier = o.open_target(subject, runs, given)
    folder = subject if subject.is_dir() else runs / classifier.id
    results = o.measure(classifier, evaluation, perturbations, folder, quiet, given)
    if save is not None:
        _save(save, results["clean"], results[given["name"]])
        o.say(f"saved {save}")
    o.print_records({name: r.record for name, r in results.items()}, as_json, str(subject))


def resolve(given: dict[str, Any]) -> tuple[Any, Any]:
    """(attack, evaluation) of the options."""
    from bn_vuln import config

    return config.validate(config.Attack, _fields(given), "attack"), _evaluation(given)


def _evaluation(given: dict[str, Any]) -> Any:
    from bn_vuln import config

    changes = {key: given[key] for key in ("dataset", "split", "limit") if given[key] is not None}
    return config.validate(config.Evaluation, changes, "attack")


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """The options as fields of the attack's config."""
    fields = {key: given[key] for key in ("ord", "eps", "unit", "box", "restarts", "target", "seed", "backend")}
    optional = ("steps", "step_size", "random_start", "keep", "targets", "queries", "eps_grid", "min_eps_tolerance")
    fields |= {key: given[key] for key in optional if given.get(key) is not None}
    if given.get("eps_grid"):
        fields["eps_grid"] = _eps_grid(given["eps_grid"], given["eps"])
    return {"attack": given["name"], **fields}


def _eps_grid(eps_grid: Sequence[float], top: float) -> tuple[float, ...]:
    """The smaller eps of an eps grid as the config has them, ascending; `top` has a row whether it is named or not."""
    if max(eps_grid) > top:
        raise click.UsageError(f"--eps-grid: expected eps of at most --eps {top:.4g}, from which it goes down")
    return tuple(sorted({eps for eps in eps_grid if eps != top}))


def _save(path: Path, clean: Any, attacked: Any) -> None:
    """Images in pixels [n, width, width, channels] before and after, per-example outcomes, and the smallest eps that
    fooled each, or its distance: 0 where the clean image is wrong, infinite where nothing was found."""
    import numpy as np

    from bn_vuln.runtime.files import atomic_path

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, x=clean.images, x_adv=attacked.images, y=attacked.labels, clean_correct=clean.correct,
            correct=attacked.correct, **({} if attacked.smallest is None else {"smallest_eps": attacked.smallest}),
        )  # fmt: skip
