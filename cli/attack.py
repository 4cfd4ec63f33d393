"""`bnvuln attack`: one attack on one classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as o
from .attack_options import attack_config, attack_options, curve_options
from .minimum_norm import NAMES, minimum_norm_config, minimum_norm_options
from .targets import TARGET, api_options, force_option, print_next, print_records, runs_option, target_of

if TYPE_CHECKING:
    from bn_vuln.evaluation.result import Result
    from bn_vuln.typing import Arrays

EXAMPLES = """
Examples:

\b
  # PGD with 20 steps on the newest run
  bnvuln attack --eps 8/255
  # the paper's BIM
  bnvuln attack runs/ID --attack bim --eps 0.1 --unit standardized \\
      --box none --steps 100 --step-size 1e-3 --keep last
  # an ensemble of strong attacks
  bnvuln attack runs/ID --attack strong --eps 0.1 --limit 1000
  # the robustness curve
  bnvuln attack runs/ID --eps 16/255 --eps-grid 1/255,2/255,4/255,8/255
  # the smallest eps of each example
  bnvuln attack runs/ID --attack apgd-ce --eps 0.2 --min-eps-tolerance 1/255
  # the nearest adversarial images: a distance
  bnvuln attack runs/ID --attack carlini_wagner --limit 500
  # adversarial images in a file
  bnvuln attack runs/ID --ord 2 --eps 1 --restarts 5 --save adversarial.npz
  # an external model
  bnvuln attack model.keras --data images.npz --eps 8/255
  bnvuln attack keras.applications:MobileNetV2 --data folder:photos \\
      --class-names imagenet_class_index.json --limit 200
"""


@click.command("attack", cls=o.GroupedCommand, epilog=EXAMPLES)
@click.argument("target_path", required=False, type=click.Path(path_type=Path), metavar=TARGET)
@attack_options(f"Or {', '.join(NAMES)}: the nearest adversarial image, without --eps.")
@curve_options
@minimum_norm_options
@runs_option
@force_option
@o.option("Results")(
    "--save",
    type=o.OUTPUT_FILE,
    metavar="FILE.npz",
    help="File for images, labels, which of them are classified correctly, and distances where there are any.",
)
@o.checks_option
@o.data_options
@o.strategy_option
@o.batch_option
@o.output_options
def command(
    target_path: Path | None, runs: Path, save: Path | None, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Attack a run or any Keras classifier; by default the newest run.

    MODEL is a .keras or .h5 file, or keras.applications:NAME. What it takes and returns is found out and said. Prints
    clean accuracy, robust accuracy, and warnings on unreliable numbers. The records go into the run folder, or into
    RUNS/ID; what is recorded is not measured again, unless more is asked (--force, --save, --checks full).
    """
    o.set_up(verbose)
    if save is not None and save.suffix != ".npz":
        raise click.BadParameter(f"{save}: expected a file name ending in .npz", param_hint="--save")
    from bn_vuln import api

    attack = minimum_norm_config(options) or attack_config(options)
    shared = api_options(options, runs)
    target = target_of(target_path, runs)
    shared["force"] |= save is not None
    result = api.attack(target, attack=attack, keep_images=save is not None, **shared)
    if save is not None:
        _save(save, result.clean, result.attacked)
        o.log(f"saved {save}")
    print_records(result.records, as_json, target)
    print_next(result.folder or runs, options)


def _save(path: Path, clean: Result, attacked: Result) -> None:
    """Write the images before and after, in pixels [n, height, width, channels], and what is known of each example.

    `smallest_eps` is the smallest eps at which it is adversarial, or its distance: 0 where the clean image is
    misclassified, infinite where no adversarial image was found.
    """
    import numpy as np

    from bn_vuln.runtime.files import atomic_path

    arrays: Arrays = {"x": clean.images, "x_adv": attacked.images, "y": attacked.labels}
    arrays |= {"clean_correct": clean.correct, "correct": attacked.correct}
    arrays |= {} if attacked.min_eps is None else {"smallest_eps": attacked.min_eps}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
